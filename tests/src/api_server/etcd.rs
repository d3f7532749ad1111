//! The database of API servers.

use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::{net::TcpStream, sync::OnceCell};

use crate::{
    ports,
    process::{Plan, Process},
    tools,
};

/// The etcd of all API servers of this process.
pub(super) struct Etcd {
    pub(super) address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Etcd {
    pub(super) async fn shared() -> &'static Self {
        static SHARED: OnceCell<Etcd> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let folder = crate::folder::fresh();
        let (address, peers) = (ports::free(), ports::free());
        let url = |address: SocketAddr| format!("http://{address}");
        let process = Plan::new("etcd", tools::installed("etcd"), folder.path())
            .arg("--data-dir")
            .arg(folder.path().join("etcd"))
            .args(["--listen-client-urls", &url(address)])
            .args(["--advertise-client-urls", &url(address)])
            .args(["--listen-peer-urls", &url(peers)])
            .args(["--initial-advertise-peer-urls", &url(peers)])
            .args(["--initial-cluster", &format!("default={}", url(peers))])
            // Its data need not survive the test.
            .arg("--unsafe-no-fsync")
            .start();
        process
            .until("listens", async || {
                TcpStream::connect(address).await.is_ok()
            })
            .await;
        Self {
            address,
            _process: process,
            _folder: folder,
        }
    }
}
