//! Every command except the demo, on a live mesh and without a control plane.

use std::{fs, path::Path};

use crate::harness::{Demo, Ran, command, merlon};

/// One demo for all commands, because starting one takes seconds.
#[test]
fn a_live_mesh_answers_every_command() {
    let demo = Demo::start(&[]);
    status_lists_every_proxy(&demo);
    config_shows_one_proxy_without_secrets(&demo);
    explain_shows_which_policy_decided(&demo);
    explain_shows_the_result_of_todays_policies(&demo);
    unknown_ids_are_errors(&demo);
    a_join_token_is_created(&demo);
    a_certificate_is_rotated(&demo);
}

fn status_lists_every_proxy(demo: &Demo) {
    let ran = demo.merlon(&["proxy", "status", "--output", "json"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let proxies = ran.json();
    let mut identities: Vec<_> = proxies
        .as_array()
        .unwrap()
        .iter()
        .map(|proxy| proxy["identity"].as_str().unwrap())
        .collect();
    identities.sort_unstable();
    let expected = [
        "ns/payments/sa/payments",
        "ns/shop/sa/orders",
        "ns/shop/sa/web",
    ];
    assert_eq!(
        identities,
        expected.map(|id| format!("spiffe://demo.merlon.test/{id}"))
    );
    for proxy in proxies.as_array().unwrap() {
        assert_eq!(proxy["state"], "acknowledged");
        assert_eq!(proxy["ready"], true);
        assert!(proxy["certificateNotAfter"].is_string(), "{proxy}");
    }
    let ran = demo.merlon(&["proxy", "status"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.out.starts_with("IDENTITY "), "{}", ran.out);
    assert_eq!(ran.out.lines().count(), 4, "{}", ran.out);
    assert!(!ran.out.contains('\u{1b}'), "no colour is needed");
}

fn config_shows_one_proxy_without_secrets(demo: &Demo) {
    let ran = demo.merlon(&["proxy", "config", "shop/orders"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.json().is_object());
    assert!(ran.out.contains("shop/orders"), "{}", ran.out);
    assert!(!ran.out.contains("PRIVATE KEY"), "{}", ran.out);
}

fn decision(demo: &Demo, step: &str) -> String {
    let mut steps = demo.report["steps"].as_array().unwrap().iter();
    let step = steps.find(|found| found["name"] == step).unwrap();
    step["details"]["decision_id"].as_str().unwrap().to_owned()
}

fn explain_shows_which_policy_decided(demo: &Demo) {
    let id = decision(demo, "forbidden");
    let ran = demo.merlon(&["explain", &id]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(
        ran.out
            .starts_with(&format!("Decision {id}: denied by policy\n")),
        "{}",
        ran.out
    );
    for line in [
        "spiffe://demo.merlon.test/ns/shop/sa/web: POST /charges to payments/payments, port 80",
        "forbid payments/payments#only-orders matches",
        "Today      same result: the policies have not changed",
    ] {
        assert!(ran.out.contains(line), "{line}\n{}", ran.out);
    }
}

fn explain_shows_the_result_of_todays_policies(demo: &Demo) {
    let file = Path::new(demo.text("/folder")).join("resources/payments/payments.cedar");
    let text = fs::read_to_string(&file).unwrap();
    let (charge, _) = text.split_once("@id(\"only-orders\")").unwrap();
    fs::write(&file, charge.replace("shop/orders", "shop/web")).unwrap();
    let id = decision(demo, "forbidden");
    let explained = demo.until(&["explain", &id, "--output", "json"], |ran| {
        assert_eq!(ran.code, 0, "{ran:#?}");
        ran.json()["policiesChanged"] == true
    });
    let explained = explained.json();
    assert_eq!(explained["then"]["allowed"], false);
    assert_eq!(explained["today"]["allowed"], true);
    assert_eq!(
        explained["today"]["determining"][0],
        "payments/payments#charge"
    );
    fs::write(&file, text).unwrap();
}

fn unknown_ids_are_errors(demo: &Demo) {
    let ran = demo.merlon(&["explain", "00000000-000"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.err.starts_with("error: "), "{}", ran.err);
    let ran = demo.merlon(&["proxy", "config", "no-such-proxy"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.err.contains("`no-such-proxy`"), "{}", ran.err);
}

fn a_join_token_is_created(demo: &Demo) {
    let ran = demo.merlon(&["token", "create", "--identity", "shop/web", "--ttl", "1m"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(
        ran.out.starts_with("merlon-join.1.demo.merlon.test."),
        "{}",
        ran.out
    );
    let ran = demo.merlon(&["token", "create", "--identity", "web"]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(ran.err.contains("namespace/service-account"), "{}", ran.err);
}

fn a_certificate_is_rotated(demo: &Demo) {
    let ran = demo.merlon(&["certs", "rotate", "payments/payments", "--output", "json"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let rotated = ran.json();
    assert_ne!(rotated["oldSerial"], rotated["newSerial"]);
}

#[test]
fn without_a_control_plane_errors_name_the_socket() {
    for arguments in [
        ["proxy", "status"].as_slice(),
        &["proxy", "config", "x"],
        &["explain", "00000000-000"],
        &["token", "create", "--identity", "shop/web"],
        &["certs", "rotate", "x"],
    ] {
        let ran = command(arguments)
            .arg("--control-plane-socket")
            .arg("/nowhere/admin.sock")
            .output();
        let ran = Ran::from(ran.unwrap());
        assert_eq!(ran.code, 1, "{ran:#?}");
        assert!(
            ran.err.contains("/nowhere/admin.sock") && ran.err.contains("\nhint: "),
            "{}",
            ran.err
        );
        assert!(ran.out.is_empty(), "{}", ran.out);
    }
}

#[test]
fn policy_check_reports_every_problem_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "mesh.yaml",
        "apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: {name: mesh, namespace: merlon-system}
spec: {trustDomain: demo.merlon.test, certificates: {lifetme: 1h}}
",
    );
    write(
        "limit.yaml",
        "apiVersion: merlon.io/v1alpha1
kind: RateLimit
metadata: {name: orders, namespace: shop}
spec:
  limits: [{name: per-caller, rate: {requests: 0, per: 1s}}]
",
    );
    let ran = merlon(&["policy", "check", folder.path().to_str().unwrap()]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(
        ran.err.contains("mesh.yaml:4:") && ran.err.contains("`lifetime`"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("limit.yaml:5:"), "{}", ran.err);
    let ran = merlon(&[
        "policy",
        "check",
        "--output",
        "json",
        folder.path().to_str().unwrap(),
    ]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    let report = ran.json();
    let problems = report["problems"].as_array().unwrap().iter();
    let errors = problems.filter(|problem| problem["severity"] == "error");
    assert_eq!(errors.count(), 2, "{ran:#?}");
}

#[test]
fn the_examples_have_no_problems() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples/shop");
    let ran = merlon(&["policy", "check", examples.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:#?}");
}

#[test]
fn a_demo_without_its_programs_prints_how_to_build_them() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("merlon");
    fs::copy(env!("CARGO_BIN_EXE_merlon"), &alone).unwrap();
    let ran = std::process::Command::new(alone)
        .args(["demo", "--once"])
        .output()
        .unwrap();
    let ran = Ran::from(ran);
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(
        ran.err
            .contains("`merlon-control-plane` is not in the folder of `merlon`"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("cargo build"), "{}", ran.err);
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    assert_eq!(merlon(&["no-such-command"]).code, 2);
    assert_eq!(merlon(&["proxy", "status", "--output", "xml"]).code, 2);
    for arguments in [
        ["--help"].as_slice(),
        &["demo", "--help"],
        &["explain", "--help"],
        &["policy", "check", "--help"],
    ] {
        let ran = merlon(arguments);
        assert_eq!(ran.code, 0, "{ran:#?}");
        assert!(
            !ran.out.contains("sabotage") && !ran.out.contains("demo-child"),
            "{}",
            ran.out
        );
    }
    assert_eq!(
        merlon(&["version"]).out,
        format!("merlon {}\n", env!("CARGO_PKG_VERSION"))
    );
}
