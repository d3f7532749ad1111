//! A real Kubernetes cluster of one node, in namespaces of its own.

mod image;
pub mod merlon;
mod node;
pub mod openbao;
mod outside;
mod settings;
mod sweep;
mod workloads;

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::OnceCell;

pub use image::Image;
use node::Node;
pub use sweep::sweep;
pub use workloads::program;

use crate::{
    process::{Output, Plan},
    rights, tools, wait,
};

/// A cluster that this process holds: nothing of it outlives the value, and nothing but its folder and empty cgroups
/// outlives the process, however that ends. The next start removes those.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: the folder is in use until the node is gone.
    node: Node,
    addresses: Addresses,
    kubeconfig: PathBuf,
    folder: TempDir,
}

/// What a cluster of this number uses inside its network namespace. Clusters cannot meet unless a test joins them, and
/// then their addresses differ.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    index: u8,
}

impl Addresses {
    /// The node's own.
    pub fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 77 + self.index, 1)
    }

    /// The range of the pods.
    pub fn pods(self) -> String {
        format!("10.{}.0.0/16", 200 + self.index)
    }

    /// The range of the services.
    pub fn services(self) -> String {
        format!("10.{}.0.0/16", 90 + self.index)
    }

    /// The cluster's name server.
    pub fn dns(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 90 + self.index, 0, 10)
    }
}

/// How many clusters one process can have at once with different addresses.
const INDICES: u8 = 10;

/// The image of programs for tests, busybox, in every cluster.
pub const BUSYBOX: &str = "localhost/busybox:test";

static SHARED: OnceCell<Cluster> = OnceCell::const_new();

impl Cluster {
    /// The cluster that the tests of this binary share. Each takes a namespace of its own in it.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// Starts one and waits until its node is ready and its name server answers.
    ///
    /// # Panics
    /// Without root, or when a program of it ends, with what that wrote.
    pub async fn start() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        Self::numbered(NEXT.fetch_add(1, Ordering::Relaxed) % INDICES).await
    }

    async fn numbered(index: u8) -> Self {
        assert!(
            is_possible(),
            "a cluster needs root: it makes namespaces, mounts and cgroups; run the command as root"
        );
        sweep();
        let folder = crate::folder::fresh();
        let addresses = Addresses { index };
        settings::write(folder.path(), addresses);
        let kubeconfig = folder.path().join("kubeconfig");
        let node = Node::start(folder.path(), addresses).await;
        let this = Self {
            node,
            addresses,
            kubeconfig,
            folder,
        };
        this.bring_up().await;
        this
    }

    async fn bring_up(&self) {
        self.node.start_control_plane(self).await;
        let busybox = tools::installed("busybox");
        // What holds a pod's network while its containers come and go.
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
        self.node.start_workers(self).await;
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

    /// Where its things are.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its folder: logs, settings, `kubeconfig`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Credentials of an administrator; they are of use only inside the network namespace.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The process whose namespaces the cluster is in.
    pub fn init(&self) -> u32 {
        self.node.init()
    }

    /// `program`, to be run inside the node's namespaces with `KUBECONFIG` set.
    pub fn inside(&self, name: &str, program: &Path) -> Plan {
        self.node
            .inside(name, program)
            .env("KUBECONFIG", &self.kubeconfig)
    }

    /// Runs `kubectl`, whatever comes of it.
    pub async fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.inside("kubectl", &tools::installed("kubectl"))
            .args(arguments)
            .run()
            .await
    }

    /// Runs `kubectl` and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let ended = self.try_kubectl(arguments).await;
        assert_eq!(ended.code(), 0, "kubectl {arguments:?}: {}", ended.err);
        ended.out
    }

    /// The same as JSON: `get`, `create`.
    ///
    /// # Panics
    /// When it fails or prints something else.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let out = self.kubectl(&all).await;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("kubectl {all:?}: {error}\n{out}"))
    }

    /// Applies documents and gives what `kubectl` printed.
    ///
    /// # Panics
    /// When one is refused.
    pub async fn apply(&self, yaml: &str) -> String {
        let file = tempfile::NamedTempFile::new_in(self.folder()).expect("a file");
        std::fs::write(file.path(), yaml).expect("a file");
        self.kubectl(&["apply", "-f", &file.path().to_string_lossy()])
            .await
    }

    /// A namespace of its own for a test, its name beginning with `name`.
    pub async fn namespace(&self, name: &str) -> String {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let name = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&["create", "namespace", &name]).await;
        // A pod is refused before its service account exists.
        wait::until(format!("{name} has its service account"), async || {
            let account = ["get", "serviceaccount", "default", "-n", &name];
            self.try_kubectl(&account).await.code() == 0
        })
        .await;
        name
    }

    /// Puts an image where containers find it; no registry is asked for any.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn load(&self, image: &Image) {
        let archive = image.write(self.folder());
        self.load_archive(&archive).await;
    }

    /// The same of a `docker-archive` or an OCI archive, as `buildah push` writes.
    ///
    /// # Panics
    /// When it is refused.
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

    /// Waits as `kubectl wait` does: `&["--for=condition=Ready", "-n", "shop", "pod/web"]`.
    ///
    /// # Panics
    /// When that does not come true; with what the cluster says about its pods.
    pub async fn wait_for(&self, arguments: &[&str]) {
        let mut all = vec!["wait", "--timeout=60s"];
        all.extend(arguments);
        wait::until(format!("there is what {arguments:?} names"), async || {
            let ended = self.try_kubectl(&all).await;
            // What is not there yet cannot be waited for.
            let absent = ended.err.contains("NotFound") || ended.err.contains("no matching");
            if ended.code() != 0 && !absent {
                let pods = self.try_kubectl(&["describe", "pods", "-A"]).await.out;
                panic!("{arguments:?}: {}\n{pods}\n{:?}", ended.err, self.node);
            }
            !absent
        })
        .await;
    }

    /// Lets the API server answer nobody until [`Cluster::resume_api_server`].
    pub fn pause_api_server(&self) {
        self.node.pause_api_server();
    }

    /// Lets it go on, and waits until it answers.
    pub async fn resume_api_server(&self) {
        self.node.resume_api_server();
        wait::until("the API server answers again", async || {
            self.try_kubectl(&["get", "--raw", "/readyz"]).await.code() == 0
        })
        .await;
    }

    /// Runs a command in a pod and gives how it ended.
    pub async fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Output {
        let mut all = vec!["exec", "-n", namespace, pod, "--"];
        all.extend(command);
        self.try_kubectl(&all).await
    }
}

/// Whether tests in a cluster can run. Where they cannot, it says so, loudly; in CI that is a failure.
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
