//! The OpenBao server.

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
        let folder = crate::folder::fresh();
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

    /// Creates a token with only one policy: `text` in HCL.
    pub async fn token_for(&self, name: &str, text: &str) -> String {
        self.write(
            &format!("sys/policies/acl/{name}"),
            json!({ "policy": text }),
        )
        .await;
        let response = self
            .call(
                Method::POST,
                "auth/token/create",
                json!({ "policies": [name], "no_default_policy": true, "no_parent": true }),
            )
            .await;
        response
            .body
            .pointer("/auth/client_token")
            .and_then(Value::as_str)
            .expect("a token")
            .to_owned()
    }

    /// Sets it up for Merlon with new mounts, as an administrator would. Returns the file of the control plane's token and
    /// the lines of the `MeshConfig`'s `spec`, indented by two spaces.
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
        .expect("OpenBao is set up");
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

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config_file(&self) -> PathBuf {
        self.folder.path().join("openbao.hcl")
    }
}
