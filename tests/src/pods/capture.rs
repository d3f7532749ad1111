//! Packet capture.

use std::{
    io::Read as _,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use memchr::memmem;
use rustix::{fs::fstat, net::sockopt::set_socket_recv_buffer_size_force};
use socket2::{Domain, Protocol, Socket, Type};

use super::namespace;
use crate::wait;

/// `ETH_P_ALL`: frames of every protocol.
const EVERYTHING: u16 = 3;
/// Bytes of frames that may wait for the reader. On a busy machine the default of some 200 KiB overflows.
const BUFFER: usize = 64 << 20;

/// The frames on all interfaces of a network namespace since the start of the capture, except those on loopback, which
/// never leave the node. Only [`Capture::exposed`] shows that something did *not* cross the wire, because the
/// answer of an incomplete capture means nothing.
#[derive(Debug)]
pub struct Capture {
    namespace: String,
    inode: u64,
    seen: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts a capture in the network namespace of this file.
    pub(crate) fn start(namespace: &str) -> Self {
        let mut socket = namespace::within(namespace, || {
            let protocol = Protocol::from(i32::from(EVERYTHING.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol));
            let socket = socket.expect("a packet socket");
            set_socket_recv_buffer_size_force(&socket, BUFFER).expect("a socket option");
            socket
                .set_read_timeout(Some(Duration::from_millis(50)))
                .expect("a socket option");
            socket
        });
        let inode = fstat(&socket).expect("a socket").st_ino;
        let (seen, stop) = (
            Arc::new(Mutex::new(Vec::new())),
            Arc::new(AtomicBool::new(false)),
        );
        let (into, until) = (Arc::clone(&seen), Arc::clone(&stop));
        let reader = std::thread::spawn(move || {
            let mut frame = vec![0; 1 << 16];
            while !until.load(Ordering::Relaxed) {
                if let Ok(read) = socket.read(&mut frame) {
                    let frame = frame.get(..read).unwrap_or_default();
                    if is_loopback(frame) {
                        continue;
                    }
                    let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.extend_from_slice(frame);
                }
            }
        });
        Self {
            namespace: namespace.to_owned(),
            inode,
            seen,
            stop,
            reader: Some(reader),
        }
    }

    /// Asserts that [`Capture::exposed`] is none of `secrets`.
    ///
    /// # Panics
    /// If it is one, or if the capture is incomplete.
    pub async fn sealed(self, secrets: &[&str], in_plain: impl AsyncFnOnce(&str)) {
        if let Some(secret) = self.exposed(secrets, in_plain).await {
            panic!("`{secret}` crossed the wire in plain text");
        }
    }

    /// The first of `secrets` that a frame since the start of the capture contained. As the control, `in_plain` sends the
    /// text that it gets over the same network without encryption: the capture must contain that text, and must have lost
    /// no frame. So it is complete up to the control, and contains every secret that was readable.
    ///
    /// # Panics
    /// If frames were lost, or if the control does not appear within [`wait::TIMEOUT`].
    pub async fn exposed<'s>(
        self,
        secrets: &[&'s str],
        in_plain: impl AsyncFnOnce(&str),
    ) -> Option<&'s str> {
        static CONTROLS: AtomicU32 = AtomicU32::new(0);
        let number = CONTROLS.fetch_add(1, Ordering::Relaxed);
        let control = format!("control-{number}-of-the-capture-{}", self.inode);
        assert!(!self.has(&control), "the control was not sent yet");
        in_plain(&control).await;
        wait::until("the capture contains the control", async || {
            self.has(&control)
        })
        .await;
        assert_eq!(self.lost(), 0, "frames that the capture lost");
        secrets.iter().copied().find(|secret| self.has(secret))
    }

    /// Waits until a frame contained a text.
    ///
    /// # Panics
    /// If none does within [`wait::TIMEOUT`].
    pub async fn saw(self, text: &str) {
        wait::until(format!("the capture contains `{text}`"), async || {
            self.has(text)
        })
        .await;
    }

    /// Whether the captured frames contain a text.
    fn has(&self, text: &str) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        memmem::find(&seen, text.as_bytes()).is_some()
    }

    /// The number of frames that the kernel dropped because the buffer was full. `ss` reads the counter of
    /// `PACKET_STATISTICS`, which no safe call of this process can.
    fn lost(&self) -> u64 {
        let listed = Command::new("nsenter")
            .arg(format!("--net={}", self.namespace))
            .args([
                "--",
                "ss",
                "--packet",
                "--extended",
                "--memory",
                "--numeric",
            ])
            .output()
            .expect("`ss` of iproute2 runs");
        let listed = String::from_utf8_lossy(&listed.stdout);
        dropped_frames(&listed, self.inode)
            .unwrap_or_else(|| panic!("`ss` does not list the capture {}: {listed}", self.inode))
    }
}

/// The counter of drops of the socket with this inode, in the output of `ss`: `… ino:7 … skmem:(r0,…,d2)`.
fn dropped_frames(listed: &str, inode: u64) -> Option<u64> {
    let (_, own) = listed.split_once(&format!("ino:{inode} "))?;
    let (_, memory) = own.split_once("skmem:(")?;
    let (memory, _) = memory.split_once(')')?;
    let (_, dropped) = memory.rsplit_once(",d")?;
    dropped.parse().ok()
}

/// Whether a frame is from loopback: only there both MAC addresses are zero.
fn is_loopback(frame: &[u8]) -> bool {
    frame
        .get(..12)
        .is_some_and(|addresses| addresses.iter().all(|byte| *byte == 0))
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_of_lost_frames_is_that_of_the_captures_own_socket() {
        let listed = "p_raw 0 0 *:* * ino:12 sk:1\n\tver:0 skmem:(r0,rb4096,t0,d798)\n\
                      p_raw 0 0 *:* * ino:123 sk:2\n\tver:0 skmem:(r0,rb4096,t0,d7)\n";
        assert_eq!(dropped_frames(listed, 123), Some(7));
        assert_eq!(dropped_frames(listed, 12), Some(798));
        assert_eq!(dropped_frames(listed, 1), None);
    }
}
