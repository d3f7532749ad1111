//! The node: namespaces and the programs in them.
//!
//! All programs run in a PID namespace. The kernel kills its init process when the process that started the cluster exits,
//! and with init all processes of the namespace, including containers. Mounts and network are removed with the last process
//! that uses them, because nothing outside refers to them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{addresses::Addresses, sweep};
use crate::{
    process::{Output, Plan, Process},
    tools, wait,
};

/// The namespaces and the programs in them.
#[derive(Debug)]
pub(super) struct Node {
    programs: Mutex<Vec<Process>>,
    holder: Process,
    init: u32,
    folder: PathBuf,
    addresses: Addresses,
}

// The init process: creates the node's network and the file systems that keep writes off the machine's own, then reaps
// children. A bridge without ports has the node's address, because not every kernel has `dummy` links.
const INIT: &str = r#"
set -eu
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
ip link set lo up
ip link add node0 type bridge
ip address add "$NODE_ADDRESS/24" dev node0
ip link set node0 up
ip route add default dev node0
echo 1 > /proc/sys/net/ipv4/ip_forward
: > "$FOLDER/up"
while :; do sleep 3600 & wait $!; done
"#;

impl Node {
    pub(super) async fn start(folder: &Path, addresses: Addresses) -> Self {
        let holder = Plan::new("node", "unshare", folder)
            .args([
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--mount-proc",
            ])
            .args(["--", "bash", "-c", INIT])
            .current_dir(folder)
            .env("FOLDER", folder)
            .env("NODE_ADDRESS", addresses.node().to_string())
            .start();
        holder
            .until("has its network", async || folder.join("up").exists())
            .await;
        let children = format!("/proc/{0}/task/{0}/children", holder.pid());
        let init = fs::read_to_string(&children)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_else(|| panic!("{children} names no process"));
        sweep::make_cgroups(folder);
        Self {
            programs: Mutex::default(),
            holder,
            init,
            folder: folder.to_owned(),
            addresses,
        }
    }

    pub(super) fn init(&self) -> u32 {
        self.init
    }

    pub(super) fn containerd(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// A builder that runs a client of the API server in the namespaces.
    pub(super) fn client(&self, name: &str, program: &Path) -> Plan {
        self.inside(name, program)
            .env("KUBECONFIG", self.kubeconfig())
    }

    fn inside(&self, name: &str, program: &Path) -> Plan {
        Plan::new(name, "nsenter", &self.folder)
            .args([
                "--target",
                &self.init.to_string(),
                "--net",
                "--mount",
                "--pid",
                "--wd",
                "--",
            ])
            .arg(program)
    }

    pub(super) async fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.client("kubectl", &tools::installed("kubectl"))
            .args(arguments)
            // Longer than `KUBECTL_TIMEOUT`, because the message of `kubectl` says what was not ready.
            .run_within(2 * wait::TIMEOUT)
            .await
    }

    fn run(&self, plan: Plan) {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.push(plan.start());
    }

    fn program(&self, name: &str) -> Plan {
        self.inside(name, &tools::installed(name))
    }

    /// Starts containerd, etcd and the API server, and waits for them.
    pub(super) async fn start_control_plane(&self) {
        // containerd looks for its shim, and the shim for runc, beside other programs.
        let path = format!(
            "{}:{}",
            tools::folder()
                .join("bin")
                .canonicalize()
                .expect("the tools")
                .display(),
            std::env::var("PATH").unwrap_or_default()
        );
        self.run(
            self.program("containerd")
                .args(["-c", "containerd.toml"])
                .env("PATH", path),
        );
        // No fsync: the cluster's data need not survive a power failure.
        self.run(
            self.program("etcd")
                .args(["--data-dir", "etcd", "--unsafe-no-fsync"])
                .args([
                    "--listen-client-urls=http://127.0.0.1:2379",
                    "--advertise-client-urls=http://127.0.0.1:2379",
                ]),
        );
        let node = self.addresses.node();
        self.run(self.program("kube-apiserver").args([
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--cert-dir=pki".to_owned(),
            format!("--bind-address={node}"),
            format!("--advertise-address={node}"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-account-key-file=pki/accounts.pub".to_owned(),
            "--service-account-signing-key-file=pki/accounts.pem".to_owned(),
            format!("--service-cluster-ip-range={}", self.addresses.services()),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--token-auth-file=pki/tokens.csv".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ]));
        self.until("the API server is ready", async || {
            self.try_kubectl(&["get", "--raw", "/readyz"]).await.code() == 0
        })
        .await;
        self.until("containerd listens", async || self.containerd().exists())
            .await;
    }

    /// Starts the other programs.
    pub(super) async fn start_workers(&self) {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig().display());
        self.run(
            self.program("kube-controller-manager")
                .arg(&kubeconfig)
                .args(["--service-account-private-key-file=pki/accounts.pem"])
                .args([
                    "--root-ca-file=pki/apiserver.crt",
                    "--use-service-account-credentials",
                ])
                .args(["--leader-elect=false", "--bind-address=127.0.0.1"])
                // With the default, it marks the only node as lost and every pod as not ready, if the API server was
                // suspended for a minute and it runs before the node has renewed its lease.
                .arg("--node-monitor-grace-period=3m"),
        );
        self.run(
            self.program("kube-scheduler")
                .arg(&kubeconfig)
                .args(["--leader-elect=false", "--bind-address=127.0.0.1"]),
        );
        self.run(
            self.program("kubelet")
                .arg(&kubeconfig)
                .args(["--config=kubelet.json", "--hostname-override=node"])
                .arg(format!("--node-ip={}", self.addresses.node()))
                .arg(format!(
                    "--root-dir={}",
                    self.folder.join("kubelet").display()
                ))
                .arg(format!("--cert-dir={}", self.folder.join("pki").display())),
        );
        self.run(
            self.program("kube-proxy")
                .arg(&kubeconfig)
                .args(["--hostname-override=node", "--proxy-mode=nftables"])
                .arg(format!("--cluster-cidr={}", self.addresses.pods()))
                // The limit is global, and not every machine allows setting it.
                .arg("--conntrack-max-per-core=0"),
        );
        self.until("the node registers", async || {
            self.try_kubectl(&["get", "node", "node"]).await.code() == 0
        })
        .await;
    }

    /// Suspends the API server until [`Node::resume_api_server`]. It keeps its connections and data.
    pub(super) fn pause_api_server(&self) {
        if let Some((_, server)) = self.api_server() {
            kill_process(server, Signal::STOP).expect("a signal");
        }
    }

    /// Resumes the API server.
    pub(super) fn resume_api_server(&self) {
        if let Some((starter, server)) = self.api_server() {
            // `nsenter` stops with its child, and would not notice the child's exit.
            for process in [server, starter] {
                let _ = kill_process(process, Signal::CONT);
            }
        }
    }

    /// The process ids of `nsenter` and of its child, the API server.
    fn api_server(&self) -> Option<(Pid, Pid)> {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = programs.iter();
        let starter = all
            .find(|program| program.name() == "kube-apiserver")?
            .pid();
        let children = fs::read_to_string(format!("/proc/{starter}/task/{starter}/children"));
        let server = Pid::from_raw(children.ok()?.trim().parse().ok()?)?;
        Some((Pid::from_raw(starter.try_into().ok()?)?, server))
    }

    async fn until(&self, what: &str, mut ready: impl AsyncFnMut() -> bool) {
        wait::until(what, async || {
            assert!(self.all_alive(), "a program exited before {what}\n{self:?}");
            ready().await
        })
        .await;
    }

    fn all_alive(&self) -> bool {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.iter().all(Process::is_alive)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A test may have failed while the API server was suspended.
        self.resume_api_server();
        let init = i32::try_from(self.init).ok().and_then(Pid::from_raw);
        if self.holder.is_alive()
            && let Some(init) = init
        {
            // It may have exited just now.
            let _ = kill_process(init, Signal::KILL);
            // The kernel reports the exit of an init process when all others in the namespace have exited.
            self.holder.wait_blocking();
        }
        sweep::remove_cgroups(&sweep::cgroup(&self.folder));
    }
}
