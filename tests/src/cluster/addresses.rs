//! The addresses of a cluster.

use std::net::Ipv4Addr;

/// The addresses of a cluster inside its network namespace. Each index has different ones, so that a test can connect two
/// clusters.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    pub(super) index: u8,
}

impl Addresses {
    /// The address of the node.
    pub fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 77 + self.index, 1)
    }

    /// The address range of pods.
    pub fn pods(self) -> String {
        format!("10.{}.0.0/16", 200 + self.index)
    }

    /// The address range of services.
    pub fn services(self) -> String {
        format!("10.{}.0.0/16", 90 + self.index)
    }

    /// The address of the name server.
    pub fn dns(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 90 + self.index, 0, 10)
    }
}
