//! Ports for processes that need a fixed port before they start.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

static NEXT: AtomicU16 = AtomicU16::new(0);

// Below the range of Linux for outgoing connections (32768 and up), so that no outgoing connection takes a port between
// this module's check and the process's bind.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// A loopback address that nothing listens on. Never returns the same one twice within a test binary.
///
/// For addresses that must be known beforehand (a `Workload`'s mesh address, a control plane that restarts). Everything
/// else binds port 0.
pub fn free() -> SocketAddr {
    // Test binaries of two checkouts may run at once: start at different offsets.
    let offset = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(COUNT)).unwrap_or(0);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (offset.wrapping_add(step)) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
