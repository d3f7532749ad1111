//! Redis, the real server, and its client.

use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{
    ports,
    process::{Output, Plan, Process},
    tools,
};

/// A Redis server without persistence.
#[derive(Debug)]
pub struct Redis {
    _process: Process,
    address: SocketAddr,
    folder: TempDir,
}

impl Redis {
    /// Starts one.
    pub async fn start() -> Self {
        let folder = crate::folder::fresh();
        let address = ports::free();
        let process = Plan::new("redis", tools::installed("redis-server"), folder.path())
            .current_dir(folder.path())
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &address.port().to_string()])
            .start();
        process
            .until("listens", async || {
                TcpStream::connect(address).await.is_ok()
            })
            .await;
        Self {
            _process: process,
            address,
            folder,
        }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs `redis-cli` against `at`, which may be a proxy of this server.
    pub async fn cli(&self, at: SocketAddr, command: &[&str]) -> Output {
        Plan::new(
            "redis-cli",
            tools::installed("redis-cli"),
            self.folder.path(),
        )
        .args(["-h", "127.0.0.1", "-p", &at.port().to_string()])
        .args(command)
        .run()
        .await
    }
}
