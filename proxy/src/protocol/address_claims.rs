//! Each listening address belongs to one process and in it to one listener, which every worker opens once.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use super::sockets::{claim, join};

/// The addresses that the snapshot's listeners use. Locked when a listener opens or closes, never by a request.
#[derive(Debug, Clone, Default)]
pub struct Claims(Arc<Mutex<HashMap<SocketAddr, ClaimedAddress>>>);

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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, ClaimedAddress>> {
        // A panic cannot leave the counts inconsistent.
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
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
    use std::net::Ipv4Addr;

    use super::*;

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
