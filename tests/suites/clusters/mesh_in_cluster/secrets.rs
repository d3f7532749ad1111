//! Secrets from OpenBao that are granted to one workload.

use merlon_tests::{
    cluster::{self, merlon},
    wait,
};

use super::{caller, meshed_with_bao, orders, web_reads};

#[tokio::test]
async fn a_granted_secret_reaches_only_its_workload_and_follows_every_change() {
    if !cluster::are_possible() {
        return;
    }
    let (cluster, bao) = meshed_with_bao().await;
    let shop = cluster.meshed_namespace("secrets").await;
    let own = format!("merlon/{shop}/db");
    let put = async |password: &str| {
        let password = format!("password={password}");
        bao.cli(&["kv", "put", "-mount=secret", &own, "user=web", &password])
            .await
    };
    put("the-first").await;
    let grant = |path: &str| {
        format!(
            "apiVersion: merlon.io/v1alpha1\nkind: SecretGrant\nmetadata: {{ name: db }}\nspec:\n  serviceAccount: web\n  path: {path}\n  \
             files: {{}}\n  headers: [{{ service: {shop}/orders, name: X-Api-Key, key: password, prefix: 'Key ' }}]\n"
        )
    };
    // No path reaches another namespace's secrets.
    let refused = cluster.try_apply_in(&shop, &grant("../elsewhere/db")).await;
    assert!(
        refused
            .err
            .contains("spec.path: `../elsewhere/db` is not a valid path"),
        "{refused:?}"
    );
    cluster.apply_in(&shop, &grant("db")).await;
    let everyone = web_reads(&shop).replace(
        &format!("principal == Workload::\"{shop}/web\""),
        "principal",
    );
    cluster
        .apply_in(
            &shop,
            &[orders(1), caller("web"), caller("other"), everyone].concat(),
        )
        .await;
    let mount =
        r#"{"spec":{"template":{"metadata":{"annotations":{"merlon.io/mount-secrets":"true"}}}}}"#;
    for name in ["web", "other"] {
        cluster
            .kubectl(&["patch", "deployment", name, "-n", &shop, "-p", mount])
            .await;
        cluster
            .rolled_out(&shop, &format!("deployment/{name}"))
            .await;
    }
    cluster.available(&shop).await;

    // A running program already has its secret, so nothing waits for it here.
    let folder = "/var/run/secrets/merlon.io";
    let file = format!("{folder}/db/password");
    let read = async || {
        let ended = cluster.exec(&shop, "deploy/web", &["cat", &file]).await;
        ended.out
    };
    assert_eq!(read().await, "the-first");
    let others = cluster
        .exec(&shop, "deploy/other", &["ls", "-A", folder])
        .await;
    assert_eq!(others.out, "", "{others:?}");
    let forbidden = ["sh", "-c", "echo > /var/run/secrets/merlon.io/db/user"];
    let forbidden = cluster.exec(&shop, "deploy/web", &forbidden).await;
    assert_ne!(forbidden.code(), 0, "{forbidden:?}");

    let head = format!("http://orders.{shop}/cgi-bin/head");
    let call = async |from: &str| {
        let answer = cluster
            .curl(&shop, from, &[&head, "-H", "X-Api-Key: own"])
            .await;
        let line = answer
            .out
            .lines()
            .find(|line| line.starts_with("HTTP_X_API_KEY="));
        line.unwrap_or(&answer.out).to_owned()
    };
    cluster
        .programmed(&shop, "authorizationpolicy/orders")
        .await;
    assert_eq!(call("web").await, "HTTP_X_API_KEY=Key the-first");
    assert_eq!(call("other").await, "HTTP_X_API_KEY=own");

    put("the-second").await;
    wait::until("the file is updated", async || read().await == "the-second").await;
    wait::until("the header is updated", async || {
        call("web").await == "HTTP_X_API_KEY=Key the-second"
    })
    .await;
    let status_when = async |status: &str| {
        let condition = format!("--for=condition=SecretRead={status}");
        cluster
            .wait_for(&[&condition, "-n", &shop, "secretgrant/db"])
            .await;
        cluster
            .kubectl(&[
                "get",
                "secretgrant",
                "db",
                "-n",
                &shop,
                "-o",
                "jsonpath={.status}",
            ])
            .await
    };
    // Each replica reads the secret itself. The leader, which writes the status, may be the last to read it.
    wait::until("the status is updated", async || {
        let status = status_when("True").await;
        status.contains("version 2 of the secret") && status.contains("\"proxies\":\"1/1\"")
    })
    .await;

    // A secret that is deleted in Vault stays with the workload that has it, and the status reports it.
    bao.cli(&["kv", "delete", "-mount=secret", &own]).await;
    let status = status_when("False").await;
    assert!(status.contains(&format!("secret/{own}")), "{status}");
    let report = cluster.merlon(&["check"]).await;
    let problem = format!("SecretGrant {shop}/db: the secret cannot be read: ");
    assert!(report.out.contains(&problem), "{report:?}");
    assert_eq!(read().await, "the-second");
    assert_eq!(call("web").await, "HTTP_X_API_KEY=Key the-second");
    // No log and no status contains the secret.
    let logs = cluster
        .kubectl(&["logs", "-n", &shop, "deploy/web", "-c", "merlon-proxy"])
        .await;
    let plane = cluster
        .kubectl(&[
            "logs",
            "-n",
            merlon::NAMESPACE,
            "-l",
            "app.kubernetes.io/component=control-plane",
            "--tail=-1",
        ])
        .await;
    for text in [&logs, &plane, &status] {
        assert!(
            !text.contains("the-first") && !text.contains("the-second"),
            "{text}"
        );
    }

    // The grant now names another secret and another workload. That workload never gets the old secret, even while
    // the new one cannot be read.
    let another = grant("nowhere").replace("serviceAccount: web", "serviceAccount: other");
    cluster.apply_in(&shop, &another).await;
    wait::until("the file is gone", async || read().await.is_empty()).await;
    wait::until("the header is gone", async || {
        call("web").await == "HTTP_X_API_KEY=own"
    })
    .await;
    wait::until("the status is of the new path", async || {
        status_when("False").await.contains("/nowhere")
    })
    .await;
    let of_other = async || {
        let all = ["sh", "-c", "cat /var/run/secrets/merlon.io/*/*"];
        cluster.exec(&shop, "deploy/other", &all).await.out
    };
    wait::until("other's sidecar has the grant", async || {
        call("other").await != "HTTP_X_API_KEY=own"
    })
    .await;
    assert_eq!(of_other().await, "");
    let without = call("other").await;
    assert!(!without.contains("HTTP_X_API_KEY"), "{without}");
    let nowhere = format!("merlon/{shop}/nowhere");
    bao.cli(&["kv", "put", "-mount=secret", &nowhere, "password=the-third"])
        .await;
    wait::until("other has its secret", async || {
        of_other().await == "the-third"
    })
    .await;

    // The grant is deleted.
    cluster
        .kubectl(&["delete", "secretgrant", "db", "-n", &shop])
        .await;
    wait::until("the file is gone", async || of_other().await.is_empty()).await;
    wait::until("the header is gone", async || {
        call("other").await == "HTTP_X_API_KEY=own"
    })
    .await;
}
