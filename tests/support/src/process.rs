//! Processes that tests start. They are killed when the test binary exits.

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

/// Waits until every thread of a process has stopped after SIGSTOP: until then it may still answer a request.
pub async fn stopped(pid: u32) {
    wait::until(format!("process {pid} has stopped"), async || {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
        threads.flatten().all(|thread| {
            // The state follows the name, which may contain anything, in brackets. A thread that ends has no file.
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let state = stat
                .rsplit_once(") ")
                .map(|(_, rest)| rest.starts_with('T'));
            state.unwrap_or(true)
        })
    })
    .await;
}

/// A builder for a process.
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

/// The user id for servers that refuse to run as root.
pub const UNPRIVILEGED: u32 = 65_534;

impl Plan {
    /// Starts `program`. Its output goes to `<folder>/<name>.out` and `<folder>/<name>.err`.
    pub fn new(name: &str, program: impl AsRef<OsStr>, folder: &Path) -> Self {
        Self::with(name, program, folder, &[])
    }

    /// Like [`Plan::new`], as [`UNPRIVILEGED`] if the tests run as root.
    pub fn unprivileged(name: &str, program: impl AsRef<OsStr>, folder: &Path) -> Self {
        let user: &[&str] = if rustix::process::geteuid().is_root() {
            &["--reuid=65534", "--regid=65534", "--clear-groups"]
        } else {
            &[]
        };
        Self::with(name, program, folder, user)
    }

    /// Like [`Plan::new`], as this user; needs root.
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
        // From util-linux: asks the kernel to kill the process when the thread that started it exits, then executes the
        // program. Processes that tests share are in statics, which are never dropped.
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

    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Starts the process.
    ///
    /// # Panics
    /// If that fails.
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

    /// Runs the process until it exits.
    ///
    /// # Panics
    /// If it cannot be started or does not exit within [`wait::TIMEOUT`].
    pub async fn run(self) -> Output {
        self.run_within(wait::TIMEOUT).await
    }

    /// [`Plan::run`] with another time-out.
    ///
    /// # Panics
    /// If it cannot be started or does not exit within `timeout`.
    pub async fn run_within(mut self, timeout: Duration) -> Output {
        // Commands of the same name may run concurrently.
        static RUNS: AtomicU32 = AtomicU32::new(0);
        self.name = format!("{}-{}", self.name, RUNS.fetch_add(1, Ordering::Relaxed));
        let process = self.start();
        let status = process.ended_within(timeout).await;
        Output {
            status,
            out: process.out(),
            err: process.err(),
        }
    }
}

/// The exit status and output of a process.
#[derive(Debug)]
pub struct Output {
    /// The exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Output {
    /// The exit code; -1 if a signal killed it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

impl Process {
    /// The name given to [`Plan::new`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Its standard output so far, including that of earlier processes of this name.
    pub fn out(&self) -> String {
        read(&self.out)
    }

    /// Its standard error so far, including that of earlier processes of this name.
    pub fn err(&self) -> String {
        read(&self.err)
    }

    /// Whether it is running.
    pub fn is_alive(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Its exit code once it has exited; -1 if a signal killed it.
    pub fn exit_code(&self) -> Option<i32> {
        let status = self.child().try_wait().ok().flatten()?;
        Some(status.code().unwrap_or(-1))
    }

    /// Sends SIGKILL, and waits until the process has exited.
    pub fn kill9(&self) {
        let mut child = self.child();
        // It may have exited before.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Blocks until it has exited, for a process that is about to exit.
    pub fn wait_blocking(&self) {
        // It may have been waited for before.
        let _ = self.child().wait();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if self.is_alive()
            && let Some(pid) = pid
        {
            // It may have exited just now.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits until it has exited.
    pub async fn ended(&self) -> ExitStatus {
        self.ended_within(wait::TIMEOUT).await
    }

    async fn ended_within(&self, timeout: Duration) -> ExitStatus {
        let what = format!("`{}` exits", self.name);
        wait::until_some_within(timeout, what, async || {
            self.child().try_wait().ok().flatten()
        })
        .await
    }

    /// Waits until `ready` is true.
    ///
    /// # Panics
    /// If the process exits first; the message contains its output.
    pub async fn until(&self, what: &str, mut ready: impl AsyncFnMut() -> bool) {
        wait::until(format!("`{}` {what}", self.name), async || {
            assert!(
                self.is_alive(),
                "`{}` exited before it {what}\n{self:?}",
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

/// The last lines of its output, for failed tests.
impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "--- {} (process {})", self.name, self.pid())?;
        for text in [self.out(), self.err()] {
            let lines: Vec<_> = text.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(LAST_LINES)) {
                // Lines of the access log are long; the important fields are first.
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

/// What a process has written; nothing if it writes to a pipe, which a test reads itself.
fn read(path: &Path) -> String {
    let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
    let bytes = is_file.then(|| std::fs::read(path).ok()).flatten();
    let bytes = bytes.unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

type SpawnRequest = (Command, mpsc::SyncSender<std::io::Result<Child>>);

// The kernel kills a child when the *thread* that started it exits. A test's thread exits with the test, but other tests
// may share the process, so one thread starts all processes and runs as long as the test binary.
static SPAWNER: LazyLock<mpsc::Sender<SpawnRequest>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::channel::<SpawnRequest>();
    std::thread::Builder::new()
        .name("spawner".to_owned())
        .spawn(move || {
            for (mut command, answer) in requests {
                // The requesting test may have ended.
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
