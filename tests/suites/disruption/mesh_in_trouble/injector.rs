//! The injector while it is down or flooded.

use std::{net::SocketAddr, thread::JoinHandle, time::Duration};

use futures_util::future::join_all;
use merlon_tests::{cluster::merlon, limit, pods, wait};
use serde_json::Value;
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::{Mutex, watch},
};

use super::{Mesh, OF_REPLICAS, REPLICAS, alone};

fn pod(name: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ app: late }} }}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{ name: late, image: 'localhost/programs:test', imagePullPolicy: Never, command: [sleep, infinity] }}]
"
    )
}

/// Stops the control plane. The API server then has no open connection to a webhook.
async fn stop_replicas(mesh: &Mesh) {
    let scale = ["scale", "-n", merlon::NAMESPACE, REPLICAS, "--replicas=0"];
    mesh.cluster.kubectl(&scale).await;
    let gone = [
        "--for=delete",
        "-n",
        merlon::NAMESPACE,
        "pod",
        "-l",
        OF_REPLICAS,
    ];
    mesh.cluster.wait_for(&gone).await;
}

async fn start_replicas(mesh: &Mesh) {
    let scale = ["scale", "-n", merlon::NAMESPACE, REPLICAS, "--replicas=2"];
    mesh.cluster.kubectl(&scale).await;
    mesh.cluster.rolled_out(merlon::NAMESPACE, REPLICAS).await;
}

/// Waits until a pod is admitted; it then has its sidecar and becomes ready. Until the node knows the Service's new
/// pods, and while the flood ends, the injector refuses it.
async fn until_injected(mesh: &Mesh, name: &str) {
    wait::until("the pod is admitted", async || {
        let answer = mesh.cluster.try_apply_in("shop", &pod(name)).await;
        let refused = answer.err.contains("inject.merlon.io");
        assert!(answer.code() == 0 || refused, "{answer:?}");
        !refused
    })
    .await;
    assert!(has_sidecar(mesh, name).await);
    let ready = "--for=condition=Ready";
    let pod = format!("pod/{name}");
    mesh.cluster.wait_for(&[ready, "-n", "shop", &pod]).await;
}

async fn has_sidecar(mesh: &Mesh, name: &str) -> bool {
    let pod = mesh.cluster.json(&["get", "pod", name, "-n", "shop"]).await;
    let all = pod["spec"]["initContainers"].as_array();
    let is_sidecar = |one: &Value| one["name"] == "merlon-proxy";
    all.is_some_and(|all| all.iter().any(is_sidecar))
}

/// Connections to servers that send nothing. Those that a server closes are opened again.
struct Flood {
    /// The threads run as long as this exists.
    stop: Option<watch::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    /// By each thread. A server does 64 handshakes at a time, each for at most 5 s, and its queue is shorter than this.
    const CONNECTIONS: usize = 200;
    /// For each server.
    const THREADS: usize = 2;
    /// After this time without a connection, the queue of a server is full.
    const PATIENCE: Duration = Duration::from_millis(200);

    /// Starts it in a network namespace, and returns when no server accepts a further connection at once.
    async fn start(network: String, servers: Vec<SocketAddr>) -> Self {
        let stop = watch::Sender::new(());
        let (mut threads, mut full) = (Vec::new(), Vec::new());
        for server in servers.iter().flat_map(|server| [*server; Self::THREADS]) {
            let (network, mut until) = (network.clone(), stop.subscribe());
            let (is_full, mut known) = watch::channel(false);
            full.push(async move { known.wait_for(|full| *full).await.is_ok() });
            threads.push(std::thread::spawn(move || {
                pods::within(&network, || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .expect("a runtime");
                    runtime.block_on(async {
                        tokio::select! {
                            () = Self::connect(server, &is_full) => {}
                            _ = until.changed() => {}
                        }
                    });
                });
            }));
        }
        let stop = Some(stop);
        let this = Self { stop, threads };
        let all = limit("every server is full", join_all(full)).await;
        assert!(all.into_iter().all(|full| full), "a thread has ended");
        this
    }

    /// Opens connections to a server, one after the other, and each again when the server has closed it.
    async fn connect(server: SocketAddr, is_full: &watch::Sender<bool>) {
        let turn = Mutex::new(());
        let connect = async || {
            let _turn = turn.lock().await;
            let stream = TcpStream::connect(server);
            let stream = tokio::time::timeout(Self::PATIENCE, stream).await;
            stream.ok()?.ok()
        };
        let connection = async || {
            loop {
                match connect().await {
                    // Nothing is sent, so this reads until the server closes the connection.
                    Some(mut stream) => drop(stream.read_to_end(&mut Vec::new()).await),
                    None => drop(is_full.send_replace(true)),
                }
            }
        };
        join_all((0..Self::CONNECTIONS).map(|_| connection())).await;
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            // A panic of the thread has failed the wait above.
            let _ = thread.join();
        }
    }
}

#[tokio::test]
async fn meshed_pods_are_refused_without_an_injector_and_all_others_start() {
    alone(async |mesh| {
        let cluster = &mesh.cluster;
        // Calls between pods that have called each other before continue.
        let load = mesh.load();
        load.continues(100).await;
        stop_replicas(mesh).await;
        let refused = cluster.try_apply_in("shop", &pod("late")).await;
        assert!(refused.err.contains("inject.merlon.io"), "{refused:?}");
        for namespace in ["kube-system", "default"] {
            cluster.apply_in(namespace, &pod("late")).await;
            cluster
                .wait_for(&["--for=condition=Ready", "-n", namespace, "pod/late"])
                .await;
        }
        load.continues(100).await;
        start_replicas(mesh).await;
        load.continues(100).await;
        load.assert_no_failures(mesh).await;
        until_injected(mesh, "late").await;
        cluster
            .kubectl(&["delete", "pods", "-n", "shop", "-l", "app=late"])
            .await;
    })
    .await;
}

#[tokio::test]
async fn a_flooded_injector_lets_no_pod_start_without_its_sidecar() {
    alone(async |mesh| {
        let cluster = &mesh.cluster;
        stop_replicas(mesh).await;
        start_replicas(mesh).await;
        let replicas = mesh.control_plane_addresses().await;
        let servers = replicas.into_iter().map(|ip| SocketAddr::from((ip, 7566)));
        let network = format!("/proc/{}/ns/net", cluster.init());
        let flood = Flood::start(network, servers.collect()).await;
        let mut number = 0;
        wait::until("the injector has no time for a pod", async || {
            number += 1;
            let name = format!("flooded-{number}");
            let answer = cluster.try_apply_in("shop", &pod(&name)).await;
            if answer.code() == 0 {
                assert!(has_sidecar(mesh, &name).await, "{name}");
                return false;
            }
            assert!(answer.err.contains("inject.merlon.io"), "{answer:?}");
            true
        })
        .await;
        drop(flood);
        until_injected(mesh, "late").await;
        // Also those that were admitted during the flood.
        cluster
            .kubectl(&["delete", "pods", "-n", "shop", "-l", "app=late"])
            .await;
    })
    .await;
}
