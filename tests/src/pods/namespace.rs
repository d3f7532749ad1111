//! Network namespaces. Creating them needs root.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{rights, tools, wait::TIMEOUT};

/// A network namespace. Dropping it removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates one with only a loopback interface.
    ///
    /// # Panics
    /// If it cannot be created.
    pub fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("merlon-test-{}-{number}-{what}", std::process::id());
        sweep();
        ip(&["netns", "add", &name]);
        let this = Self { name };
        this.ip(&["link", "set", "lo", "up"]);
        this
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of its file.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `ip` in it.
    ///
    /// # Panics
    /// If it fails.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }

    /// Runs `ip` in it, and returns its output. It may fail.
    pub fn try_ip(&self, arguments: &[&str]) -> String {
        let ran = Command::new(tools::installed("ip"))
            .args(["-n", &self.name])
            .args(arguments)
            .output();
        let out = ran.map(|ran| ran.stdout).unwrap_or_default();
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Calls `what` on a thread inside it. A socket stays in the namespace in which it was created.
    ///
    /// # Panics
    /// If it cannot be entered.
    pub fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        within(&self.path(), what)
    }

    /// Listens in it.
    ///
    /// # Panics
    /// If the address is in use.
    pub fn listen(&self, address: SocketAddr) -> TcpListener {
        self.within(|| {
            let listener =
                TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
            listener.set_nonblocking(true).expect("a socket option");
            listener
        })
    }

    /// Connects from it.
    ///
    /// # Errors
    /// If the connection fails or is not established within [`TIMEOUT`].
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.within(|| {
            let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}

/// Calls `what` on a thread inside the network namespace of this file.
///
/// # Panics
/// If it cannot be entered.
pub fn within<T: Send>(path: &str, what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            let namespace =
                std::fs::File::open(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), network)
                .unwrap_or_else(|error| panic!("{path}: {error}"));
            what()
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The kernel removes its interfaces with it.
        let _ = Command::new(tools::installed("ip"))
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// Removes the namespaces of test processes that no longer exist.
fn sweep() {
    static SWEPT: std::sync::Once = std::sync::Once::new();
    SWEPT.call_once(|| {
        let entries = std::fs::read_dir("/run/netns")
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let owner = name
                .strip_prefix("merlon-test-")
                .and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
                let _ = Command::new(tools::installed("ip"))
                    .args(["netns", "del", &name])
                    .status();
            }
        }
    });
}

fn ip(arguments: &[&str]) {
    let ran = Command::new(tools::installed("ip"))
        .args(arguments)
        .output();
    let ran = ran.unwrap_or_else(|error| panic!("ip: {error}"));
    let error = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "ip {}: {error}", arguments.join(" "));
}

/// Whether tests that need root can run. Without root, prints that they did not run.
///
/// # Panics
/// In CI without root.
pub fn are_possible() -> bool {
    rights::has_root("tests of interception", "network namespaces")
}
