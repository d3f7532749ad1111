//! Admission while replicas of the control plane are replaced, and while none is ready.

use merlon_tests::{cluster::merlon, wait};

use super::{LIMIT, Mesh, OF_REPLICAS, POD, REPLICAS, alone};

/// How often the control plane is restarted, if the environment does not say.
const RESTARTS: usize = 1;

/// A policy that only the webhook can reject.
const WRONG: &str = "
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: wrong, namespace: shop }
spec: { policies: 'permit (nothing);' }
";

async fn rollout(mesh: &Mesh, verb: &str) {
    let rollout = ["rollout", verb, "-n", merlon::NAMESPACE, REPLICAS];
    mesh.cluster.kubectl(&rollout).await;
}

#[tokio::test]
async fn no_pod_or_policy_is_refused_while_the_control_plane_restarts_or_a_new_version_has_no_image()
 {
    alone(async |mesh| {
        let restarts = std::env::var("MERLON_RESTARTS").ok();
        let restarts = restarts.map_or(RESTARTS, |text| text.parse().expect("a number"));
        let changes = mesh.changes();
        changes.continue_for(10).await;
        for _ in 0..restarts {
            rollout(mesh, "restart").await;
            mesh.cluster.rolled_out(merlon::NAMESPACE, REPLICAS).await;
        }
        // Its pod gets an address, and its container never starts.
        let image = "control-plane=localhost/merlon-control-plane:missing";
        let set = ["set", "image", "-n", merlon::NAMESPACE, REPLICAS, image];
        mesh.cluster.kubectl(&set).await;
        let waiting = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}";
        wait::until("a replica has no image", async || {
            let reason = mesh.of_replicas(waiting).await;
            reason.contains("ErrImageNeverPull")
        })
        .await;
        changes.continue_for(50).await;
        rollout(mesh, "undo").await;
        mesh.until_old_replicas_are_gone().await;
        changes.continue_for(10).await;
        changes.assert_none_was_refused(mesh).await;
    })
    .await;
}

/// The issuer may itself run in the mesh: its pod, and the policies that it needs, must not wait for it.
#[tokio::test]
async fn pods_and_policies_are_admitted_while_no_replica_has_a_certificate() {
    alone(async |mesh| {
        let cluster = &mesh.cluster;
        let missing = ["--set", "vault.address=https://missing.vault.svc:8200"];
        cluster.helm_merlon("upgrade", &mesh.values, &missing).await;
        let all = ["delete", "pods", "-n", merlon::NAMESPACE, "-l", OF_REPLICAS];
        cluster.kubectl(&all).await;
        for document in [LIMIT, POD] {
            // A replica that is not ready answers.
            let apply = async || cluster.try_apply_in("shop", document).await;
            cluster.until_admitted(apply).await;
        }
        // Kubernetes lists the replicas as not ready, and they still answer.
        let slices = "kubernetes.io/service-name=merlon-webhook";
        let slices = [
            "get",
            "endpointslices",
            "-n",
            merlon::NAMESPACE,
            "-l",
            slices,
        ];
        let listed = async || {
            let slices = cluster.json(&slices).await;
            let slices = slices["items"].as_array().cloned().unwrap_or_default();
            let mut listed = Vec::new();
            for slice in slices {
                for endpoint in slice["endpoints"].as_array().cloned().unwrap_or_default() {
                    let ready = endpoint["conditions"]["ready"] == true;
                    listed.push((slice["ports"][0]["port"].as_u64(), ready));
                }
            }
            listed.sort_unstable();
            listed
        };
        let each_twice = [(7566, false), (7566, false), (7568, true), (7568, true)];
        let each_twice = each_twice.map(|(port, ready)| (Some(port), ready));
        wait::until_value("both are listed", listed, |listed| *listed == each_twice).await;
        cluster.until_admission_answers().await;
        let ready = "jsonpath={.items[*].status.containerStatuses[0].ready}";
        let ready = mesh.of_replicas(ready).await;
        assert_eq!(ready, "false false");
        let refused = cluster.try_apply_in("shop", WRONG).await;
        let denied = "admission webhook \"policies.merlon.io\" denied the request";
        assert!(refused.err.contains(denied), "{refused:?}");

        cluster
            .helm_merlon("upgrade", &mesh.values, &["--wait"])
            .await;
        let own = "endpointslice.kubernetes.io/managed-by=merlon-control-plane";
        let own = ["get", "endpointslices", "-n", merlon::NAMESPACE, "-l", own];
        wait::until("the ready replicas are the only endpoints", async || {
            let slices = cluster.json(&own).await;
            slices["items"].as_array().is_some_and(Vec::is_empty)
        })
        .await;
        cluster.until_admission_answers().await;
        let created = ["delete", "-n", "shop", "ratelimit/many", "pod/changes"];
        cluster.kubectl(&created).await;
    })
    .await;
}
