//! The injector while it is down.

use merlon_tests::{cluster::merlon, wait};
use serde_json::Value;

use super::{Mesh, alone};

const REPLICAS: &str = "deployment/merlon-control-plane";

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
    let label = "app.kubernetes.io/component=control-plane";
    let gone = ["--for=delete", "-n", merlon::NAMESPACE, "pod", "-l", label];
    mesh.cluster.wait_for(&gone).await;
}

async fn start_replicas(mesh: &Mesh) {
    let scale = ["scale", "-n", merlon::NAMESPACE, REPLICAS, "--replicas=2"];
    mesh.cluster.kubectl(&scale).await;
    mesh.cluster.rolled_out(merlon::NAMESPACE, REPLICAS).await;
}

/// Waits until a pod is admitted; it then has its sidecar and becomes ready. Until the node knows the Service's new
/// pods, it is refused.
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
