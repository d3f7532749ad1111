//! A control plane that watches the API server, and proxies that use the files a pod mounts.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use http::Method;
use merlon_config::clock;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use super::server::{ApiServer, Pod};
use crate::{
    mesh::{Sidecar, admin},
    ports,
    process::{Plan, Process},
    tools, wait,
};

/// One replica of the control plane.
pub struct Replica {
    name: String,
    folder: PathBuf,
    kubeconfig: PathBuf,
    listen: SocketAddr,
    admin: SocketAddr,
    // The injector's configuration file.
    injection: Option<PathBuf>,
    // Test proxies do not connect from the addresses of their pods.
    pod_address_check: &'static str,
    // The file of `--test-limits`.
    limits: PathBuf,
    process: Mutex<Option<Process>>,
}

const INJECTION: &str = "
proxyImage: merlon-proxy
interceptImage: merlon-intercept
controlPlane: https://merlon-control-plane.merlon-system.svc:7564
";

impl ApiServer {
    /// Starts a replica without waiting.
    pub async fn launch_replica(&self, name: &str) -> Replica {
        let replica = self.prepare(name).await;
        replica.launch();
        replica
    }

    /// Starts a replica with other times and limits, as in the file of `--test-limits`, and waits until it is ready.
    pub async fn replica_with(&self, name: &str, limits: &Value) -> Replica {
        let replica = self.prepare(name).await;
        replica.start_with(limits).await
    }

    /// [`ApiServer::replica_with`], which accepts tokens only from the addresses of their pods.
    pub async fn replica_that_checks_addresses(&self, name: &str, limits: &Value) -> Replica {
        let mut replica = self.prepare(name).await;
        replica.pod_address_check = "enforce";
        replica.start_with(limits).await
    }

    /// Starts a replica that also serves the admission webhooks and Gateway API, with other times and limits, and waits
    /// until it is ready.
    pub async fn replica_with_webhooks(&self, name: &str, limits: &Value) -> Replica {
        let mut replica = self.prepare(name).await;
        let file = replica.folder.join(format!("{name}.injection.yaml"));
        fs::write(&file, INJECTION).expect("a file");
        replica.injection = Some(file);
        replica.start_with(limits).await
    }

    /// Creates a CA of the webhook certificate that is about to expire, for a replica to replace.
    pub async fn expiring_webhook_ca(&self) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = SystemTime::UNIX_EPOCH.into();
        params.not_after = (clock::system_time() + Duration::from_secs(86_400)).into();
        let root = params.self_signed(&key).expect("a certificate");
        let secret = json!({
            "metadata": { "name": "merlon-webhook" },
            "type": "merlon.io/webhook",
            "stringData": { "ca.key": key.serialize_pem(), "ca.pem": root.pem() },
        });
        let secrets = "/api/v1/namespaces/merlon-system/secrets";
        self.call(Method::POST, secrets, Some(&secret)).await;
    }

    async fn prepare(&self, name: &str) -> Replica {
        let account = ("merlon-system", "merlon-control-plane");
        let token = self.token(account, None, None).await;
        let folder = self.folder.path().to_owned();
        let kubeconfig = folder.join(format!("{name}.kubeconfig"));
        fs::write(&kubeconfig, self.kubeconfig(&token)).expect("a kubeconfig");
        let limits = folder.join(format!("{name}.limits.json"));
        fs::write(&limits, "{}").expect("a file");
        Replica {
            name: name.to_owned(),
            limits,
            folder,
            kubeconfig,
            listen: ports::free(),
            admin: ports::free(),
            injection: None,
            pod_address_check: "warn",
            process: Mutex::new(None),
        }
    }

    /// Starts a replica, and waits until it is ready.
    pub async fn replica(&self, name: &str) -> Replica {
        let replica = self.launch_replica(name).await;
        replica.until_ready().await;
        replica
    }

    /// Writes the trust bundle and the trust domain to files, as a pod mounts them. Returns their folder.
    pub async fn trust(&self, namespace: &str) -> PathBuf {
        let folder = self.folder.path().join(format!("trust-{namespace}"));
        fs::create_dir_all(&folder).expect("a folder");
        let path = format!("/api/v1/namespaces/{namespace}/configmaps/merlon-trust-bundle");
        let bundle = wait::until_some("the trust bundle is in the namespace", async || {
            self.try_get(&path).await
        })
        .await;
        for file in ["bundle.pem", "trust-domain"] {
            let text = bundle["data"][file].as_str().expect("an entry");
            fs::write(folder.join(file), text).expect("a file");
        }
        folder
    }

    /// The path of the token of a pod.
    pub fn token_file(&self, pod: &Pod) -> PathBuf {
        self.folder.path().join(format!("token-{}", pod.uid))
    }

    /// The proxy of a pod, which connects to `replica`. `inbound` is its address for other proxies. Does not start it.
    pub async fn sidecar(&self, pod: &Pod, replica: &Replica, inbound: SocketAddr) -> Sidecar {
        let bundle = self.trust(&pod.namespace).await.join("bundle.pem");
        let token = self.token_file(pod);
        fs::write(&token, self.token_of(pod).await).expect("a file");
        let identity = format!("{}/{}", pod.namespace, pod.account);
        let args = [
            "--identity",
            &identity,
            "--workload",
            &pod.name,
            "--control-plane",
            &replica.url(),
            "--token-file",
            &token.display().to_string(),
            "--trust-bundle",
            &bundle.display().to_string(),
        ];
        let args = args.into_iter().map(str::to_owned).collect();
        Sidecar::at(&pod.name, self.folder.path(), args, inbound)
    }
}

impl Replica {
    async fn start_with(self, limits: &Value) -> Self {
        fs::write(&self.limits, limits.to_string()).expect("a file");
        self.launch();
        self.until_ready().await;
        self
    }

    /// Starts it, or starts it again after its exit, without waiting.
    pub fn launch(&self) {
        let mut plan = Plan::new(
            &self.name,
            tools::binary("merlon-control-plane"),
            &self.folder,
        )
        .env("KUBECONFIG", &self.kubeconfig)
        .arg("--kubernetes")
        .args(["--replica", &self.name, "--namespace", "merlon-system"])
        .args(["--pod-address-check", self.pod_address_check])
        .arg("--test-limits")
        .arg(&self.limits)
        .arg("--state-dir")
        .arg(self.folder.join(format!("{}-state", self.name)))
        .arg("--admin-socket")
        .arg(self.socket())
        .args(["--listen", &self.listen.to_string()])
        .args(["--admin", &self.admin.to_string()]);
        if let Some(file) = &self.injection {
            plan = plan.arg("--injection").arg(file);
            plan = plan.args(["--webhook", &ports::free().to_string()]);
            plan = plan.args(["--webhook-fallback", &ports::free().to_string()]);
            plan = plan.arg("--gateway-api");
        }
        *self.process.lock().expect("no panic") = Some(plan.start());
    }

    /// Waits until `/ready` responds with 200.
    pub async fn until_ready(&self) {
        wait::until(
            format!("the replica `{}` is ready", self.name),
            async || {
                assert!(self.is_alive(), "it exited: {}", self.log());
                self.page("/ready").await.0 == 200
            },
        )
        .await;
    }

    fn is_alive(&self) -> bool {
        let process = self.process.lock().expect("no panic");
        process.as_ref().is_some_and(Process::is_alive)
    }

    /// The status and body of a page of its administration address; status 0 without a response.
    pub async fn page(&self, path: &str) -> (u16, String) {
        let reply = crate::client::Client::new(self.admin, "").get("localhost.", path);
        match reply.send().await {
            Ok(reply) => (reply.status.as_u16(), reply.text()),
            Err(error) => (0, error),
        }
    }

    /// `GET` on its administration socket.
    pub async fn get(&self, path: &str) -> Value {
        admin::json(&self.socket(), Method::GET, path, &Value::Null)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()))
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(format!("{}.sock", self.name))
    }

    /// Its address for proxies.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Its URL for proxies.
    pub fn url(&self) -> String {
        format!("https://{}", self.listen)
    }

    /// Kills it with SIGKILL.
    pub fn kill9(&self) {
        drop(self.process.lock().expect("no panic").take());
    }

    /// Sends SIGTERM, and waits until it has exited with 0.
    pub async fn stop(&self) {
        if let Some(process) = &*self.process.lock().expect("no panic") {
            process.terminate();
        }
        let code = wait::until_some("the replica exits", async || {
            let process = self.process.lock().expect("no panic");
            process.as_ref()?.exit_code()
        })
        .await;
        assert_eq!(code, 0, "{}", self.log());
    }

    /// Its process log.
    pub fn log(&self) -> String {
        let process = self.process.lock().expect("no panic");
        process.as_ref().map(Process::err).unwrap_or_default()
    }
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the replica {}\n{}", self.name, self.log())
    }
}
