//! The demo's processes, each with a log file: start, watch, and stop by process id.

use std::{
    ffi::OsString,
    fs::{self, File},
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout_at},
};

use crate::failure::Failure;

/// All processes that the demo started.
#[derive(Debug)]
pub(crate) struct Children {
    own: PathBuf,
    logs: PathBuf,
    addresses: PathBuf,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    launch: Launch,
    child: Child,
    log: PathBuf,
    /// Its exit was noticed.
    ended: bool,
}

/// How to start a process, also for a restart.
#[derive(Debug, Clone)]
struct Launch {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
}

/// A process that exited without being stopped by the demo.
#[derive(Debug)]
pub(crate) struct UnexpectedExit {
    name: String,
    status: ExitStatus,
    log: PathBuf,
}

impl UnexpectedExit {
    /// The name of the process.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether a signal ended it, so its log does not show the cause.
    pub(crate) fn is_by_signal(&self) -> bool {
        self.status.signal().is_some()
    }
}

impl std::fmt::Display for UnexpectedExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` exited unexpectedly ({})", self.name, self.status)?;
        match last_lines(&self.log, 5).as_str() {
            "" => write!(f, "; its log {} is empty", self.log.display()),
            lines => write!(f, "; last lines of {}:\n{lines}", self.log.display()),
        }
    }
}

impl Children {
    /// `logs` and `addresses` must exist.
    pub(crate) fn new(logs: PathBuf, addresses: PathBuf) -> Result<Self, Failure> {
        let own = std::env::current_exe().map_err(|error| {
            Failure::runtime(format!("cannot find the executable of `merlon`: {error}"))
        })?;
        Ok(Self {
            own,
            logs,
            addresses,
            running: Vec::new(),
        })
    }

    /// Another program of Merlon, in the same folder as this one.
    pub(crate) fn sibling(&self, program: &str) -> Result<PathBuf, Failure> {
        let path = self.own.with_file_name(program);
        if path.is_file() {
            return Ok(path);
        }
        Err(Failure::usage(format!(
            "`{program}` is not in the folder of `merlon`: {} does not exist",
            path.display()
        ))
        .hint("build it with `cargo build --bin merlon --bin merlon-proxy --bin merlon-control-plane`, or `make demo`"))
    }

    /// The path of this program.
    pub(crate) fn own(&self) -> &Path {
        &self.own
    }

    /// The file to which the process `name` writes its addresses.
    pub(crate) fn addresses_file(&self, name: &str) -> PathBuf {
        self.addresses.join(format!("{name}.json"))
    }

    /// Starts a process. It never outlives the demo, even if the demo is killed.
    pub(crate) fn start(
        &mut self,
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = OsString>,
        environment: &[(&str, &str)],
    ) -> Result<(), Failure> {
        let owned = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let running = self.launch(Launch {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: arguments.into_iter().collect(),
            environment: owned.collect(),
        })?;
        self.running.push(running);
        Ok(())
    }

    /// Restarts a process that exited, at its previous addresses, which other processes use.
    pub(crate) fn restart(&mut self, name: &str) -> Result<(), Failure> {
        let place = self
            .running
            .iter()
            .position(|running| running.launch.name == name && running.ended);
        let ended = place.and_then(|place| self.running.get(place));
        let ended = ended.ok_or_else(|| Failure::runtime(format!("`{name}` is still running")))?;
        let mut launch = ended.launch.clone();
        if let Some(addresses) = self.known_addresses(name) {
            launch.fix_addresses(&addresses);
        }
        let running = self.launch(launch)?;
        if let Some(ended) = place.and_then(|place| self.running.get_mut(place)) {
            *ended = running;
        }
        Ok(())
    }

    fn launch(&self, launch: Launch) -> Result<Running, Failure> {
        let log = self.log(&launch.name);
        let failed = |error| Failure::runtime(format!("cannot start `{}`: {error}", launch.name));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        let mut command = Command::new(&self.own);
        // The MERLON_ variables of the user configure other programs, not these.
        for (variable, _) in std::env::vars_os() {
            if variable.as_encoded_bytes().starts_with(b"MERLON_") {
                command.env_remove(variable);
            }
        }
        let environment = launch.environment.iter();
        let child = command
            .arg("demo-child")
            .arg("--parent")
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(&launch.program)
            .args(&launch.arguments)
            .envs(environment.map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // Ctrl-C only reaches the demo, which then stops its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok(Running {
            launch,
            child,
            log,
            ended: false,
        })
    }

    /// The addresses of the process `name`, once it has written them.
    fn known_addresses(&self, name: &str) -> Option<Addresses> {
        let text = fs::read(self.addresses_file(name)).ok()?;
        Some(Addresses {
            name: name.to_owned(),
            value: serde_json::from_slice(&text).ok()?,
        })
    }

    /// Waits until the process `name` has written its addresses.
    pub(crate) async fn addresses(&mut self, name: &str) -> Result<Addresses, Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(addresses) = self.known_addresses(name) {
                return Ok(addresses);
            }
            if let Some(exit) = self.unexpected_exit() {
                return Err(Failure::runtime(exit.to_string()));
            }
            if Instant::now() > deadline {
                return Err(Failure::runtime(format!(
                    "`{name}` does not listen after {} seconds; see its log {}",
                    START_TIMEOUT.as_secs(),
                    self.log(name).display()
                )));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The next process that exited without being stopped.
    pub(crate) fn unexpected_exit(&mut self) -> Option<UnexpectedExit> {
        self.running
            .iter_mut()
            .filter(|running| !running.ended)
            .find_map(|running| {
                // An error would mean that the child was already waited for, which is impossible while `child` exists.
                let status = running.child.try_wait().ok().flatten()?;
                running.ended = true;
                Some(UnexpectedExit {
                    name: running.launch.name.clone(),
                    status,
                    log: running.log.clone(),
                })
            })
    }

    /// The log file of a process.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Sends a signal to one process.
    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<(), Failure> {
        let running = self
            .running
            .iter()
            .find(|running| running.launch.name == name && !running.ended);
        let failed = || Failure::runtime(format!("`{name}` is not running"));
        let pid = running.and_then(pid_of).ok_or_else(failed)?;
        kill_process(pid, signal).map_err(|error| Failure::runtime(format!("`{name}`: {error}")))
    }

    /// Name and process id of every running process.
    pub(crate) fn pids(&self) -> Vec<(&str, u32)> {
        let running = self.running.iter().filter(|running| !running.ended);
        running
            .filter_map(|running| Some((running.launch.name.as_str(), running.child.id()?)))
            .collect()
    }

    /// The process id of a running process.
    pub(crate) fn pid(&self, name: &str) -> Option<u32> {
        let all = self.pids();
        all.iter()
            .find_map(|(each, pid)| (*each == name).then_some(*pid))
    }

    /// Stops all processes: by SIGTERM, and by SIGKILL after a time-out.
    pub(crate) async fn stop(&mut self) {
        for running in self.running.iter().rev().filter(|running| !running.ended) {
            if let Some(pid) = pid_of(running) {
                // A process stopped by SIGSTOP handles SIGTERM only after SIGCONT.
                let _ = kill_process(pid, Signal::TERM);
                let _ = kill_process(pid, Signal::CONT);
            }
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        for running in self.running.iter_mut().rev() {
            if timeout_at(deadline, running.child.wait()).await.is_err() {
                // `kill` also waits for the exit.
                let _ = running.child.kill().await;
            }
            running.ended = true;
        }
    }
}

impl Launch {
    /// Replaces each address without a fixed port by the address that the process got.
    fn fix_addresses(&mut self, addresses: &Addresses) {
        for index in 1..self.arguments.len() {
            let (before, rest) = self.arguments.split_at_mut(index);
            let (Some(flag), Some(value)) = (before.last(), rest.first_mut()) else {
                return;
            };
            let flag = flag.to_str().and_then(|flag| flag.strip_prefix("--"));
            if value == ANY_PORT
                && let Some(address) = flag.and_then(|flag| addresses.get(flag).ok())
            {
                *value = address.to_string().into();
            }
        }
    }
}

fn pid_of(running: &Running) -> Option<Pid> {
    Pid::from_raw(i32::try_from(running.child.id()?).ok()?)
}

/// The addresses on which a process listens.
#[derive(Debug)]
pub(crate) struct Addresses {
    name: String,
    value: Value,
}

impl Addresses {
    /// One address by its name.
    pub(crate) fn get(&self, which: &str) -> Result<SocketAddr, Failure> {
        let text = super::wire::text_at(&self.value, &format!("/{which}"));
        text.parse().map_err(|_| {
            Failure::runtime(format!(
                "`{}` has no address `{which}`: {}",
                self.name, self.value
            ))
        })
    }
}

/// The last lines of a log, indented.
pub(crate) fn last_lines(log: &Path, many: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().take(many).collect();
    let lines = lines.into_iter().rev().map(|line| format!("    {line}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// An address whose port the system chooses.
pub(crate) const ANY_PORT: &str = "127.0.0.1:0";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(4);
