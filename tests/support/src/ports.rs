//! Addresses for processes that need one before they start, and addresses at which no process answers.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

use socket2::{Domain, Socket, Type};

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

/// A loopback address that refuses connections as long as this value exists: a socket holds the port and does not listen,
/// so no other test can get it.
#[derive(Debug)]
pub struct Refusing {
    address: SocketAddr,
    _socket: Socket,
}

/// A loopback address whose connections are established by the kernel and never accepted, as long as this value exists:
/// no process reads or answers.
#[derive(Debug)]
pub struct Silent {
    address: SocketAddr,
    _listener: TcpListener,
}

/// An address that refuses connections.
///
/// # Panics
/// If no port is free.
pub fn refusing() -> Refusing {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).expect("a port");
    let address = socket.local_addr().expect("an address");
    Refusing {
        address: address.as_socket().expect("an IP address"),
        _socket: socket,
    }
}

/// An address that accepts connections and is silent.
///
/// # Panics
/// If no port is free.
pub fn silent() -> Silent {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    Silent {
        address: listener.local_addr().expect("an address"),
        _listener: listener,
    }
}

impl Refusing {
    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Silent {
    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        net::TcpStream,
        time::Duration,
    };

    use super::*;

    #[test]
    fn a_refusing_address_refuses_connections_and_its_port_stays_taken() {
        let refusing = refusing();
        let error = TcpStream::connect(refusing.address()).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let error = TcpListener::bind(refusing.address()).expect_err("taken");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn a_silent_address_takes_connections_and_says_nothing() {
        let silent = silent();
        let mut stream = TcpStream::connect(silent.address()).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .expect("a socket option");
        let error = stream.read(&mut [0]).expect_err("nothing to read");
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}
