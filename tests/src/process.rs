//! Processes that tests start, and that die with them.

use std::{
    ffi::OsStr,
    fmt,
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// How to start a process.
#[derive(Debug)]
pub struct Plan {
    name: String,
    command: Command,
    folder: PathBuf,
}

/// A running process. Dropping it kills it.
pub struct Process {
    name: String,
    child: Mutex<Child>,
    out: PathBuf,
    err: PathBuf,
}

/// A user to run a server as that refuses to run as root.
pub const UNPRIVILEGED: u32 = 65_534;

impl Plan {
    /// `program`, whose output goes to `<folder>/<name>.out` and `<name>.err`.
    pub fn new(name: &str, program: impl AsRef<OsStr>, folder: &Path) -> Self {
        Self::with(name, program, folder, &[])
    }

    /// The same, as [`UNPRIVILEGED`] when the tests run as root.
    pub fn unprivileged(name: &str, program: impl AsRef<OsStr>, folder: &Path) -> Self {
        let user: &[&str] = if rustix::process::geteuid().is_root() {
            &["--reuid=65534", "--regid=65534", "--clear-groups"]
        } else {
            &[]
        };
        Self::with(name, program, folder, user)
    }

    /// The same, as this user; needs root.
    pub fn as_user(name: &str, program: impl AsRef<OsStr>, folder: &Path, user: u32) -> Self {
        let (user, group) = (format!("--reuid={user}"), format!("--regid={user}"));
        let rights = [
            "--clear-groups",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--no-new-privs",
        ];
        let user = [&[user.as_str(), group.as_str()], rights.as_slice()].concat();
        Self::with(name, program, folder, &user)
    }

    fn with(name: &str, program: impl AsRef<OsStr>, folder: &Path, user: &[&str]) -> Self {
        // From util-linux: asks the kernel to kill the process with the thread that started it, then becomes it. What a
        // test shares with others is in statics, which nobody drops at the end.
        let mut command = Command::new("setpriv");
        command
            .args(user)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .stdin(Stdio::null())
            .env_remove("RUST_BACKTRACE");
        Self {
            name: name.to_owned(),
            command,
            folder: folder.to_owned(),
        }
    }

    /// Runs in a network namespace; needs root.
    #[must_use]
    pub fn in_namespace(mut self, path: &str) -> Self {
        let inner = self.command;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={path}"))
            .arg("--")
            .arg(inner.get_program())
            .args(inner.get_args())
            .stdin(Stdio::null())
            .env_remove("RUST_BACKTRACE");
        self.command = command;
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Works in this folder.
    #[must_use]
    pub fn current_dir(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When that fails.
    pub fn start(mut self) -> Process {
        let out = self.folder.join(format!("{}.out", self.name));
        let err = self.folder.join(format!("{}.err", self.name));
        self.command.stdout(append(&out)).stderr(append(&err));
        Process {
            child: Mutex::new(spawn(&self.name, self.command)),
            name: self.name,
            out,
            err,
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    pub async fn run(self) -> Output {
        self.run_within(wait::TIMEOUT).await
    }

    /// As [`Plan::run`], for what takes longer than one waits otherwise.
    ///
    /// # Panics
    /// When it cannot be started or does not end within `patience`.
    pub async fn run_within(mut self, patience: Duration) -> Output {
        // Commands of one name may run side by side.
        static RUNS: AtomicU32 = AtomicU32::new(0);
        self.name = format!("{}-{}", self.name, RUNS.fetch_add(1, Ordering::Relaxed));
        let process = self.start();
        let status = process.ended_within(patience).await;
        Output {
            status,
            out: process.out(),
            err: process.err(),
        }
    }
}

/// How a process ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it said.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

impl Output {
    /// The exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

impl Process {
    /// What it was started as.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// What it wrote to its standard output so far, over all its lives under this name.
    pub fn out(&self) -> String {
        read(&self.out)
    }

    /// The same of its standard error.
    pub fn err(&self) -> String {
        read(&self.err)
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Its exit code once it has ended; -1 when a signal ended it.
    pub fn exit_code(&self) -> Option<i32> {
        let status = self.child().try_wait().ok().flatten()?;
        Some(status.code().unwrap_or(-1))
    }

    /// Ends it as a crash would, and waits until it is gone.
    pub fn kill9(&self) {
        let mut child = self.child();
        // It may have ended before.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Waits for its end, which something else brings about at once.
    pub(crate) fn gone(&self) {
        // It may have been waited for before.
        let _ = self.child().wait();
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if self.is_alive()
            && let Some(pid) = pid
        {
            // It may have ended just now.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for its end.
    pub async fn ended(&self) -> ExitStatus {
        self.ended_within(wait::TIMEOUT).await
    }

    async fn ended_within(&self, patience: Duration) -> ExitStatus {
        let what = format!("`{}` ends", self.name);
        wait::until_some_within(patience, what, async || {
            self.child().try_wait().ok().flatten()
        })
        .await
    }

    /// Waits until `ready`.
    ///
    /// # Panics
    /// When the process ends instead, with what it wrote.
    pub async fn until(&self, what: &str, mut ready: impl AsyncFnMut() -> bool) {
        wait::until(format!("`{}` {what}", self.name), async || {
            assert!(
                self.is_alive(),
                "`{}` ended before it {what}\n{self:?}",
                self.name
            );
            ready().await
        })
        .await;
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The end of what it wrote: what a failed test wants to show.
impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "--- {} (process {})", self.name, self.pid())?;
        for text in [self.out(), self.err()] {
            let lines: Vec<_> = text.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(LAST_LINES)) {
                // An access log's lines are long; what is at their beginning tells most.
                let cut: String = line.chars().take(LINE_LENGTH).collect();
                writeln!(f, "    {cut}")?;
            }
        }
        Ok(())
    }
}

const LAST_LINES: usize = 20;
const LINE_LENGTH: usize = 400;

fn append(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

type SpawnRequest = (Command, mpsc::SyncSender<std::io::Result<Child>>);

// The kernel kills a child with the *thread* that started it, and a test's thread ends with the test while what it
// started may be shared: one thread starts everything and lives as long as the process.
static SPAWNER: LazyLock<mpsc::Sender<SpawnRequest>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<SpawnRequest>();
    std::thread::Builder::new()
        .name("spawner".to_owned())
        .spawn(move || {
            for (mut command, answer) in requests {
                // The test that asked may be gone.
                let _ = answer.send(command.spawn());
            }
        })
        .expect("a thread");
    sender
});

fn spawn(name: &str, command: Command) -> Child {
    let (sender, answer) = mpsc::sync_channel(1);
    SPAWNER
        .send((command, sender))
        .expect("the spawner thread runs as long as the process");
    answer
        .recv()
        .expect("an answer of the spawner thread")
        .unwrap_or_else(|error| panic!("`{name}` cannot be started by `setpriv`: {error}"))
}
