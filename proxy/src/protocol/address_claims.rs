//! Each listening address belongs to one process and in it to one listener, which every worker opens once.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, OnceLock},
};

use super::sockets::{claim, join};

/// The addresses on which this process listens. Locked when a listener of the snapshot opens or closes, and when a
/// connection to a plain-text upstream is opened.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    of_snapshot: Arc<Mutex<HashMap<SocketAddr, ClaimedAddress>>>,
    of_process: Arc<OnceLock<Vec<SocketAddr>>>,
}

#[derive(Debug)]
struct ClaimedAddress {
    listener: String,
    workers: usize,
}

/// One worker's use of an address. Released on drop, which must come after the drop of the socket.
#[derive(Debug)]
pub(crate) struct AddressGuard {
    claims: Claims,
    address: SocketAddr,
}

impl Claims {
    /// Opens this worker's socket for `listener`. The first socket of the process requires that no other process
    /// listens.
    ///
    /// # Errors
    /// The address cannot be bound: another process, or another listener of this one, uses it.
    pub(crate) fn listen(
        &self,
        address: SocketAddr,
        listener: &str,
    ) -> io::Result<(std::net::TcpListener, AddressGuard)> {
        let mut all = self.lock();
        let socket = match all.get_mut(&address) {
            Some(known) if known.listener == listener => {
                let socket = join(address)?;
                known.workers += 1;
                socket
            }
            Some(known) => {
                let reason = format!("{} of this process uses it", known.listener);
                return Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
            }
            None => {
                let socket = claim(address)?;
                let listener = listener.to_owned();
                all.insert(
                    address,
                    ClaimedAddress {
                        listener,
                        workers: 1,
                    },
                );
                socket
            }
        };
        let claims = self.clone();
        Ok((socket, AddressGuard { claims, address }))
    }

    /// Sets the addresses that this process listens on from its start to its end.
    pub(crate) fn set_of_process(&self, addresses: Vec<SocketAddr>) {
        // A second call is a defect that changes nothing.
        let _ = self.of_process.set(addresses);
    }

    /// Whether a connection to `address` would be accepted by this process.
    pub(crate) fn is_own(&self, address: SocketAddr) -> bool {
        let (ip, port) = (reached(address.ip()), address.port());
        let is_own = |own: &SocketAddr| {
            own.port() == port
                && match own.ip() {
                    any if any.is_unspecified() => is_local(ip),
                    one => one == ip,
                }
        };
        let of_process = self.of_process.get();
        of_process.is_some_and(|all| all.iter().any(is_own)) || self.lock().keys().any(is_own)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, ClaimedAddress>> {
        // A panic cannot leave the counts inconsistent.
        self.of_snapshot
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The address that the kernel connects to: an IPv4-mapped address is the IPv4 address, and an unspecified one is loopback.
fn reached(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// Whether an address belongs to this host: only then a socket can be bound to it.
fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || UdpSocket::bind((address, 0)).is_ok()
}

impl Drop for AddressGuard {
    fn drop(&mut self) {
        let mut all = self.claims.lock();
        if let Some(known) = all.get_mut(&self.address) {
            known.workers = known.workers.saturating_sub(1);
            if known.workers == 0 {
                all.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_address_is_recognized_however_it_is_written() {
        let claims = Claims::default();
        claims.set_of_process(vec![
            "0.0.0.0:7561".parse().unwrap(),
            "127.0.0.1:7562".parse().unwrap(),
            "[::1]:7563".parse().unwrap(),
        ]);
        for own in [
            "127.0.0.1:7561",
            "127.9.9.9:7561",
            "0.0.0.0:7561",
            "[::ffff:127.0.0.1]:7561",
            "[::]:7561",
            "127.0.0.1:7562",
            "0.0.0.0:7562",
            "[::ffff:0.0.0.0]:7562",
            "[::]:7563",
        ] {
            assert!(claims.is_own(own.parse().unwrap()), "{own}");
        }
        // Documentation addresses (RFC 5737, RFC 3849), other ports, and addresses at which another process may listen.
        for other in [
            "192.0.2.1:7561",
            "[2001:db8::1]:7561",
            "127.0.0.1:7564",
            "127.0.0.2:7562",
            "127.0.0.1:7563",
        ] {
            assert!(!claims.is_own(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn the_address_of_a_listener_of_the_snapshot_is_own_while_it_is_open() {
        let claims = Claims::default();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let address = claim(any).unwrap().local_addr().unwrap();
        let socket = claims.listen(address, "a").unwrap();
        assert!(claims.is_own(address));
        drop(socket);
        assert!(!claims.is_own(address));
    }

    #[test]
    fn workers_share_an_address_that_no_other_process_or_listener_can_bind() {
        let (claims, others) = (Claims::default(), Claims::default());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let address = claim(any).unwrap().local_addr().unwrap();
        let sockets = [
            claims.listen(address, "a").unwrap(),
            claims.listen(address, "a").unwrap(),
        ];
        for error in [
            others.listen(address, "a").unwrap_err(),
            claims.listen(address, "b").unwrap_err(),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        }
        drop(sockets);
        assert!(others.listen(address, "b").is_ok());
    }
}
