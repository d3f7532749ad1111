//! Secrets from OpenBao that are granted to one workload.

use merlon_tests::{
    Cluster,
    cluster::{self, merlon, openbao::ClusterBao},
    wait,
};

use super::{caller, orders, web_reads};
use crate::installed::{Installed, installed};

/// The folder of a program's secrets.
const FOLDER: &str = "/var/run/secrets/merlon.io";

/// A namespace with a secret that is granted to `web`, as a file and as a header of its calls to `orders`. `web` and
/// `other` may both call `orders` and mount their secrets.
struct Granted {
    cluster: &'static Cluster,
    bao: &'static ClusterBao<'static>,
    shop: String,
}

impl Granted {
    async fn start(name: &str) -> Self {
        let Installed { cluster, bao } = installed().await;
        let shop = cluster.meshed_namespace(name).await;
        let this = Self { cluster, bao, shop };
        this.put("db", "the-first").await;
        cluster.apply_in(&this.shop, &this.grant("db")).await;
        let web = format!("principal == Workload::\"{}/web\"", this.shop);
        let everyone = web_reads(&this.shop).replace(&web, "principal");
        let mounting = |name: &str| {
            let labels = format!("metadata: {{ labels: {{ app: {name} }}");
            let annotation = ", annotations: { merlon.io/mount-secrets: 'true' }";
            let mounts = caller(name).replace(&labels, &format!("{labels}{annotation}"));
            assert!(mounts.contains(annotation), "{mounts}");
            mounts
        };
        let documents = [orders(1), mounting("web"), mounting("other"), everyone];
        cluster.apply_in(&this.shop, &documents.concat()).await;
        cluster.available(&this.shop).await;
        cluster
            .programmed(&this.shop, "authorizationpolicy/orders")
            .await;
        this
    }

    /// The path of a secret of this namespace in OpenBao.
    fn path(&self, name: &str) -> String {
        format!("merlon/{}/{name}", self.shop)
    }

    async fn put(&self, name: &str, password: &str) {
        let password = format!("password={password}");
        let path = self.path(name);
        let put = ["kv", "put", "-mount=secret", &path, "user=web", &password];
        self.bao.cli(&put).await;
    }

    fn grant(&self, path: &str) -> String {
        format!(
            "apiVersion: merlon.io/v1alpha1\nkind: SecretGrant\nmetadata: {{ name: db }}\nspec:\n  serviceAccount: web\n  path: {path}\n  \
             files: {{}}\n  headers: [{{ service: {}/orders, name: X-Api-Key, key: password, prefix: 'Key ' }}]\n",
            self.shop
        )
    }

    /// The passwords in the files of a program.
    async fn file(&self, of: &str) -> String {
        let read = format!("cat {FOLDER}/*/password || true");
        let of = format!("deploy/{of}");
        let read = ["sh", "-c", &read];
        self.cluster.exec(&self.shop, &of, &read).await.out
    }

    /// The header that `orders` receives from a program, which sends `own` itself. Otherwise the answer.
    async fn header(&self, from: &str) -> String {
        let head = format!("http://orders.{}/cgi-bin/head", self.shop);
        let answer = self
            .cluster
            .curl(&self.shop, from, &[&head, "-H", "X-Api-Key: own"])
            .await;
        let mut lines = answer.out.lines();
        let line = lines.find_map(|line| line.strip_prefix("HTTP_X_API_KEY="));
        line.unwrap_or(&answer.out).to_owned()
    }

    /// The status of the grant, once its secret could be read or not.
    async fn status_when_read_is(&self, status: &str) -> String {
        let condition = format!("--for=condition=SecretRead={status}");
        let grant = "secretgrant/db";
        self.cluster
            .wait_for(&[&condition, "-n", &self.shop, grant])
            .await;
        let get = ["get", grant, "-n", &self.shop, "-o", "jsonpath={.status}"];
        self.cluster.kubectl(&get).await
    }
}

#[tokio::test]
async fn a_granted_secret_reaches_only_its_workload_and_follows_every_version() {
    if !cluster::are_possible() {
        return;
    }
    let granted = Granted::start("secrets").await;
    let (cluster, shop) = (granted.cluster, &granted.shop);
    // No path reaches another namespace's secrets.
    let elsewhere = granted.grant("../elsewhere/db");
    let refused = cluster.try_apply_in(shop, &elsewhere).await;
    let problem = "spec.path: `../elsewhere/db` is not a valid path";
    assert!(refused.err.contains(problem), "{refused:?}");

    // A running program already has its secret, so nothing waits for it here.
    assert_eq!(granted.file("web").await, "the-first");
    let listed = ["ls", "-A", FOLDER];
    let others = cluster.exec(shop, "deploy/other", &listed).await;
    assert_eq!((others.code(), &*others.out), (0, ""), "{others:?}");
    let write = format!("echo > {FOLDER}/db/user");
    let forbidden = ["sh", "-c", &write];
    let forbidden = cluster.exec(shop, "deploy/web", &forbidden).await;
    assert_ne!(forbidden.code(), 0, "{forbidden:?}");
    assert!(forbidden.err.contains("Read-only"), "{forbidden:?}");
    assert_eq!(granted.header("web").await, "Key the-first");
    assert_eq!(granted.header("other").await, "own");

    // The control plane reads it again within seconds. File and header change together.
    granted.put("db", "the-second").await;
    wait::until("the file is updated", async || {
        granted.file("web").await == "the-second"
    })
    .await;
    assert_eq!(granted.header("web").await, "Key the-second");
    // Each replica reads the secret itself. The leader, which writes the status, may be the last to read it.
    wait::until("the status is updated", async || {
        let status = granted.status_when_read_is("True").await;
        status.contains("version 2 of the secret") && status.contains("\"proxies\":\"1/1\"")
    })
    .await;
}

#[tokio::test]
async fn a_secret_that_is_deleted_in_vault_stays_with_its_workload_and_is_reported_without_its_value()
 {
    if !cluster::are_possible() {
        return;
    }
    let granted = Granted::start("deleted").await;
    let (cluster, shop) = (granted.cluster, &granted.shop);
    assert_eq!(granted.file("web").await, "the-first");
    let path = granted.path("db");
    granted
        .bao
        .cli(&["kv", "delete", "-mount=secret", &path])
        .await;
    let status = granted.status_when_read_is("False").await;
    assert!(status.contains(&format!("secret/{path}")), "{status}");
    let report = cluster.merlon(&["check"]).await;
    let problem = format!("SecretGrant {shop}/db: the secret cannot be read: ");
    assert!(report.out.contains(&problem), "{report:?}");
    assert_eq!(granted.file("web").await, "the-first");
    assert_eq!(granted.header("web").await, "Key the-first");

    // No log and no status contains the secret.
    let sidecar = ["logs", "-n", shop, "deploy/web", "-c", "merlon-proxy"];
    let sidecar = cluster.kubectl(&sidecar).await;
    let replicas = "app.kubernetes.io/component=control-plane";
    let all = ["logs", "-n", merlon::NAMESPACE, "-l", replicas, "--tail=-1"];
    let replicas = cluster.kubectl(&all).await;
    for text in [&sidecar, &replicas, &status] {
        assert!(!text.is_empty());
        assert!(!text.contains("the-first"), "{text}");
    }
}

#[tokio::test]
async fn a_changed_grant_takes_the_secret_from_one_workload_and_gives_another_only_the_new_one() {
    if !cluster::are_possible() {
        return;
    }
    let granted = Granted::start("moved").await;
    let (cluster, shop) = (granted.cluster, &granted.shop);
    assert_eq!(granted.file("web").await, "the-first");

    // The grant now names another workload, and a secret that cannot be read yet.
    let another = granted.grant("nowhere");
    let another = another.replace("serviceAccount: web", "serviceAccount: other");
    cluster.apply_in(shop, &another).await;
    wait::until("the file is gone", async || {
        granted.file("web").await.is_empty()
    })
    .await;
    assert_eq!(granted.header("web").await, "own");
    wait::until("the status is of the new path", async || {
        let status = granted.status_when_read_is("False").await;
        status.contains("/nowhere")
    })
    .await;
    // The new workload never gets the old secret, and its own header does not pass for one.
    wait::until("its sidecar has the grant", async || {
        granted.header("other").await != "own"
    })
    .await;
    let without = granted.header("other").await;
    assert!(without.ends_with("\n200"), "{without}");
    assert!(!without.contains("HTTP_X_API_KEY"), "{without}");
    assert_eq!(granted.file("other").await, "");
    granted.put("nowhere", "the-third").await;
    wait::until("it has its secret", async || {
        granted.file("other").await == "the-third"
    })
    .await;
    assert_eq!(granted.header("other").await, "Key the-third");

    cluster
        .kubectl(&["delete", "secretgrant", "db", "-n", shop])
        .await;
    wait::until("the file is gone", async || {
        granted.file("other").await.is_empty()
    })
    .await;
    assert_eq!(granted.header("other").await, "own");
}
