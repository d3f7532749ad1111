//! A real OpenBao server in development mode, in memory, and an administrator's calls to it.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use merlon_config::{name::TrustDomain, resource::VaultIssuer};
use merlon_issuer::{
    Vault, VaultTimes,
    vault_setup::{self, Prepared},
};
use merlon_test_support::{
    folder, ports,
    process::{Plan, Process},
    tools, until, until_some,
};
use reqwest::Method;
use rustix::process::Signal;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use url::Url;

const ROOT_TOKEN: &str = "administrator";

/// One server. It ends with this value, or with the test program.
pub(crate) struct Bao {
    pub(crate) address: Url,
    unseal_key: String,
    process: Process,
    http: reqwest::Client,
    _folder: TempDir,
}

/// A response of the server.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl Bao {
    /// The server that most tests share, each with its own mounts.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<Bao> = OnceCell::const_new();
        SHARED.get_or_init(Self::own).await
    }

    /// A separate server, to seal, stop or kill.
    pub(crate) async fn own() -> Self {
        let (folder, address) = (folder::fresh(), ports::free());
        let process = Plan::new("openbao", tools::installed("bao"), folder.path())
            .args(["server", "-dev", "-dev-no-store-token"])
            .arg(format!("-dev-root-token-id={ROOT_TOKEN}"))
            .arg(format!("-dev-listen-address={address}"))
            .start();
        let unseal_key = until_some("OpenBao prints its unseal key", async || {
            assert!(process.is_alive(), "OpenBao exited\n{process:?}");
            let out = process.out();
            // Only a whole line: the server may still be writing it.
            let (_, rest) = out.split_once("Unseal Key: ")?;
            rest.split_once('\n').map(|(key, _)| key.to_owned())
        })
        .await;
        let bao = Self {
            address: format!("http://{address}").parse().unwrap(),
            unseal_key,
            process,
            http: reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only(Vec::new())
                .build()
                .unwrap(),
            _folder: folder,
        };
        bao.until_active().await;
        bao
    }

    async fn until_active(&self) {
        until("OpenBao is active", async || {
            self.call("GET", "sys/health", Value::Null).await.status == 200
        })
        .await;
    }

    /// A call with the administrator's token.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Value) -> Response {
        self.call_with(ROOT_TOKEN, method, path, body).await
    }

    pub(crate) async fn call_with(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Value,
    ) -> Response {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self
            .http
            .request(method, self.address.join(&format!("v1/{path}")).unwrap())
            .header("X-Vault-Token", token)
            .timeout(Duration::from_secs(100));
        if !body.is_null() {
            request = request.json(&body);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                return Response {
                    status: 0,
                    body: error.to_string().into(),
                };
            }
        };
        let status = response.status().as_u16();
        let text = response.text().await.unwrap_or_default();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Response { status, body }
    }

    /// A call with the administrator's token that must succeed. Returns its `data`.
    pub(crate) async fn write(&self, path: &str, body: Value) -> Value {
        let response = self.call("POST", path, body).await;
        assert!(response.status < 300, "{path}: {response:?}");
        response.body.get("data").cloned().unwrap_or_default()
    }

    /// Mounts, role, policy and token of one test.
    pub(crate) async fn prepare(&self, trust_domain: &str) -> Mesh<'_> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("pki{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let trust_domain: TrustDomain = trust_domain.parse().unwrap();
        let administrator = SecretString::from(ROOT_TOKEN);
        let prepared = vault_setup::prepare(&self.address, &administrator, &trust_domain, &prefix)
            .await
            .unwrap();
        // Wait until the new token and role are visible.
        let token = prepared.token.expose_secret();
        let role = format!("{}/roles/{}", prepared.pki_mount, prepared.role);
        for path in ["auth/token/lookup-self", &role] {
            until(format!("{path} is visible"), async || {
                self.call_with(token, "GET", path, Value::Null).await.status == 200
            })
            .await;
        }
        let folder = folder::fresh();
        let token_file = folder.path().join("token");
        fs::write(&token_file, prepared.token.expose_secret()).unwrap();
        Mesh {
            bao: self,
            trust_domain,
            prepared,
            token_file,
            _folder: folder,
        }
    }

    pub(crate) async fn seal(&self) {
        self.call("PUT", "sys/seal", Value::Null).await;
    }

    pub(crate) async fn unseal(&self) {
        let response = self
            .call("PUT", "sys/unseal", json!({ "key": self.unseal_key }))
            .await;
        assert_eq!(response.status, 200, "{response:?}");
        self.until_active().await;
    }

    /// Stops the process with SIGSTOP.
    pub(crate) fn freeze(&self) {
        self.process.signal(Signal::STOP);
    }

    pub(crate) fn thaw(&self) {
        self.process.signal(Signal::CONT);
    }
}

/// One trust domain in the server.
pub(crate) struct Mesh<'a> {
    pub(crate) bao: &'a Bao,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) prepared: Prepared,
    pub(crate) token_file: PathBuf,
    _folder: TempDir,
}

impl Mesh<'_> {
    pub(crate) fn settings(&self) -> VaultIssuer {
        VaultIssuer {
            address: self.bao.address.clone(),
            ca_file: None,
            token_file: Some(self.token_file.clone()),
            kubernetes_auth: None,
            pki_mount: self.prepared.pki_mount.clone(),
            root_mount: self.prepared.root_mount.clone(),
            role: self.prepared.role.clone(),
            kv_mount: "secret".to_owned(),
            kv_prefix: "merlon".to_owned(),
        }
    }

    pub(crate) fn vault(&self) -> Vault {
        self.vault_with(VaultTimes::default())
    }

    pub(crate) fn vault_with(&self, times: VaultTimes) -> Vault {
        Vault::connect(&self.settings(), &self.trust_domain, times).unwrap()
    }

    pub(crate) fn token(&self) -> &str {
        self.prepared.token.expose_secret()
    }

    pub(crate) async fn remove(&self) {
        let administrator = SecretString::from(ROOT_TOKEN);
        vault_setup::remove(&self.bao.address, &administrator, &self.prepared)
            .await
            .unwrap();
    }

    /// Another token with only the same policy.
    pub(crate) async fn new_token(&self, period: &str) -> String {
        let policy = &self.prepared.policy;
        let wanted = json!({ "policies": [policy], "no_default_policy": true, "period": period });
        let response = self
            .bao
            .call("POST", "auth/token/create-orphan", wanted)
            .await;
        response.body["auth"]["client_token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }
}
