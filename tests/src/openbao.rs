//! OpenBao, the real server.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use http::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{
    ports,
    process::{Plan, Process},
    tools,
};

/// One OpenBao server, unsealed, with its data on disk: what is in it survives [`OpenBao::kill9`].
#[derive(Debug)]
pub struct OpenBao {
    process: Mutex<Option<Process>>,
    folder: TempDir,
    address: SocketAddr,
    root_token: String,
    unseal_key: String,
    http: reqwest::Client,
}

/// What OpenBao said.
#[derive(Debug, Clone)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The body; null when there was none.
    pub body: Value,
}

static SHARED: OnceCell<OpenBao> = OnceCell::const_new();

impl OpenBao {
    /// The server that the tests of this binary share. Each takes mounts of its own in it.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// A server of one's own, to seal and to kill.
    pub async fn start() -> Self {
        let folder = crate::folder::fresh();
        let address = ports::free();
        let mut this = Self {
            process: Mutex::new(None),
            folder,
            address,
            root_token: String::new(),
            unseal_key: String::new(),
            // It may outlive the test, and with it the runtime, that called it last.
            http: reqwest::Client::builder()
                .pool_max_idle_per_host(0)
                .build()
                .expect("a client"),
        };
        let data = this.folder.path().join("data");
        std::fs::create_dir(&data).expect("a folder");
        let cluster = ports::free();
        let config = format!(
            "storage \"raft\" {{\n  path = {data:?}\n  node_id = \"one\"\n}}\n\
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

    /// The token that may do everything: for setting up, never for Merlon.
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// Writes, and expects success. The result is `data` of the answer.
    pub async fn write(&self, path: &str, body: Value) -> Value {
        let said = self.call(Method::POST, path, body).await;
        assert!(
            said.status < 300,
            "write {path}: {} {}",
            said.status,
            said.body
        );
        said.body.get("data").cloned().unwrap_or_default()
    }

    /// Any call, with the root token.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> Response {
        let url = format!("{}/v1/{path}", self.address());
        let mut request = self
            .http
            .request(method, url)
            .header("x-vault-token", &self.root_token);
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = request.send().await.expect("OpenBao answers");
        let status = response.status().as_u16();
        Response {
            status,
            body: response.json().await.unwrap_or_default(),
        }
    }

    /// A token that carries one policy, `text` in HCL, and nothing else.
    pub async fn token_for(&self, name: &str, text: &str) -> String {
        self.write(
            &format!("sys/policies/acl/{name}"),
            json!({ "policy": text }),
        )
        .await;
        let said = self
            .call(
                Method::POST,
                "auth/token/create",
                json!({ "policies": [name], "no_default_policy": true, "no_parent": true }),
            )
            .await;
        said.body
            .pointer("/auth/client_token")
            .and_then(Value::as_str)
            .expect("a token")
            .to_owned()
    }

    /// Prepares it for Merlon under mounts of their own, as an administrator would: the file of the control plane's token,
    /// and what the `MeshConfig` says of it (its `spec`, indented by two).
    pub async fn prepare_for_merlon(&self, folder: &Path) -> (PathBuf, String) {
        static MOUNTS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("pki-{}", MOUNTS.fetch_add(1, Ordering::Relaxed));
        let prepared = merlon_issuer::vault_setup::prepare(
            &self.address().parse().expect("a URL"),
            &SecretString::from(self.root_token.clone()),
            &crate::mesh::TRUST_DOMAIN.parse().expect("a trust domain"),
            &prefix,
        )
        .await
        .expect("OpenBao takes every step");
        let file = folder.join("openbao-token");
        std::fs::write(&file, prepared.token.expose_secret()).expect("a file");
        let spec = format!(
            "  certificates:\n    lifetime: 1h\n    issuer:\n      vault:\n        address: {}\n        \
             tokenFile: {}\n        pkiMount: {}\n        rootMount: {}\n        role: {}\n",
            self.address(),
            file.display(),
            prepared.pki_mount,
            prepared.root_mount,
            prepared.role,
        );
        (file, spec)
    }

    /// Revokes a token.
    pub async fn revoke(&self, token: &str) {
        self.write("auth/token/revoke", json!({ "token": token }))
            .await;
    }

    /// Seals it: every call is answered with 503.
    pub async fn seal(&self) {
        self.write("sys/seal", Value::Null).await;
    }

    /// Unseals it, and waits until it serves.
    pub async fn unseal(&self) {
        self.write("sys/unseal", json!({ "key": self.unseal_key }))
            .await;
        crate::until("OpenBao is active", async || self.health().await == 200).await;
    }

    /// Ends it as a crash would.
    pub fn kill9(&self) {
        drop(self.process().take());
    }

    /// Starts it again where it was, unsealed.
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

    /// 200 active, 501 not initialised, 503 sealed, 0 not there.
    async fn health(&self) -> u16 {
        let url = format!("{}/v1/sys/health", self.address());
        let answer = self.http.get(url).send().await;
        answer.map_or(0, |answer| answer.status().as_u16())
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("openbao.hcl")
    }
}
