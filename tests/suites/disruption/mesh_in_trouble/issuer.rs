//! The issuer while it is sealed or at another address.

use merlon_tests::{cluster::merlon, wait};

use super::{REPLICAS, alone};

#[tokio::test]
async fn a_wrong_vault_address_is_reported_and_interrupts_nothing() {
    alone(async |mesh| {
        let load = mesh.load();
        mesh.cluster
            .helm_merlon(
                "upgrade",
                &mesh.values,
                &["--set", "vault.address=https://missing.vault.svc:8200"],
            )
            .await;
        // A replica that starts now has no certificate and reports why.
        let restart = ["rollout", "restart", "-n", merlon::NAMESPACE, REPLICAS];
        mesh.cluster.kubectl(&restart).await;
        let condition = "--for=condition=CertificatesIssued=false";
        mesh.cluster
            .wait_for(&[condition, "-n", merlon::NAMESPACE, "meshconfig/mesh"])
            .await;
        let report = mesh.cluster.merlon(&["check"]).await;
        assert_eq!(report.code(), 1, "{report:?}");
        assert!(report.out.contains("missing.vault.svc"), "{report:?}");
        load.continues(200).await;
        load.assert_no_failures(mesh).await;
        mesh.cluster
            .helm_merlon("upgrade", &mesh.values, &["--wait"])
            .await;
        mesh.cluster.rolled_out(merlon::NAMESPACE, REPLICAS).await;
        let report = mesh.cluster.merlon(&["check"]).await;
        assert_eq!(report.code(), 0, "{report:?}");
    })
    .await;
}

#[tokio::test]
async fn certificates_come_from_openbao_and_sealing_it_interrupts_no_running_workload() {
    alone(async |mesh| {
        let cluster = &mesh.cluster;
        let bao = cluster.openbao_of(mesh.bao.clone());
        let bundle = cluster
            .json(&["get", "configmap", "merlon-trust-bundle", "-n", "shop"])
            .await;
        let root = bao
            .cli(&["read", "-field=certificate", "pki-root/cert/ca"])
            .await;
        let known = bundle["data"]["bundle.pem"].as_str().expect("roots");
        assert!(known.contains(root.trim()), "{known}\n{root}");

        let load = mesh.load();
        load.continues(100).await;
        bao.seal().await;
        load.continues(100).await;
        // A new pod waits for its certificate and is not ready without it.
        let orders = "deployment/orders";
        let scale = async |replicas: &str| {
            cluster
                .kubectl(&["scale", "-n", "shop", orders, replicas])
                .await;
        };
        scale("--replicas=3").await;
        let not_ready =
            "jsonpath={.items[?(@.status.containerStatuses[0].ready==false)].metadata.name}";
        let waiting = wait::until_some("the new pod asks for its certificate", async || {
            let pods = [
                "get",
                "pods",
                "-n",
                "shop",
                "-l",
                "app=orders",
                "-o",
                not_ready,
            ];
            let name = cluster.kubectl(&pods).await;
            let log = ["logs", "-n", "shop", &name, "-c", "merlon-proxy"];
            let log = cluster.try_kubectl(&log).await;
            log.out
                .contains("certificate.request_failed")
                .then_some(name)
        })
        .await;
        let pod = cluster.json(&["get", "pod", "-n", "shop", &waiting]).await;
        let conditions = pod["status"]["conditions"].as_array().expect("conditions");
        let ready = conditions.iter().find(|one| one["type"] == "Ready");
        assert_eq!(
            ready.expect("a condition")["status"],
            "False",
            "{conditions:?}"
        );
        load.continues(100).await;
        bao.unseal().await;
        let all = "--for=jsonpath={.status.readyReplicas}=3";
        cluster.wait_for(&[all, "-n", "shop", orders]).await;
        load.continues(100).await;
        load.assert_no_failures(mesh).await;
        scale("--replicas=2").await;
        let two = "--for=jsonpath={.status.replicas}=2";
        cluster.wait_for(&[two, "-n", "shop", orders]).await;
    })
    .await;
}
