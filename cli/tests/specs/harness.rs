//! Runs `merlon` as an installed binary, and demos that stay up.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use merlon_test_support::wait::block_until_value;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

/// Exit code and output of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Standard output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs `merlon` with these arguments.
pub(crate) fn merlon(arguments: &[&str]) -> Ran {
    command(arguments).output().unwrap().into()
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_merlon"));
    command.args(arguments).stdin(Stdio::null());
    for name in [
        "VAULT_ADDR",
        "VAULT_TOKEN",
        "BAO_ADDR",
        "BAO_TOKEN",
        "MERLON_CONTROL_PLANE_SOCKET",
    ] {
        command.env_remove(name);
    }
    command
}

/// A running demo, after its story.
#[derive(Debug)]
pub(crate) struct Demo {
    child: Child,
    /// The story's report.
    pub(crate) report: Value,
}

impl Demo {
    /// Starts a demo with these arguments and waits for the end of its story.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = command(&["demo", "--output", "json"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        loop {
            let before = text.len();
            assert!(
                lines.read_line(&mut text).unwrap() > 0,
                "the demo exited: {text}"
            );
            // The report is one indented JSON object.
            if text.get(before..) == Some("}\n") {
                break;
            }
        }
        // Keep reading, so that the demo never blocks on a full pipe.
        std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
        let report = serde_json::from_str(&text).unwrap();
        Self { child, report }
    }

    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.report
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("no {pointer} in {}", self.report))
    }

    /// Runs a command with this demo's control plane.
    pub(crate) fn merlon(&self, arguments: &[&str]) -> Ran {
        let mut command = command(arguments);
        command.env(
            "MERLON_CONTROL_PLANE_SOCKET",
            self.text("/control_plane_socket"),
        );
        command.output().unwrap().into()
    }

    /// The process ids of all its children.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let processes = self.report["processes"].as_object().unwrap();
        let ids = processes
            .values()
            .map(|id| i32::try_from(id.as_i64().unwrap()).unwrap());
        ids.map(|id| Pid::from_raw(id).unwrap()).collect()
    }

    /// The process ids of its children now, from the kernel.
    pub(crate) fn children(&self) -> Vec<Pid> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let children = threads.flat_map(|thread| {
            let file = thread.unwrap().path().join("children");
            let text = std::fs::read_to_string(file).unwrap();
            let ids = text.split_whitespace().map(|id| id.parse().unwrap());
            ids.collect::<Vec<i32>>()
        });
        children.map(|id| Pid::from_raw(id).unwrap()).collect()
    }

    /// The process id of one child.
    pub(crate) fn process(&self, name: &str) -> Pid {
        let id = self.report["processes"][name].as_i64().unwrap();
        Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
    }

    /// Repeats a command until its output matches.
    pub(crate) fn until(&self, arguments: &[&str], matches: impl Fn(&Ran) -> bool) -> Ran {
        let what = format!("`merlon {}` prints what is wanted", arguments.join(" "));
        block_until_value(what, || self.merlon(arguments), matches)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap(),
            signal,
        )
        .unwrap();
    }

    /// Waits for its exit.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let look = || self.child.try_wait().unwrap();
        block_until_value("the demo exits", look, Option::is_some).unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Its children end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(folder) = self.report.get("folder").and_then(Value::as_str) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Waits until none of these processes exists.
pub(crate) fn all_end(processes: &[Pid]) {
    let left = || -> Vec<_> {
        let exists = |pid: &&Pid| test_kill_process(**pid).is_ok();
        processes.iter().filter(exists).collect()
    };
    block_until_value("no process is left", left, Vec::is_empty);
}

pub(crate) fn exists(path: &str) -> bool {
    Path::new(path).exists()
}
