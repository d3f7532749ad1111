//! The demo passes all its steps, and notices injected faults.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Demo, Ran, all_end, command, exists, merlon};

const STEPS: [&str; 16] = [
    "start",
    "allowed",
    "no-token",
    "forged-signature",
    "expired",
    "wrong-audience",
    "public-key-as-secret",
    "algorithm-none",
    "forbidden",
    "explain",
    "not-permitted",
    "rate-limited",
    "bad-body",
    "rotation",
    "policy-edit",
    "broken-policy",
];

fn names(report: &Value, wanted: impl Fn(&Value) -> bool) -> Vec<&str> {
    let steps = report["steps"].as_array().unwrap().iter();
    steps
        .filter(|step| wanted(step))
        .map(|step| step["name"].as_str().unwrap())
        .collect()
}

#[test]
fn every_step_of_the_demo_passes() {
    let ran = merlon(&["demo", "--once", "--output", "json"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let report = ran.json();
    assert_eq!(names(&report, |step| step["ok"] == true), STEPS);
    assert_eq!(report["ok"], true);
    assert_eq!(report["certificate_issuer"], "embedded");
    assert!(report["duration_ms"].as_u64().unwrap() > 0);
    assert!(
        !exists(report["folder"].as_str().unwrap()),
        "the folder is still there"
    );
    let rotated = &report["steps"][13]["details"];
    assert_eq!(rotated["lost"], 0);
    assert_ne!(
        rotated["orders"]["old_serial"],
        rotated["orders"]["new_serial"]
    );
}

#[test]
fn with_vault_certificates_come_from_a_real_openbao() {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin");
    assert!(
        tools.join("bao").exists(),
        "no OpenBao in .tools/bin: run `make tools`"
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(tools).chain(std::env::split_paths(&path)));
    let ran = command(&["demo", "--once", "--output", "json", "--vault"])
        .env("PATH", path.unwrap())
        .output();
    let ran = Ran::from(ran.unwrap());
    assert_eq!(ran.code, 0, "{ran:#?}");
    let report = ran.json();
    assert_eq!(report["certificate_issuer"], "openbao");
    assert_eq!(names(&report, |step| step["ok"] == true), STEPS);
}

fn sabotaged(step: &str) -> Ran {
    let ran = merlon(&["demo", "--once", "--output", "json", "--sabotage", step]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    let report = ran.json();
    assert_eq!(report["ok"], false);
    assert_eq!(
        names(&report, |step| step["ok"] == false),
        [step],
        "{ran:#?}"
    );
    assert!(
        ran.err.contains(&format!("step `{step}` failed")),
        "{}",
        ran.err
    );
    ran
}

/// One test per step, so they run in parallel and a failure shows the step.
macro_rules! sabotage {
    ($($name:ident: $step:literal,)*) => {
        $(
            #[test]
            fn $name() {
                sabotaged($step);
            }
        )*

        #[test]
        fn every_step_is_sabotaged_by_a_test() {
            let mut sabotaged = vec![$($step,)* "allowed", "explain"];
            sabotaged.sort_unstable();
            let mut all = STEPS.to_vec();
            all.sort_unstable();
            assert_eq!(sabotaged, all);
        }
    };
}

sabotage! {
    a_sidecar_with_the_join_token_of_another_fails_the_start: "start",
    a_service_that_requires_no_token_is_noticed: "no-token",
    an_issuer_that_publishes_the_forgers_key_is_noticed: "forged-signature",
    a_clock_skew_that_is_too_large_is_noticed: "expired",
    an_additional_audience_is_noticed: "wrong-audience",
    a_service_that_ignores_tokens_is_noticed_by_the_public_key_as_secret: "public-key-as-secret",
    a_service_that_ignores_tokens_is_noticed_by_algorithm_none: "algorithm-none",
    a_permit_instead_of_a_forbid_is_noticed: "forbidden",
    a_permit_that_is_too_broad_is_noticed: "not-permitted",
    a_limit_that_is_too_high_is_noticed: "rate-limited",
    a_schema_that_accepts_everything_is_noticed: "bad-body",
    a_control_plane_that_hangs_fails_the_rotation: "rotation",
    a_policy_that_does_not_compile_fails_the_edit: "policy-edit",
    a_valid_policy_instead_of_a_broken_one_is_noticed: "broken-policy",
}

#[test]
fn a_program_that_exits_is_noticed_and_named() {
    let ran = sabotaged("allowed");
    assert!(
        ran.err.contains("`payments` exited unexpectedly"),
        "{}",
        ran.err
    );
}

#[test]
fn a_control_plane_that_exits_is_noticed_and_named() {
    let ran = sabotaged("explain");
    assert!(
        ran.err.contains("`control-plane` exited unexpectedly"),
        "{}",
        ran.err
    );
}

#[test]
fn ctrl_c_leaves_no_process_and_no_file() {
    let mut demo = Demo::start();
    let (processes, folder) = (demo.processes(), demo.text("/folder").to_owned());
    assert_eq!(processes.len(), 8);
    assert!(exists(&folder));
    demo.signal(Signal::INT);
    assert_eq!(demo.wait().code(), Some(0));
    all_end(&processes);
    assert!(!exists(&folder), "{folder} is still there");
}

#[test]
fn the_processes_of_a_killed_demo_end_too() {
    let mut demo = Demo::start();
    let processes = demo.processes();
    demo.signal(Signal::KILL);
    assert_eq!(demo.wait().code(), None);
    all_end(&processes);
}

#[test]
fn the_next_demo_removes_the_folder_of_a_killed_one_and_not_of_a_running_one() {
    let (mut killed, running) = (Demo::start(), Demo::start());
    let folders = [&killed, &running].map(|demo| demo.text("/folder").to_owned());
    killed.signal(Signal::KILL);
    assert_eq!(killed.wait().code(), None);
    let next = Demo::start();
    assert_eq!(folders.map(|folder| exists(&folder)), [false, true]);
    drop((running, next));
}

#[test]
fn a_killed_process_is_restarted_at_its_previous_address() {
    let mut demo = Demo::start();
    let before = demo.process("control-plane");
    rustix::process::kill_process(before, Signal::KILL).unwrap();
    let down = demo.merlon(&["proxy", "status"]);
    assert_ne!(down.code, 0, "{down:#?}");
    let restarted = demo.until(&["proxy", "status", "--output", "json"], |ran| {
        ran.code == 0 && ran.out.matches("acknowledged").count() >= 3
    });
    assert!(
        restarted
            .out
            .contains("spiffe://demo.merlon.test/ns/shop/sa/web"),
        "{restarted:#?}"
    );
    assert!(demo.is_running());
}

#[test]
fn the_folder_of_keep_is_kept() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("kept");
    let ran = merlon(&[
        "demo",
        "--once",
        "--sabotage",
        "allowed",
        "--keep",
        folder.to_str().unwrap(),
    ]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(folder.join("resources/mesh.yaml").is_file());
    assert!(folder.join("logs/orders-sidecar.log").is_file());
    let again = merlon(&["demo", "--once", "--keep", folder.to_str().unwrap()]);
    assert_eq!(again.code, 2, "{again:#?}");
    assert!(again.err.contains("is not empty"), "{}", again.err);
}
