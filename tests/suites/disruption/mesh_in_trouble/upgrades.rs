//! Upgrades and rollbacks under load, while users change policies.

use merlon_tests::{cluster::merlon, wait};

use super::{LIMIT, OF_REPLICAS, REPLICAS, alone};

#[tokio::test]
async fn an_upgrade_and_its_rollback_lose_no_call() {
    alone(async |mesh| {
        let (load, changes) = (mesh.load(), mesh.changes());
        load.continues(100).await;
        let changed = "controlPlane.logFilter=debug";
        mesh.cluster
            .helm_merlon(
                "upgrade",
                &mesh.values,
                &[
                    "--wait",
                    "--set",
                    changed,
                    "--set",
                    "injection.proxy.accessLog=refusals",
                ],
            )
            .await;
        // New pods have the new settings; `check` names the pods that do not.
        let report = mesh.cluster.merlon(&["check"]).await;
        assert_eq!(report.code(), 0, "{report:?}");
        assert!(
            report
                .out
                .contains("not injected with the current settings"),
            "{report:?}"
        );
        mesh.restart_orders().await;
        let back = ["rollback", "merlon", "-n", merlon::NAMESPACE, "--wait"];
        mesh.cluster.helm(&back).await;
        mesh.until_old_replicas_are_gone().await;
        load.continues(200).await;
        changes.assert_none_was_refused(mesh).await;
        load.assert_no_failures(mesh).await;
    })
    .await;
}

/// The newer version adds a field to the state that every proxy receives, and one to the definition of RateLimit.
#[tokio::test]
async fn a_newer_version_and_its_rollback_lose_no_call() {
    alone(async |mesh| {
        let cluster = &mesh.cluster;
        let newer = merlon::Images::newer().await;
        cluster.load_images(&newer).await;
        let newer_field = LIMIT.replace("per: 1s }", "per: 1s }, newer: 7");
        assert_ne!(newer_field, LIMIT);
        let (load, changes) = (mesh.load(), mesh.changes());
        load.continues(100).await;

        // Definitions first, as the guide requires.
        let definitions = newer.chart("merlon-crds");
        cluster
            .helm(&["upgrade", "merlon-crds", &definitions])
            .await;
        cluster
            .helm_merlon_of(&newer, "upgrade", &mesh.values, &["--wait"])
            .await;
        // Sidecars of the previous version receive a field that they do not know, and accept it.
        mesh.apply(LIMIT).await;
        cluster.programmed("shop", "ratelimit/many").await;
        load.continues(100).await;

        // An older replica rejects the new field at admission, until it has ended.
        mesh.until_old_replicas_are_gone().await;
        // Older sidecars reject what they cannot enforce and keep their state; sidecars of the new version enforce it.
        mesh.apply(&newer_field).await;
        let refused = wait::until_some("the older sidecars reject it", async || {
            let limit = cluster
                .json(&["get", "ratelimit", "many", "-n", "shop"])
                .await;
            let conditions = limit["status"]["conditions"].as_array()?.clone();
            let mut all = conditions.iter();
            let found =
                all.find(|one| one["type"] == "Programmed" && one["reason"] == "Refused")?;
            Some(found["message"].to_string())
        })
        .await;
        assert!(refused.contains("unknown field `newer`"), "{refused}");
        load.continues(100).await;
        mesh.restart_orders().await;
        cluster.programmed("shop", "ratelimit/many").await;
        load.continues(100).await;

        // The rollback, while sidecars are of the newer version. The older version cannot enforce the limit, so it does not take
        // over while the newer one can.
        cluster
            .helm(&["rollback", "merlon", "-n", merlon::NAMESPACE])
            .await;
        let logs = [
            "logs",
            "-n",
            merlon::NAMESPACE,
            "-l",
            OF_REPLICAS,
            "--tail=-1",
        ];
        wait::until("the older replica names the resource", async || {
            let log = cluster.try_kubectl(&logs).await.out;
            let mut waits = log
                .lines()
                .filter(|line| line.contains("config.not_taken_over"));
            waits.any(|line| line.contains("`RateLimit/shop/many` was in force and cannot be"))
        })
        .await;
        load.continues(100).await;
        mesh.apply(LIMIT).await;
        cluster.rolled_out(merlon::NAMESPACE, REPLICAS).await;
        cluster.helm(&["rollback", "merlon-crds", "--wait"]).await;
        load.continues(100).await;
        cluster.programmed("shop", "ratelimit/many").await;
        mesh.restart_orders().await;
        load.continues(100).await;
        mesh.until_old_replicas_are_gone().await;
        changes.assert_none_was_refused(mesh).await;
        load.assert_no_failures(mesh).await;
        cluster
            .kubectl(&["delete", "ratelimit", "many", "-n", "shop"])
            .await;
    })
    .await;
}
