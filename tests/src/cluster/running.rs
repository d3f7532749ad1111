//! The running cluster.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{addresses::Addresses, image::Image, node::Node, settings, sweep::sweep};
use crate::{
    process::{Output, Plan},
    rights, tools, wait,
};

/// A running cluster. Dropping it removes everything. If the process exits in another way, only the cluster's folder and
/// empty cgroups remain, and the next start removes them.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order, because the node uses the folder.
    node: Node,
    addresses: Addresses,
    folder: TempDir,
    // The address of the server of `in_plain`.
    plain_server: OnceCell<String>,
}

/// The number of clusters with different addresses in one process.
const INDICES: u8 = 10;

/// The busybox image, which every cluster has.
pub const BUSYBOX: &str = "localhost/busybox:test";

/// The pods of [`Cluster::in_plain`].
const PLAIN: &str = "
apiVersion: v1
kind: Pod
metadata: { name: server, namespace: plain }
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: server
      image: 'localhost/busybox:test'
      imagePullPolicy: Never
      command: [sh, -c, 'echo plain > /tmp/index.html && exec httpd -f -p 8080 -h /tmp']
      readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
---
apiVersion: v1
kind: Pod
metadata: { name: client, namespace: plain }
spec:
  terminationGracePeriodSeconds: 0
  containers: [{ name: client, image: 'localhost/busybox:test', imagePullPolicy: Never, command: [sleep, '2147483647'] }]
";

static SHARED: OnceCell<Cluster> = OnceCell::const_new();

impl Cluster {
    /// The cluster that the tests of this binary share. Each test uses its own namespace.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// Starts one and waits until its node and its name server are ready.
    ///
    /// # Panics
    /// Without root, or if one of its programs exits; the message contains the program's output.
    pub async fn start() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        Self::numbered(NEXT.fetch_add(1, Ordering::Relaxed) % INDICES).await
    }

    async fn numbered(index: u8) -> Self {
        assert!(
            is_possible(),
            "a cluster needs root to create namespaces, mounts and cgroups; run the command as root"
        );
        sweep();
        let folder = crate::folder::fresh();
        let addresses = Addresses { index };
        settings::write(folder.path(), addresses);
        let node = Node::start(folder.path(), addresses).await;
        let this = Self {
            node,
            addresses,
            folder,
            plain_server: OnceCell::new(),
        };
        this.bring_up().await;
        this
    }

    async fn bring_up(&self) {
        self.node.start_control_plane().await;
        let busybox = tools::installed("busybox");
        // The pause image, which keeps a pod's network namespace while its containers restart.
        self.load(
            &Image::new("localhost/pause:test", &busybox, "/bin/busybox")
                .arguments(&["sleep", "2147483647"]),
        )
        .await;
        self.load(&Image::new(BUSYBOX, &busybox, "/bin/busybox").with_applets())
            .await;
        self.load(&Image::new(
            "localhost/coredns:test",
            &tools::installed("coredns"),
            "/coredns",
        ))
        .await;
        self.node.start_workers().await;
        self.apply(&settings::name_server(self.addresses)).await;
        self.wait_for(&["--for=condition=Ready", "node/node"]).await;
        self.wait_for(&[
            "--for=condition=Available",
            "-n",
            "kube-system",
            "deployment/coredns",
        ])
        .await;
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its folder: logs, settings, `kubeconfig`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The kubeconfig of an administrator. It works only inside the network namespace.
    pub fn kubeconfig(&self) -> PathBuf {
        self.node.kubeconfig()
    }

    /// The id of the process whose namespaces the cluster uses.
    pub fn init(&self) -> u32 {
        self.node.init()
    }

    /// A builder that runs `program` in the node's namespaces with `KUBECONFIG` set.
    pub fn inside(&self, name: &str, program: &Path) -> Plan {
        self.node.client(name, program)
    }

    /// Runs `kubectl`. It may fail.
    pub async fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.node.try_kubectl(arguments).await
    }

    /// Runs `kubectl` and returns its output.
    ///
    /// # Panics
    /// If it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let ended = self.try_kubectl(arguments).await;
        assert_eq!(ended.code(), 0, "kubectl {arguments:?}: {}", ended.err);
        ended.out
    }

    /// Runs `kubectl` with `-o json` and returns its output.
    ///
    /// # Panics
    /// If it fails or does not print JSON.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let out = self.kubectl(&all).await;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("kubectl {all:?}: {error}\n{out}"))
    }

    /// Applies documents and returns the output of `kubectl`.
    ///
    /// # Panics
    /// If one is rejected.
    pub async fn apply(&self, yaml: &str) -> String {
        let file = tempfile::NamedTempFile::new_in(self.folder()).expect("a file");
        std::fs::write(file.path(), yaml).expect("a file");
        let path = file.path().to_string_lossy();
        let ended = self
            .admitted(async || self.try_kubectl(&["apply", "-f", &path]).await)
            .await;
        assert_eq!(ended.code(), 0, "{}\n{yaml}", ended.err);
        ended.out
    }

    /// How often a change is tried. A try ends after the webhook's own limit of 6 s.
    const TRIES_OF_A_CHANGE: usize = 5;

    /// Repeats a change a few times while the control plane is too busy to check it, as its webhook's answer 503 asks for.
    pub(crate) async fn admitted(&self, change: impl AsyncFn() -> Output) -> Output {
        for _ in 1..Self::TRIES_OF_A_CHANGE {
            let ended = change().await;
            let busy = ended.err.contains("failed to call webhook")
                && ended.err.contains("currently unable to handle the request");
            if !busy {
                return ended;
            }
        }
        change().await
    }

    /// Creates a namespace whose name begins with `name`.
    pub async fn namespace(&self, name: &str) -> String {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let name = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&["create", "namespace", &name]).await;
        self.service_account(&name).await;
        name
    }

    /// Waits until a namespace has its service account, because pods are rejected until then.
    async fn service_account(&self, namespace: &str) {
        wait::until(format!("{namespace} has its service account"), async || {
            let account = ["get", "serviceaccount", "default", "-n", namespace];
            self.try_kubectl(&account).await.code() == 0
        })
        .await;
    }

    /// Imports an image into containerd. No registry is used.
    ///
    /// # Panics
    /// If containerd rejects it.
    pub async fn load(&self, image: &Image) {
        let archive = image.write(self.folder());
        self.load_archive(&archive).await;
    }

    /// Imports a `docker-archive` or an OCI archive, as `buildah push` writes them, into containerd.
    ///
    /// # Panics
    /// If containerd rejects it.
    pub async fn load_archive(&self, archive: &Path) {
        let ended = self
            .inside("ctr", &tools::installed("ctr"))
            .arg("--address")
            .arg(self.node.containerd())
            .args(["--namespace", "k8s.io", "image", "import"])
            .arg(archive)
            .run()
            .await;
        assert_eq!(ended.code(), 0, "{}: {}", archive.display(), ended.err);
    }

    /// Runs `kubectl wait`: `&["--for=condition=Ready", "-n", "shop", "pod/web"]`. Also waits for the object to exist.
    ///
    /// # Panics
    /// If it times out; the message contains the description of all pods.
    pub async fn wait_for(&self, arguments: &[&str]) {
        let mut all = vec!["wait", super::KUBECTL_TIMEOUT];
        all.extend(arguments);
        let what = format!("the objects of {arguments:?} exist");
        wait::until_some_within(2 * wait::TIMEOUT, what, async || {
            let ended = self.try_kubectl(&all).await;
            // `kubectl wait` fails for objects that do not exist yet.
            let absent = ended.err.contains("NotFound") || ended.err.contains("no matching");
            if ended.code() != 0 && !absent {
                let pods = self.try_kubectl(&["describe", "pods", "-A"]).await.out;
                panic!("{arguments:?}: {}\n{pods}\n{:?}", ended.err, self.node);
            }
            (!absent).then_some(())
        })
        .await;
    }

    /// Sends a text in a plain HTTP request from one pod outside the mesh to another: the control of a capture.
    ///
    /// # Panics
    /// If the request is not answered.
    pub async fn in_plain(&self, text: &str) {
        let namespace = "plain";
        let server = self.plain_server.get_or_init(async || {
            self.kubectl(&["create", "namespace", namespace]).await;
            self.service_account(namespace).await;
            self.apply(PLAIN).await;
            let ready = "--for=condition=Ready";
            self.wait_for(&[ready, "-n", namespace, "pod/client", "pod/server"])
                .await;
            let server = self.json(&["get", "pod", "server", "-n", namespace]).await;
            let address = server["status"]["podIP"].as_str();
            address.expect("an address").to_owned()
        });
        let server = server.await;
        let url = format!("http://{server}:8080/?{text}");
        let ended = self
            .exec(namespace, "client", &["wget", "-qO-", &url])
            .await;
        assert_eq!((ended.code(), &*ended.out), (0, "plain\n"), "{ended:?}");
    }

    /// Suspends the API server until [`Cluster::resume_api_server`].
    pub fn pause_api_server(&self) {
        self.node.pause_api_server();
    }

    /// Resumes the API server, and waits until it responds.
    pub async fn resume_api_server(&self) {
        self.node.resume_api_server();
        wait::until("the API server responds again", async || {
            self.try_kubectl(&["get", "--raw", "/readyz"]).await.code() == 0
        })
        .await;
    }

    /// Runs a command in a pod. It may fail.
    pub async fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Output {
        let mut all = vec!["exec", "-n", namespace, pod, "--"];
        all.extend(command);
        self.try_kubectl(&all).await
    }
}

/// Whether tests in a cluster can run. Without root, prints that they did not run.
///
/// # Panics
/// In CI without root.
pub fn are_possible() -> bool {
    rights::has_root("tests in a cluster", "namespaces, mounts and cgroups")
}

/// Whether this process may start a cluster: it needs root.
pub fn is_possible() -> bool {
    rustix::process::geteuid().is_root()
}
