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

/// A demo with a fault in each of these steps. It must notice each of them, and no other step may fail.
fn sabotaged(steps: &[&str], more: &[&str]) -> Ran {
    let all = steps.join(",");
    let arguments = ["demo", "--once", "--output", "json", "--sabotage", &all];
    let ran = merlon(&[&arguments, more].concat());
    assert_eq!(ran.code, 1, "{ran:#?}");
    let report = ran.json();
    assert_eq!(report["ok"], false);
    assert_eq!(
        names(&report, |step| step["ok"] == false),
        steps,
        "{ran:#?}"
    );
    for step in steps {
        let failed = format!("step `{step}` failed");
        assert!(ran.err.contains(&failed), "{}", ran.err);
    }
    ran
}

/// What each of these steps is sabotaged by affects no later step, so one demo shows them all.
const INDEPENDENT: [(&str, &str); 12] = [
    ("no-token", "a service requires no token"),
    ("forged-signature", "the issuer publishes the forger's key"),
    ("expired", "the clock skew is too large"),
    ("wrong-audience", "there is an additional audience"),
    ("public-key-as-secret", "a service ignores tokens"),
    ("algorithm-none", "a service ignores tokens"),
    ("not-permitted", "a permit is too broad"),
    ("rate-limited", "a limit is too high"),
    ("bad-body", "a schema accepts everything"),
    ("rotation", "the control plane hangs"),
    ("policy-edit", "the edited policy does not compile"),
    ("broken-policy", "the broken policy is valid"),
];

#[test]
fn a_fault_in_tokens_policies_limits_or_rotation_is_noticed_by_its_step_and_by_no_other() {
    sabotaged(&INDEPENDENT.map(|(step, _)| step), &[]);
}

#[test]
fn a_sidecar_with_the_join_token_of_another_fails_the_start() {
    sabotaged(&["start"], &[]);
}

#[test]
fn a_program_that_exits_is_noticed_and_named_and_the_folder_of_keep_is_kept() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("kept");
    let keep = ["--keep", folder.to_str().unwrap()];
    let ran = sabotaged(&["allowed"], &keep);
    assert!(
        ran.err.contains("`payments` exited unexpectedly"),
        "{}",
        ran.err
    );
    assert!(folder.join("resources/mesh.yaml").is_file());
    assert!(folder.join("logs/orders-sidecar.log").is_file());
    let again = merlon(&[&["demo", "--once"], keep.as_slice()].concat());
    assert_eq!(again.code, 2, "{again:#?}");
    assert!(again.err.contains("is not empty"), "{}", again.err);
}

#[test]
fn a_permit_instead_of_a_forbid_is_noticed_and_a_control_plane_that_exits_is_named() {
    let ran = sabotaged(&["forbidden", "explain"], &[]);
    assert!(
        ran.err.contains("`control-plane` exited unexpectedly"),
        "{}",
        ran.err
    );
}

#[test]
fn every_step_is_sabotaged_by_a_test() {
    let mut sabotaged = INDEPENDENT.map(|(step, _)| step).to_vec();
    sabotaged.extend(["start", "allowed", "forbidden", "explain"]);
    sabotaged.sort_unstable();
    let mut all = STEPS.to_vec();
    all.sort_unstable();
    assert_eq!(sabotaged, all);
}

/// Two demos for all of this, because starting one takes seconds.
#[test]
fn demos_that_stay_up_restart_what_exits_and_leave_nothing_however_they_end() {
    let (mut running, mut killed) = std::thread::scope(|scope| {
        let running = scope.spawn(|| Demo::start(&["--restart-delay", "3s"]));
        let killed = Demo::start(&[]);
        (running.join().unwrap(), killed)
    });
    let folders = [&running, &killed].map(|demo| demo.text("/folder").to_owned());
    the_processes_of_a_killed_demo_end_too(&mut killed);
    the_next_demo_removes_the_folder_of_a_killed_one_and_not_of_a_running_one(&folders);
    a_killed_process_is_restarted_at_its_previous_address(&mut running);
    ctrl_c_leaves_no_process_and_no_file(&mut running);
}

fn the_processes_of_a_killed_demo_end_too(demo: &mut Demo) {
    let processes = demo.processes();
    demo.signal(Signal::KILL);
    assert_eq!(demo.wait().code(), None);
    all_end(&processes);
}

fn the_next_demo_removes_the_folder_of_a_killed_one_and_not_of_a_running_one(
    [running, killed]: &[String; 2],
) {
    // It ends early.
    sabotaged(&["allowed"], &[]);
    assert_eq!(
        [running, killed].map(|folder| exists(folder)),
        [true, false]
    );
}

fn a_killed_process_is_restarted_at_its_previous_address(demo: &mut Demo) {
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

fn ctrl_c_leaves_no_process_and_no_file(demo: &mut Demo) {
    // Those of now: one was restarted since the report.
    let (processes, folder) = (demo.children(), demo.text("/folder").to_owned());
    assert_eq!(processes.len(), 8);
    assert!(exists(&folder));
    demo.signal(Signal::INT);
    assert_eq!(demo.wait().code(), Some(0));
    all_end(&processes);
    assert!(!exists(&folder), "{folder} is still there");
}
