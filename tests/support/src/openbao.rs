//! The OpenBao server.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{
    folder, ports,
    process::{self, Plan, Process},
    tools, wait,
};

/// An unsealed OpenBao server. Its data is on disk and survives [`OpenBao::kill9`].
#[derive(Debug)]
pub struct OpenBao {
    process: Mutex<Option<Process>>,
    folder: TempDir,
    address: SocketAddr,
    root_token: String,
    unseal_key: String,
    http: reqwest::Client,
}

/// A response of OpenBao.
#[derive(Debug, Clone)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The body; null if there is none.
    pub body: Value,
}

static SHARED: OnceCell<OpenBao> = OnceCell::const_new();

impl OpenBao {
    /// The server that the tests of this binary share. Each test uses its own mounts.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a separate server, which a test can seal and kill.
    pub async fn start() -> Self {
        let folder = folder::fresh();
        let address = ports::free();
        let mut this = Self {
            process: Mutex::new(None),
            folder,
            address,
            root_token: String::new(),
            unseal_key: String::new(),
            // No idle connections: the server may outlive the test whose runtime drives them.
            http: reqwest::Client::builder()
                .pool_max_idle_per_host(0)
                .no_proxy()
                .tls_certs_only(Vec::new())
                .build()
                .expect("a client"),
        };
        let data = this.folder.path().join("data");
        std::fs::create_dir(&data).expect("a folder");
        let cluster = ports::free();
        // A server alone need not wait for votes: by default its election takes five times as long.
        let config = format!(
            "storage \"raft\" {{\n  path = {data:?}\n  node_id = \"one\"\n  performance_multiplier = 1\n}}\n\
             listener \"tcp\" {{\n  address = \"{address}\"\n  cluster_address = \"{cluster}\"\n  tls_disable = true\n}}\n\
             api_addr = \"http://{address}\"\ncluster_addr = \"http://{cluster}\"\n"
        );
        std::fs::write(this.config_file(), config).expect("a file");
        this.run().await;
        let keys = this
            .call(
                Method::PUT,
                "sys/init",
                json!({ "secret_shares": 1, "secret_threshold": 1 }),
            )
            .await
            .body;
        let text = |pointer: &str| {
            keys.pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        this.root_token = text("/root_token").expect("a root token");
        this.unseal_key = text("/keys/0").expect("an unseal key");
        this.unseal().await;
        this
    }

    /// Its address, as `http://127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The root token, for set-up only; never used by Merlon.
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// Writes to a path and asserts success. Returns `data` of the response.
    pub async fn write(&self, path: &str, body: Value) -> Value {
        let response = self.call(Method::POST, path, body).await;
        assert!(
            response.status < 300,
            "write {path}: {} {}",
            response.status,
            response.body
        );
        response.body.get("data").cloned().unwrap_or_default()
    }

    /// Any request, with the root token.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> Response {
        self.call_with(&self.root_token, method, path, body).await
    }

    /// Any request, with this token.
    ///
    /// # Panics
    /// If there is no answer within [`wait::TIMEOUT`].
    pub async fn call_with(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: Value,
    ) -> Response {
        let url = format!("{}/v1/{path}", self.address());
        let request = self
            .http
            .request(method, url)
            .timeout(wait::TIMEOUT)
            .header("x-vault-token", token);
        // A request without a body has no content type either.
        let request = match body {
            Value::Null => request,
            body => request
                .header("content-type", "application/json")
                .body(body.to_string()),
        };
        let response = request.send().await;
        let response = response.unwrap_or_else(|error| panic!("OpenBao, {path}: {error:?}"));
        let status = response.status().as_u16();
        let text = response.text().await.unwrap_or_default();
        Response {
            status,
            body: serde_json::from_str(&text).unwrap_or_default(),
        }
    }

    /// Revokes a token.
    pub async fn revoke(&self, token: &str) {
        self.write("auth/token/revoke", json!({ "token": token }))
            .await;
    }

    /// Seals it: every request gets 503.
    pub async fn seal(&self) {
        self.write("sys/seal", Value::Null).await;
    }

    /// Unseals it, and waits until it is active.
    pub async fn unseal(&self) {
        self.write("sys/unseal", json!({ "key": self.unseal_key }))
            .await;
        wait::until("OpenBao is active", async || self.health().await == 200).await;
    }

    /// Stops it with SIGSTOP: it accepts connections and does not answer.
    pub async fn freeze(&self) {
        self.signal(Signal::STOP);
        let pid = self.process().as_ref().map(Process::pid);
        process::stopped(pid.expect("it runs")).await;
    }

    /// Continues it after [`OpenBao::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it with SIGKILL.
    pub fn kill9(&self) {
        drop(self.process().take());
    }

    /// Starts it again at the same address, and unseals it.
    pub async fn restart(&self) {
        self.run().await;
        self.unseal().await;
    }

    async fn run(&self) {
        let process = Plan::new("openbao", tools::installed("bao"), self.folder.path())
            .arg("server")
            .arg(format!("-config={}", self.config_file().display()))
            .start();
        process
            .until("answers", async || self.health().await != 0)
            .await;
        *self.process() = Some(process);
    }

    /// 200: active; 501: not initialised; 503: sealed; 0: no response.
    async fn health(&self) -> u16 {
        let url = format!("{}/v1/sys/health", self.address());
        let response = self.http.get(url).send().await;
        response.map_or(0, |response| response.status().as_u16())
    }

    fn signal(&self, signal: Signal) {
        let process = self.process();
        process.as_ref().expect("it runs").signal(signal);
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("openbao.hcl")
    }
}
