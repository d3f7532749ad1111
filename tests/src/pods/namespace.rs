//! Network namespaces: a network of a test's own, which it needs root for.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{rights, tools};

/// A network namespace, gone when it is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one, with nothing but loopback.
    ///
    /// # Panics
    /// When it cannot be made.
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

    /// The file that names it to the kernel.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// `ip` in it.
    ///
    /// # Panics
    /// When it fails.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }

    /// Does something on a thread that is in it. Sockets stay in the namespace in which they were made.
    ///
    /// # Panics
    /// When it cannot be entered.
    pub fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        within(&self.path(), what)
    }

    /// Listens in it.
    ///
    /// # Panics
    /// When the address cannot be had.
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
    /// Nobody takes the connection within five seconds.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.within(|| {
            let patience = std::time::Duration::from_secs(5);
            let stream = TcpStream::connect_timeout(&address, patience)?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}

/// Does something on a thread that is in the network namespace that a file names to the kernel.
///
/// # Panics
/// When it cannot be entered.
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
        // What is in it goes with it.
        let _ = Command::new(tools::installed("ip"))
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// Removes namespaces of test processes that are gone.
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
            let maker = name
                .strip_prefix("merlon-test-")
                .and_then(|rest| rest.split('-').next());
            if maker.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
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
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "ip {}: {said}", arguments.join(" "));
}

/// Whether tests that need root can run. Where they cannot, it says so, loudly; in CI that is a failure.
///
/// # Panics
/// In CI without root.
pub fn are_possible() -> bool {
    rights::has_root("tests of interception", "network namespaces")
}
