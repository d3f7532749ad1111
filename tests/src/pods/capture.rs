//! Packet capture.

use std::{
    io::Read as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::namespace;

/// `ETH_P_ALL`: frames of every protocol.
const EVERYTHING: u16 = 3;

/// The frames on all interfaces of a network namespace since the start of the capture, except those on loopback, which
/// never leave the node.
#[derive(Debug)]
pub struct Capture {
    seen: Arc<Mutex<Vec<u8>>>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts a capture in the network namespace of this file.
    pub fn start(namespace: &str) -> Self {
        let mut socket = namespace::within(namespace, || {
            let protocol = Protocol::from(i32::from(EVERYTHING.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol));
            let socket = socket.expect("a packet socket");
            socket
                .set_read_timeout(Some(Duration::from_millis(50)))
                .expect("a socket option");
            socket
        });
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
            seen,
            stop,
            reader: Some(reader),
        }
    }

    /// Whether the captured frames contain a text.
    pub fn has(&self, text: &str) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.windows(text.len())
            .any(|window| window == text.as_bytes())
    }

    /// The number of captured bytes.
    pub fn bytes(&self) -> usize {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
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
