//! The API server and its objects.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use http::Method;
use reqwest::Certificate;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{audit, etcd::Etcd};
use crate::{
    ports,
    process::{Plan, Process},
    tools, wait,
};

/// An API server, with its own keys in the etcd that all share.
pub struct ApiServer {
    pub(super) folder: TempDir,
    address: SocketAddr,
    etcd: SocketAddr,
    prefix: String,
    server: Mutex<Option<Process>>,
    client: reqwest::Client,
}

/// The RBAC rules of the control plane, from the files of the chart.
fn rbac() -> String {
    let own = "merlon-system";
    let object = |kind: &str, namespace: &str, rest: &str| {
        format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\n\
             metadata: {{ name: merlon-control-plane, namespace: '{namespace}' }}\n{rest}\n---\n"
        )
    };
    let binding = |role: &str| {
        format!(
            "roleRef: {{ apiGroup: rbac.authorization.k8s.io, kind: {role}, name: merlon-control-plane }}\n\
             subjects: [{{ kind: ServiceAccount, name: merlon-control-plane, namespace: {own} }}]"
        )
    };
    let everywhere = [
        include_str!("../../../charts/merlon/rights/cluster.yaml"),
        include_str!("../../../charts/merlon/rights/gateway.yaml"),
    ];
    let here = [
        include_str!("../../../charts/merlon/rights/own.yaml"),
        include_str!("../../../charts/merlon/rights/gateway-own.yaml"),
    ];
    let (everywhere, here) = (everywhere.concat(), here.concat());
    [
        object("ClusterRole", "", &format!("rules:\n{everywhere}")),
        object("ClusterRoleBinding", "", &binding("ClusterRole")),
        object("Role", own, &format!("rules:\n{here}")),
        object("RoleBinding", own, &binding("Role")),
    ]
    .concat()
}

/// A pod object.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its service account.
    pub account: String,
}

/// The token of a cluster administrator.
const ADMINISTRATOR: &str = "administrators-token";

impl ApiServer {
    /// Starts one with Merlon's CRDs, the namespaces `merlon-system` and `shop`, and the RBAC rules of the control plane.
    pub async fn start() -> Self {
        let this = Self::without_crds().await;
        this.install_crds().await;
        this
    }

    /// Like [`ApiServer::start`], without Merlon's CRDs.
    pub async fn without_crds() -> Self {
        let etcd = Etcd::shared().await;
        static SERVERS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("/{}", SERVERS.fetch_add(1, Ordering::Relaxed));
        let (folder, address) = (crate::folder::fresh(), ports::free());
        write(folder.path());
        let this = Self {
            client: reqwest::Client::new(),
            folder,
            address,
            etcd: etcd.address,
            prefix,
            server: Mutex::new(None),
        };
        this.launch();
        // The server creates its certificate when it starts.
        let certificate = wait::until_some("the API server has a certificate", async || {
            let text = fs::read(this.certificate_file()).ok()?;
            Certificate::from_pem_bundle(&text)
                .ok()
                .filter(|all| !all.is_empty())
        })
        .await;
        let this = Self {
            client: reqwest::Client::builder()
                .tls_certs_only(certificate)
                .build()
                .expect("a client"),
            ..this
        };
        this.until_ready().await;
        for namespace in ["merlon-system", "shop"] {
            this.namespace(namespace).await;
        }
        this.account("merlon-system", "merlon-control-plane").await;
        this.apply(&rbac()).await;
        this
    }

    /// Applies the output of `merlon crds`.
    pub async fn install_crds(&self) {
        self.apply(&crds().await).await;
        wait::until("the CRDs are served", async || {
            let kinds = "/apis/merlon.io/v1alpha1/requestvalidations";
            self.try_get(kinds).await.is_some()
        })
        .await;
    }

    /// Applies the CRDs of Gateway API.
    pub async fn install_gateway_crds(&self) {
        let file = tools::root().join(".tools/gateway-api.yaml");
        let text = fs::read_to_string(&file);
        let hint = "run `tests/tools/install kubernetes-api`";
        let text = text.unwrap_or_else(|error| panic!("{}: {error}; {hint}", file.display()));
        self.apply(&text).await;
        for kind in [
            "v1/gatewayclasses",
            "v1/gateways",
            "v1/httproutes",
            "v1beta1/referencegrants",
        ] {
            let path = format!("/apis/gateway.networking.k8s.io/{kind}");
            wait::until(format!("{kind} are served"), async || {
                self.try_get(&path).await.is_some()
            })
            .await;
        }
        // The API server lists them a moment later, and kubectl finds only what is listed.
        wait::until("kubectl knows them", async || {
            let group = ["--api-group=gateway.networking.k8s.io", "--cached=false"];
            let listed = self.kubectl(&["api-resources", "-o", "name"]).args(group);
            let listed = listed.run().await.out;
            [
                "gatewayclasses.",
                "gateways.",
                "httproutes.",
                "referencegrants.",
            ]
            .iter()
            .all(|kind| listed.lines().any(|line| line.starts_with(kind)))
        })
        .await;
    }

    fn launch(&self) {
        let folder = self.folder.path();
        let keys = folder.join("accounts.key");
        let process = Plan::new("kube-apiserver", tools::installed("kube-apiserver"), folder)
            .args(["--etcd-servers", &format!("http://{}", self.etcd)])
            .args(["--etcd-prefix", &self.prefix])
            .args(["--bind-address", "127.0.0.1"])
            .args(["--secure-port", &self.address.port().to_string()])
            .arg("--cert-dir")
            .arg(folder.join("certificates"))
            .args(["--service-account-issuer", "https://cluster.merlon.test"])
            .arg("--service-account-signing-key-file")
            .arg(&keys)
            .arg("--service-account-key-file")
            .arg(folder.join("accounts.pub"))
            .arg("--token-auth-file")
            .arg(folder.join("tokens.csv"))
            .args(["--authorization-mode", "RBAC"])
            .args(["--service-cluster-ip-range", "10.90.0.0/16"])
            .arg("--audit-policy-file")
            .arg(folder.join("audit.yaml"))
            .arg("--audit-log-path")
            .arg(self.audit_log())
            .start();
        *self.server.lock().expect("no panic") = Some(process);
    }

    async fn until_ready(&self) {
        wait::until("the API server is ready", async || {
            let ended = {
                let server = self.server.lock().expect("no panic");
                server.as_ref().is_none_or(|process| !process.is_alive())
            };
            assert!(!ended, "the API server exited: {self:?}");
            let reply = self.send(Method::GET, "/readyz", None).await;
            reply.is_ok_and(|(status, _)| status == 200)
        })
        .await;
    }

    /// Kills it with SIGKILL. Its data is in etcd.
    pub fn kill9(&self) {
        drop(self.server.lock().expect("no panic").take());
    }

    /// Starts it again at the same address, and waits until it is ready.
    pub async fn restart(&self) {
        self.launch();
        self.until_ready().await;
    }

    fn certificate_file(&self) -> std::path::PathBuf {
        self.folder.path().join("certificates/apiserver.crt")
    }

    fn audit_log(&self) -> std::path::PathBuf {
        self.folder.path().join("audit.log")
    }

    /// The calls in the audit log so far.
    pub fn calls(&self) -> Vec<audit::Call> {
        audit::calls(&fs::read_to_string(self.audit_log()).unwrap_or_default())
    }

    /// A kubeconfig with this token.
    pub(super) fn kubeconfig(&self, token: &str) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority": self.certificate_file(),
            } }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        })
        .to_string()
    }

    /// Applies documents with `kubectl apply --server-side`.
    ///
    /// # Errors
    /// The error output of kubectl.
    pub async fn try_apply(&self, text: &str) -> Result<(), String> {
        self.try_apply_with(text, &[]).await
    }

    /// Server-side dry run of documents, including admission. A warning is an error.
    ///
    /// # Errors
    /// The error output of kubectl.
    pub async fn dry_run(&self, text: &str) -> Result<(), String> {
        self.try_apply_with(text, &["--dry-run=server", "--warnings-as-errors"])
            .await
    }

    fn kubectl(&self, arguments: &[&str]) -> Plan {
        let config = self.folder.path().join("administrator.kubeconfig");
        fs::write(&config, self.kubeconfig(ADMINISTRATOR)).expect("a kubeconfig");
        Plan::new("kubectl", tools::installed("kubectl"), self.folder.path())
            .env("KUBECONFIG", &config)
            .env("HOME", self.folder.path())
            .args(arguments)
    }

    async fn try_apply_with(&self, text: &str, options: &[&str]) -> Result<(), String> {
        static FILES: AtomicU32 = AtomicU32::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let file = self.folder.path().join(format!("applied-{number}.yaml"));
        fs::write(&file, text).expect("a file");
        let ended = self
            .kubectl(&["apply", "--server-side", "--force-conflicts", "-f"])
            .arg(&file)
            .args(options)
            .run()
            .await;
        if ended.code() == 0 {
            Ok(())
        } else {
            Err(ended.err)
        }
    }

    /// Applies documents with `kubectl apply --server-side`.
    ///
    /// # Panics
    /// If kubectl fails.
    pub async fn apply(&self, text: &str) {
        let applied = self.try_apply(text).await;
        applied.unwrap_or_else(|error| panic!("{error}\n{text}"));
    }

    /// Any request as the administrator.
    ///
    /// # Panics
    /// If the status is not 2xx.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let answer = self.send(method, path, body).await;
        let (status, answer) = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    /// An existing object.
    pub async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await
    }

    /// An object, if it exists.
    pub async fn try_get(&self, path: &str) -> Option<Value> {
        let (status, answer) = self.send(Method::GET, path, None).await.ok()?;
        (status == 200).then_some(answer)
    }

    /// Deletes an object without a grace period.
    pub async fn delete(&self, path: &str) {
        let options = json!({ "gracePeriodSeconds": 0 });
        self.call(Method::DELETE, path, Some(&options)).await;
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        let url = format!("https://{}{path}", self.address);
        let kind = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let mut request = self.client.request(method, url).bearer_auth(ADMINISTRATOR);
        if let Some(body) = body {
            request = request.header("content-type", kind).body(body.to_string());
        }
        let reply = request.send().await.map_err(|error| format!("{error:?}"))?;
        let status = reply.status().as_u16();
        let text = reply.text().await.map_err(|error| error.to_string())?;
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((status, value))
    }

    /// Creates a namespace.
    pub async fn namespace(&self, name: &str) {
        let namespace = json!({ "metadata": { "name": name } });
        self.call(Method::POST, "/api/v1/namespaces", Some(&namespace))
            .await;
    }

    /// Creates a service account.
    pub async fn account(&self, namespace: &str, name: &str) {
        let account = json!({ "metadata": { "name": name } });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        self.call(Method::POST, &path, Some(&account)).await;
    }

    /// Creates a pod with a proxy, with this address and a service account of the same name.
    pub async fn pod(&self, namespace: &str, name: &str, address: &str) -> Pod {
        self.pod_of((namespace, name), name, address).await
    }

    /// Creates a pod with a proxy, with this address and `account` as its service account.
    pub async fn pod_of(
        &self,
        (namespace, account): (&str, &str),
        name: &str,
        address: &str,
    ) -> Pod {
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}");
        if self.try_get(&accounts).await.is_none() {
            self.account(namespace, account).await;
        }
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        let pod = json!({
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "serviceAccountName": account,
                "automountServiceAccountToken": false,
                "containers": [{ "name": "program", "image": "program" }],
                "initContainers": [{
                    "name": "merlon-proxy", "image": "merlon-proxy", "restartPolicy": "Always",
                }],
            },
        });
        let created = self.call(Method::POST, &pods, Some(&pod)).await;
        let status = json!({ "status": {
            "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
        } });
        let path = format!("{pods}/{name}/status");
        self.call(Method::PATCH, &path, Some(&status)).await;
        Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: created["metadata"]["uid"]
                .as_str()
                .expect("a uid")
                .to_owned(),
            account: account.to_owned(),
        }
    }

    /// Creates a token of a service account for an audience, bound to `pod` if given.
    pub async fn token(
        &self,
        (namespace, account): (&str, &str),
        audience: Option<&str>,
        pod: Option<&Pod>,
    ) -> String {
        let bound = pod.map(
            |pod| json!({ "apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid }),
        );
        let request = json!({ "spec": {
            "audiences": audience.into_iter().collect::<Vec<_>>(),
            "expirationSeconds": 3_600,
            "boundObjectRef": bound,
        } });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let created = self.call(Method::POST, &path, Some(&request)).await;
        created["status"]["token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }

    /// The token that a pod mounts for Merlon.
    pub async fn token_of(&self, pod: &Pod) -> String {
        let account = (&pod.namespace[..], &pod.account[..]);
        self.token(account, Some("merlon"), Some(pod)).await
    }

    /// Waits until a condition of a resource has this status for the current generation. Returns its reason and message.
    pub async fn until_condition(&self, path: &str, kind: &str, status: &str) -> (String, String) {
        let what = format!("{path} is {kind}={status}");
        let seen = Mutex::new(Value::Null);
        let waited = wait::until_some(what, async || {
            let object = self.try_get(path).await?;
            *seen.lock().expect("no panic") = object["status"].clone();
            let conditions = object["status"]["conditions"].as_array()?.clone();
            let found = conditions.iter().find(|one| one["type"] == kind)?;
            let current = found["observedGeneration"] == object["metadata"]["generation"];
            let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
            (current && found["status"] == status).then(|| (text("reason"), text("message")))
        });
        waited.await
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.server.lock().expect("no panic");
        let log = server.as_ref().map(Process::err).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(20).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        write!(f, "the API server at {}\n{}", self.address, last.join("\n"))
    }
}

/// The output of `merlon crds`.
async fn crds() -> String {
    let folder = crate::folder::fresh();
    let ended = Plan::new("merlon-crds", tools::binary("merlon"), folder.path())
        .arg("crds")
        .run()
        .await;
    assert_eq!(ended.code(), 0, "{}", ended.err);
    ended.out
}

fn write(folder: &Path) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let files = [
        ("accounts.key", key.serialize_pem()),
        ("accounts.pub", key.public_key_pem()),
        (
            "tokens.csv",
            format!("{ADMINISTRATOR},administrator,administrator,\"system:masters\"\n"),
        ),
        (
            "audit.yaml",
            json!({
                "apiVersion": "audit.k8s.io/v1",
                "kind": "Policy",
                "rules": [{ "level": "Metadata" }],
            })
            .to_string(),
        ),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("a file");
    }
}
