//! Addresses for processes that need one before they start, and addresses at which no process answers.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    ops::Range,
    sync::{Mutex, PoisonError},
};

use socket2::{Domain, Socket, Type};

static CLAIMED: Mutex<Vec<Block>> = Mutex::new(Vec::new());

// Below the range of Linux for outgoing connections (32768 and up), so that no outgoing connection takes a port between
// this module's check and the process's bind.
const FIRST: u16 = 20_000;
const BLOCKS: u16 = 120;
const PORTS: u16 = 100;

/// Ports that only this process uses. Test binaries run at the same time, and one must not get a port that another has
/// looked at and not bound yet. The claim is a UDP socket on the first port: TCP does not mind it, and the kernel removes
/// it with the process.
struct Block {
    _claim: UdpSocket,
    unused: Range<u16>,
}

impl Block {
    fn claim() -> Self {
        // Not from the first block each time: processes of the last test binary may be ending.
        let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap_or(0);
        (0..BLOCKS)
            .map(|step| FIRST + (start + step) % BLOCKS * PORTS)
            .find_map(|first| {
                let claim = UdpSocket::bind((Ipv4Addr::LOCALHOST, first)).ok()?;
                let unused = first..first + PORTS;
                Some(Self {
                    _claim: claim,
                    unused,
                })
            })
            .expect("a block of ports that no other process has claimed")
    }
}

/// A loopback address that nothing listens on. Never returns the same one twice within a test binary, nor in two test
/// binaries at the same time.
///
/// For addresses that must be known beforehand (a `Workload`'s mesh address, a control plane that restarts). Everything
/// else binds port 0.
pub fn free() -> SocketAddr {
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let next = claimed.last_mut().and_then(|block| block.unused.next());
        let Some(port) = next else {
            claimed.push(Block::claim());
            continue;
        };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
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
    fn no_other_process_claims_the_block_of_a_port() {
        let port = free().port();
        let first = FIRST + (port - FIRST) / PORTS * PORTS;
        let error = UdpSocket::bind((Ipv4Addr::LOCALHOST, first)).expect_err("claimed");
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!((first..first + PORTS).contains(&port));
    }

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
