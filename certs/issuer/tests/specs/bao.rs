//! A real OpenBao server in development mode, in memory, and an administrator's calls to it.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use merlon_config::{name::TrustDomain, resource::VaultIssuer};
use merlon_issuer::{
    Vault, VaultTimes,
    vault_setup::{self, Prepared},
};
use reqwest::Method;
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
    process: Child,
    http: reqwest::Client,
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
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        // The input of the shell ends with this process; the shell then kills the server.
        let script = r#""$0" server -dev -dev-no-store-token -dev-root-token-id="$1" -dev-listen-address="$2" <&- &
            server=$!; echo "pid $server"; cat >/dev/null; kill -9 $server"#;
        let mut process = Command::new("sh")
            .args(["-c", script])
            .arg(program())
            .args([ROOT_TOKEN, &format!("127.0.0.1:{port}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let unseal_key = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("Unseal Key: ").map(str::to_owned))
            .expect("OpenBao prints its unseal key when it is up");
        std::thread::spawn(move || lines.for_each(drop));
        let bao = Self {
            address: format!("http://127.0.0.1:{port}").parse().unwrap(),
            unseal_key,
            process,
            http: reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only(Vec::new())
                .build()
                .unwrap(),
        };
        while bao.call("GET", "sys/health", Value::Null).await.status != 200 {
            tokio::task::yield_now().await;
        }
        bao
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
            .timeout(Duration::from_secs(20));
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
            while self.call_with(token, "GET", path, Value::Null).await.status != 200 {
                tokio::task::yield_now().await;
            }
        }
        let folder = tempfile::tempdir().unwrap();
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
        while self.call("GET", "sys/health", Value::Null).await.status != 200 {
            tokio::task::yield_now().await;
        }
    }

    /// Stops the process with SIGSTOP.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, name: &str) {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let children = fs::read_to_string(children).unwrap();
        let names = |pid: &str| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "bao"
        };
        let server = children.split_whitespace().find(|pid| names(pid)).unwrap();
        let status = Command::new("kill").args([name, server]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
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
        Vault::connect(&self.settings(), &self.trust_domain, VaultTimes::default()).unwrap()
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

/// The program of the server: `MERLON_BAO`, the one that `make tools` installed, or the one in PATH.
fn program() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/bao");
    let in_path = env::var_os("PATH").into_iter().flat_map(|path| {
        env::split_paths(&path)
            .map(|folder| folder.join("bao"))
            .collect::<Vec<_>>()
    });
    env::var_os("MERLON_BAO")
        .map(PathBuf::from)
        .into_iter()
        .chain([installed])
        .chain(in_path)
        .find(|path| path.is_file())
        .expect("OpenBao (`bao`) is not installed; install it with: make tools")
}
