//! The process of a proxy.

use std::{
    fmt,
    fs::{File, OpenOptions},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use merlon_test_support::log::LogLine;
use rustix::{
    fs::{CWD, FileType, Mode},
    process::Signal,
};

use super::{
    admin::{page, sum},
    workers,
};
use crate::{
    ports,
    process::{Plan, Process},
    tools, wait,
};

/// The proxy of a program.
pub struct Sidecar {
    process: Mutex<Option<Process>>,
    name: String,
    folder: PathBuf,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    workers: usize,
    inbound: SocketAddr,
    outbound: SocketAddr,
    admin: SocketAddr,
}

impl Sidecar {
    /// A proxy with its own state directory, and with these arguments in addition to its addresses. Does not start it.
    pub fn new(name: &str, folder: &Path, args: Vec<String>) -> Self {
        Self::at(name, folder, args, ports::free())
    }

    /// [`Sidecar::new`] with a fixed inbound address.
    pub(crate) fn at(name: &str, folder: &Path, args: Vec<String>, inbound: SocketAddr) -> Self {
        Self {
            process: Mutex::new(None),
            name: name.to_owned(),
            folder: folder.to_owned(),
            args,
            environment: Vec::new(),
            workers: 1,
            inbound,
            outbound: ports::free(),
            admin: ports::free(),
        }
    }

    pub(super) fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.environment = environment;
    }

    pub(super) fn add_args(&mut self, args: &[&str]) {
        self.args.extend(args.iter().map(ToString::to_string));
    }

    /// Sets how many threads carry its requests; 1 by default.
    pub(super) fn set_workers(&mut self, workers: usize) {
        self.workers = workers;
    }

    /// Starts it, or starts it again after its exit, and waits until it is ready.
    pub async fn start(&self) {
        self.launch();
        self.until_ready().await;
    }

    /// Starts it without waiting.
    pub fn launch(&self) {
        let mut plan = Plan::new(&self.name, tools::binary("merlon-proxy"), &self.folder)
            .args(&self.args)
            .arg("--state-dir")
            .arg(self.folder.join(&self.name))
            .args(["--inbound", &self.inbound.to_string()])
            .args(["--outbound", &self.outbound.to_string()])
            .args(["--admin", &self.admin.to_string()])
            .args(["--workers", &self.workers.to_string()]);
        for (name, value) in &self.environment {
            plan = plan.env(name, value);
        }
        *self.process() = Some(plan.start());
    }

    /// Makes standard output a pipe, before the start. The process blocks when the pipe is full, until the test reads.
    pub fn pipe_output(&self) -> File {
        let path = self.folder.join(format!("{}.out", self.name));
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0).expect("a pipe");
        // Open in both directions, so that neither side waits for the other and the pipe never ends.
        let mut options = OpenOptions::new();
        options.read(true).write(true).open(&path).expect("a pipe")
    }

    /// The number of open connections to its address `to` that each worker serves, from the kernel's tables.
    pub fn connections_of_workers(&self, to: SocketAddr) -> Vec<usize> {
        let process = self.process();
        let pid = process.as_ref().map_or(0, Process::pid);
        workers::connections(pid, to)
    }

    /// Waits until `/ready` responds with 200.
    pub async fn until_ready(&self) {
        wait::until(
            format!("the proxy of `{}` is ready", self.name),
            async || {
                let ended = self
                    .process()
                    .as_ref()
                    .is_none_or(|process| !process.is_alive());
                assert!(!ended, "the proxy of `{}` exited\n{self:?}", self.name);
                self.probe("/ready").await == 200
            },
        )
        .await;
    }

    /// Waits until the process has exited. Returns its exit code.
    pub async fn until_ended(&self) -> i32 {
        wait::until_some(format!("the proxy of `{}` exits", self.name), async || {
            let process = self.process();
            process.as_ref()?.exit_code()
        })
        .await
    }

    /// Kills it with SIGKILL.
    pub fn kill9(&self) {
        drop(self.process().take());
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &*self.process() {
            process.signal(signal);
        }
    }

    /// The id of the process, if it is running.
    pub(super) fn pid(&self) -> Option<u32> {
        let process = self.process();
        process
            .as_ref()
            .filter(|process| process.is_alive())
            .map(Process::pid)
    }

    /// Whether the process is running.
    pub fn is_alive(&self) -> bool {
        self.process().as_ref().is_some_and(Process::is_alive)
    }

    /// Its address for other proxies.
    pub fn inbound(&self) -> SocketAddr {
        self.inbound
    }

    /// Its address for its program.
    pub fn outbound(&self) -> SocketAddr {
        self.outbound
    }

    /// The address of `/live`, `/ready` and `/metrics`.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The body of a page of its administration address.
    ///
    /// # Panics
    /// Without a response.
    pub async fn page(&self, path: &str) -> String {
        let (_, text) = page(self.admin, path)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}\n{self:?}"));
        text
    }

    /// The status of a page; 0 without a response.
    pub async fn probe(&self, path: &str) -> u16 {
        page(self.admin, path).await.map_or(0, |(status, _)| status)
    }

    /// Waits until it is not ready for this reason: `/ready` is 503 and contains it.
    pub async fn until_unready(&self, reason: &str) {
        wait::until(
            format!("the proxy of `{}` reports `{reason}`", self.name),
            async || {
                // A process that has just started does not listen yet.
                let answer = page(self.admin, "/ready").await;
                answer.is_ok_and(|(status, reasons)| status == 503 && reasons.contains(reason))
            },
        )
        .await;
    }

    /// The sum of the metric `name` over all series whose labels contain `labels`; 0 if there is no such series.
    ///
    /// # Panics
    /// If there is no such metric.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        sum(&self.page("/metrics").await, name, labels)
    }

    /// Its access log.
    pub fn log(&self) -> Vec<LogLine> {
        let process = self.process();
        LogLine::all(&process.as_ref().map(Process::out).unwrap_or_default())
    }

    /// Its process log.
    pub fn process_log(&self) -> String {
        let process = self.process();
        process.as_ref().map(Process::err).unwrap_or_default()
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.process() {
            Some(process) => process.fmt(f),
            None => write!(f, "(the proxy of `{}` is stopped)", self.name),
        }
    }
}
