//! PostgreSQL, the real server, and its client.

use std::{net::SocketAddr, os::unix::fs::PermissionsExt as _};

use tempfile::TempDir;

use crate::{
    ports,
    process::{Output, Plan, Process, UNPRIVILEGED},
    tools, wait,
};

/// A PostgreSQL server with the superuser `merlon`, without a password, and the database `postgres`.
#[derive(Debug)]
pub struct Postgres {
    _process: Process,
    address: SocketAddr,
    folder: TempDir,
}

impl Postgres {
    /// Starts one.
    pub async fn start() -> Self {
        let folder = crate::folder::fresh();
        if rustix::process::geteuid().is_root() {
            // PostgreSQL refuses to run as root and must own its data.
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))
                .expect("permissions");
            std::fs::create_dir(folder.path().join("data")).expect("a folder");
            std::os::unix::fs::chown(
                folder.path().join("data"),
                Some(UNPRIVILEGED),
                Some(UNPRIVILEGED),
            )
            .expect("an owner");
        }
        let data = folder.path().join("data");
        let made = Plan::unprivileged("initdb", tools::installed("initdb"), folder.path())
            .arg("--pgdata")
            .arg(&data)
            .args(["--auth=trust", "--username=merlon", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C"])
            .run()
            .await;
        assert!(made.status.success(), "{made:?}");

        let address = ports::free();
        let process = Plan::unprivileged("postgres", tools::installed("postgres"), folder.path())
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories="])
            .args(["-c", "fsync=off", "-c", "jit=off"])
            .args(["-p", &address.port().to_string()])
            .start();
        let this = Self {
            _process: process,
            address,
            folder,
        };
        wait::until("PostgreSQL answers", async || {
            this.psql(address, "select 1").await.status.success()
        })
        .await;
        this
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs `psql` against `at`, which may be a proxy of this server. The output contains only rows.
    pub async fn psql(&self, at: SocketAddr, statement: &str) -> Output {
        Plan::new("psql", tools::installed("psql"), self.folder.path())
            .env("PGCONNECT_TIMEOUT", "20")
            .args(["-h", "127.0.0.1", "-p", &at.port().to_string()])
            .args(["-U", "merlon", "-d", "postgres", "--no-psqlrc"])
            .args(["--tuples-only", "--no-align", "--command", statement])
            .run()
            .await
    }
}
