//! The mesh on a real Kubernetes cluster when parts of it are away: what runs goes on, what cannot be told waits.
//!
//! One after the other in one cluster, since each takes something away that the others need.

use merlon_tests::{
    Cluster,
    cluster::{self, merlon, openbao::ClusterBao},
    process::Process,
    tools, wait,
};
use serde_json::Value;

/// Two replicas that end as programs should: they take nothing new, finish what they have, and are gone soon, long before
/// anybody was told. And who calls them.
const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { merlon.io/inject: enabled } }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: web, namespace: shop }
---
apiVersion: v1
kind: Service
metadata: { name: orders, namespace: shop }
spec: { selector: { app: orders }, ports: [{ port: 80, targetPort: http }] }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: orders, namespace: shop }
spec:
  replicas: 2
  selector: { matchLabels: { app: orders } }
  template:
    metadata: { labels: { app: orders } }
    spec:
      terminationGracePeriodSeconds: 10
      containers:
        - name: orders
          image: localhost/programs:test
          imagePullPolicy: Never
          command: [sh, -c, 'echo hello > /tmp/index.html; busybox httpd -f -p 8080 -h /tmp & p=$!; trap "kill $p; sleep 0.3; exit 0" TERM; wait']
          ports: [{ name: http, containerPort: 8080 }]
          readinessProbe: { httpGet: { path: /, port: http }, periodSeconds: 1 }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 1
      containers: [{ name: web, image: 'localhost/programs:test', imagePullPolicy: Never, command: [sleep, infinity] }]
---
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  policies: |
    @id("web-reads")
    permit (principal == Workload::"shop/web", action == Action::"GET", resource);
"#;

struct Mesh {
    cluster: Cluster,
    values: String,
}

impl Mesh {
    async fn start(cluster: Cluster) -> Self {
        let bao: ClusterBao<'_> = cluster.openbao().await;
        let values = bao.values();
        cluster.install_merlon(&values).await;
        let this = Self { cluster, values };
        this.cluster.apply(SHOP).await;
        this.cluster.available("shop").await;
        this.cluster
            .programmed("shop", "authorizationpolicy/orders")
            .await;
        this
    }

    /// Calls at 200 a second, until [`Load::stop`].
    fn load(&self) -> Load {
        // A pause between requests and not a rate: on a busy machine it must not fall behind and hurry.
        let script = "while [ ! -e /tmp/stop ]; do \
                      curl -s -m 10 --rate 200/s -o /dev/null -w '%{http_code}\\n' 'http://orders.shop/?[1-100]'; done; \
                      rm /tmp/stop; echo end";
        let kubectl = tools::installed("kubectl");
        let running = self
            .cluster
            .inside("load", &kubectl)
            .args([
                "exec",
                "-n",
                "shop",
                "deploy/web",
                "-c",
                "web",
                "--",
                "sh",
                "-c",
            ])
            .arg(script)
            .start();
        Load { running }
    }
}

/// Requests that go on.
struct Load {
    running: Process,
}

impl Load {
    fn count(&self) -> usize {
        self.running.out().lines().count()
    }

    /// Waits until so many more were answered.
    async fn goes_on(&self, more: usize) {
        let aim = self.count() + more;
        wait::until(format!("{more} more calls"), async || self.count() >= aim).await;
    }

    /// Ends it. Every call was answered with 200.
    async fn assert_no_failures(self, mesh: &Mesh) {
        let from = "deploy/web";
        mesh.cluster
            .exec("shop", from, &["touch", "/tmp/stop"])
            .await;
        self.running.ended().await;
        let out = self.running.out();
        let lost: Vec<&str> = out
            .lines()
            .filter(|line| *line != "200" && *line != "end")
            .collect();
        assert!(
            lost.is_empty(),
            "{} of {} calls were lost: {:?}",
            lost.len(),
            out.lines().count(),
            &lost[..lost.len().min(5)]
        );
        assert!(out.lines().count() > 100, "{out}");
    }
}

#[tokio::test]
async fn what_runs_goes_on_whatever_is_away() {
    if !cluster::are_possible() {
        return;
    }
    let mesh = Mesh::start(Cluster::start().await).await;
    // What is said of a failure does not tell how far it came.
    let begins = |what: &str| eprintln!("--- {what}");
    begins("replicas");
    replicas_may_die_at_any_time(&mesh).await;
    begins("restart");
    a_rolling_restart_loses_nothing(&mesh).await;
    begins("upgrade");
    an_upgrade_and_its_rollback_lose_nothing(&mesh).await;
    begins("version");
    a_newer_version_and_the_way_back_lose_nothing(&mesh).await;
    begins("API server");
    a_minute_without_the_api_server_loses_nothing(&mesh).await;
    begins("injector");
    without_an_injector_a_meshed_pod_waits_and_all_others_start(&mesh).await;
    begins("vault");
    a_wrong_address_of_vault_is_told_and_stops_nothing(&mesh).await;
    begins("uninstall");
    nothing_is_left_when_it_is_taken_away(&mesh).await;
}

async fn replicas_may_die_at_any_time(mesh: &Mesh) {
    let load = mesh.load();
    load.goes_on(100).await;
    for _ in 0..2 {
        mesh.cluster
            .kubectl(&[
                "delete",
                "pods",
                "-n",
                merlon::NAMESPACE,
                "-l",
                "app.kubernetes.io/component=control-plane",
                "--grace-period=0",
                "--force",
            ])
            .await;
        load.goes_on(200).await;
    }
    mesh.cluster
        .rolled_out(merlon::NAMESPACE, "deployment/merlon-control-plane")
        .await;
    load.assert_no_failures(mesh).await;
}

async fn a_rolling_restart_loses_nothing(mesh: &Mesh) {
    let load = mesh.load();
    load.goes_on(100).await;
    let all = ["rollout", "restart", "-n", "shop", "deployment/orders"];
    mesh.cluster.kubectl(&all).await;
    mesh.cluster.rolled_out("shop", "deployment/orders").await;
    load.goes_on(200).await;
    load.assert_no_failures(mesh).await;
}

async fn an_upgrade_and_its_rollback_lose_nothing(mesh: &Mesh) {
    let load = mesh.load();
    load.goes_on(100).await;
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
    // Pods that are made from now on have the new settings; `check` names those that have not.
    let told = mesh.cluster.merlon(&["check"]).await;
    assert_eq!(told.code(), 0, "{told:?}");
    assert!(
        told.out.contains("not injected with the current settings"),
        "{told:?}"
    );
    let restart = ["rollout", "restart", "-n", "shop", "deployment/orders"];
    mesh.cluster.kubectl(&restart).await;
    mesh.cluster.rolled_out("shop", "deployment/orders").await;
    let back = ["rollback", "merlon", "-n", merlon::NAMESPACE, "--wait"];
    mesh.cluster.helm(&back).await;
    load.goes_on(200).await;
    load.assert_no_failures(mesh).await;
}

/// The newer one has a field more in what every proxy is told, and one in the definition of RateLimit.
async fn a_newer_version_and_the_way_back_lose_nothing(mesh: &Mesh) {
    let cluster = &mesh.cluster;
    let newer = merlon::Images::newer().await;
    cluster.load_images(&newer).await;
    let limit = |more: &str| {
        format!(
            "apiVersion: merlon.io/v1alpha1\nkind: RateLimit\nmetadata: {{ name: many, namespace: shop }}\nspec:\n  \
             targetRefs: [{{ kind: Service, name: orders }}]\n  \
             limits: [{{ name: many, rate: {{ requests: 100000, per: 1s }}{more} }}]\n"
        )
    };
    // For a moment after a replica ended the API server may still ask it.
    let apply = async |documents: &str| {
        wait::until("admission answers", async || {
            cluster.try_apply_in("shop", documents).await.code() == 0
        })
        .await;
    };
    let restarted = async || {
        let orders = "deployment/orders";
        cluster
            .kubectl(&["rollout", "restart", "-n", "shop", orders])
            .await;
        cluster.rolled_out("shop", orders).await;
    };
    let load = mesh.load();
    load.goes_on(100).await;

    // Definitions first, as the guide says.
    let definitions = newer.chart("merlon-crds");
    cluster
        .helm(&["upgrade", "merlon-crds", &definitions])
        .await;
    cluster
        .helm_merlon_of(&newer, "upgrade", &mesh.values, &["--wait"])
        .await;
    // Sidecars of the version before are told more than they know, and take it.
    apply(&limit("")).await;
    cluster.programmed("shop", "ratelimit/many").await;
    load.goes_on(100).await;

    // What they cannot enforce they refuse, and go on with what they have; those of the new version enforce it.
    apply(&limit(", newer: 7")).await;
    let refused = wait::until_some("the older ones refuse it", async || {
        let limit = cluster
            .json(&["get", "ratelimit", "many", "-n", "shop"])
            .await;
        let conditions = limit["status"]["conditions"].as_array()?.clone();
        let mut all = conditions.iter();
        let found = all.find(|one| one["type"] == "Programmed" && one["reason"] == "Refused")?;
        Some(found["message"].to_string())
    })
    .await;
    assert!(refused.contains("unknown field `newer`"), "{refused}");
    load.goes_on(100).await;
    restarted().await;
    cluster.programmed("shop", "ratelimit/many").await;
    load.goes_on(100).await;

    // And back, while sidecars are of the newer version.
    cluster
        .helm(&["rollback", "merlon", "-n", merlon::NAMESPACE, "--wait"])
        .await;
    cluster.helm(&["rollback", "merlon-crds", "--wait"]).await;
    load.goes_on(100).await;
    apply(&limit("")).await;
    cluster.programmed("shop", "ratelimit/many").await;
    restarted().await;
    load.goes_on(100).await;
    load.assert_no_failures(mesh).await;
    cluster
        .kubectl(&["delete", "ratelimit", "many", "-n", "shop"])
        .await;
}

async fn a_minute_without_the_api_server_loses_nothing(mesh: &Mesh) {
    let cluster = &mesh.cluster;
    // In the pod alone: what the other loads say comes through the API server.
    let calls = "while [ ! -e /tmp/stop ]; do \
                 curl -s -m 10 --rate 100/s -o /dev/null -w '%{http_code}\\n' 'http://orders.shop/?[1-100]'; done > /tmp/calls; \
                 rm /tmp/stop; touch /tmp/ended";
    let script = format!("rm -f /tmp/ended; (\n{calls}\n) > /dev/null 2>&1 &");
    let web = async |command: &str| {
        let ended = cluster
            .exec("shop", "deploy/web", &["sh", "-c", command])
            .await;
        assert_eq!(ended.code(), 0, "{ended:?}");
        ended.out
    };
    web(&script).await;
    let count = async || web("wc -l < /tmp/calls").await.trim().parse().unwrap_or(0);
    wait::until("calls", async || count().await > 100).await;
    let before: usize = count().await;
    cluster.pause_api_server();
    // The minute is what this is about.
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    cluster.resume_api_server().await;
    web("touch /tmp/stop").await;
    wait::until("the calls have ended", async || {
        let ended = ["test", "-e", "/tmp/ended"];
        cluster.exec("shop", "deploy/web", &ended).await.code() == 0
    })
    .await;
    let said = web("cat /tmp/calls").await;
    let lost: Vec<&str> = said.lines().filter(|line| *line != "200").collect();
    assert!(lost.is_empty(), "{lost:?} of {}", said.lines().count());
    assert!(
        said.lines().count() > before + 500,
        "{}",
        said.lines().count()
    );
    // What changes afterwards is in force as ever.
    let none = "apiVersion: merlon.io/v1alpha1\nkind: RateLimit\nmetadata: { name: after, namespace: shop }\nspec:\n  \
                targetRefs: [{ kind: Service, name: orders }]\n  limits: [{ name: after, rate: { requests: 100000, per: 1s } }]\n";
    wait::until("admission answers again", async || {
        cluster.try_apply_in("shop", none).await.code() == 0
    })
    .await;
    cluster.programmed("shop", "ratelimit/after").await;
    cluster
        .kubectl(&["delete", "ratelimit", "after", "-n", "shop"])
        .await;
    // A node that could not say that it lives counts as lost for a moment, and its pods as not ready.
    wait::until("all is well again", async || {
        cluster.merlon(&["check"]).await.code() == 0
    })
    .await;
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: { name: late, namespace: NAMESPACE }
spec:
  terminationGracePeriodSeconds: 0
  containers: [{ name: late, image: 'localhost/programs:test', imagePullPolicy: Never, command: [sleep, infinity] }]
";

async fn without_an_injector_a_meshed_pod_waits_and_all_others_start(mesh: &Mesh) {
    let cluster = &mesh.cluster;
    let control_plane = "deployment/merlon-control-plane";
    let scale = async |replicas: &str| {
        cluster
            .kubectl(&["scale", "-n", merlon::NAMESPACE, control_plane, replicas])
            .await;
    };
    scale("--replicas=0").await;
    cluster
        .wait_for(&[
            "--for=delete",
            "-n",
            merlon::NAMESPACE,
            "pod",
            "-l",
            "app.kubernetes.io/component=control-plane",
        ])
        .await;
    let file = cluster.folder().join("late.yaml");
    let path = file.display().to_string();
    std::fs::write(&file, POD.replace("NAMESPACE", "shop")).expect("a file");
    let refused = cluster.try_kubectl(&["apply", "-f", &path]).await;
    assert!(refused.err.contains("inject.merlon.io"), "{refused:?}");
    for namespace in ["kube-system", "default"] {
        cluster.apply(&POD.replace("NAMESPACE", namespace)).await;
        cluster
            .wait_for(&["--for=condition=Ready", "-n", namespace, "pod/late"])
            .await;
    }
    let load = mesh.load();
    load.goes_on(100).await;
    load.assert_no_failures(mesh).await;
    scale("--replicas=2").await;
    mesh.cluster
        .rolled_out(merlon::NAMESPACE, control_plane)
        .await;
    wait::until("the pod is taken in", async || {
        cluster.try_kubectl(&["apply", "-f", &path]).await.code() == 0
    })
    .await;
    cluster
        .wait_for(&["--for=condition=Ready", "-n", "shop", "pod/late"])
        .await;
}

async fn a_wrong_address_of_vault_is_told_and_stops_nothing(mesh: &Mesh) {
    let load = mesh.load();
    mesh.cluster
        .helm_merlon(
            "upgrade",
            &mesh.values,
            &["--set", "vault.address=https://nobody.vault.svc:8200"],
        )
        .await;
    // A replica that begins now has no certificate, and says why.
    let restart = [
        "rollout",
        "restart",
        "-n",
        merlon::NAMESPACE,
        "deployment/merlon-control-plane",
    ];
    mesh.cluster.kubectl(&restart).await;
    let condition = "--for=condition=CertificatesIssued=false";
    mesh.cluster
        .wait_for(&[condition, "-n", merlon::NAMESPACE, "meshconfig/mesh"])
        .await;
    let told = mesh.cluster.merlon(&["check"]).await;
    assert_eq!(told.code(), 1, "{told:?}");
    assert!(told.out.contains("nobody.vault.svc"), "{told:?}");
    load.goes_on(200).await;
    load.assert_no_failures(mesh).await;
    mesh.cluster
        .helm_merlon("upgrade", &mesh.values, &["--wait"])
        .await;
    mesh.cluster
        .rolled_out(merlon::NAMESPACE, "deployment/merlon-control-plane")
        .await;
    let told = mesh.cluster.merlon(&["check"]).await;
    assert_eq!(told.code(), 0, "{told:?}");
}

async fn nothing_is_left_when_it_is_taken_away(mesh: &Mesh) {
    let cluster = &mesh.cluster;
    cluster
        .kubectl(&["label", "namespace", "shop", "merlon.io/inject-"])
        .await;
    cluster
        .helm(&["uninstall", "merlon", "-n", merlon::NAMESPACE, "--wait"])
        .await;
    cluster.helm(&["uninstall", "merlon-crds", "--wait"]).await;
    let restart = ["rollout", "restart", "-n", "shop", "deployment"];
    cluster.kubectl(&restart).await;
    mesh.cluster.rolled_out("shop", "deployment/orders").await;
    mesh.cluster.rolled_out("shop", "deployment/web").await;
    // A node forgets the pods that were a moment after they are gone.
    let ask = ["curl", "-s", "-m", "10", "http://orders/"];
    wait::until("the services run as they did before", async || {
        cluster.exec("shop", "deploy/web", &ask).await.out == "hello\n"
    })
    .await;
    for kind in [
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
        "clusterroles",
        "clusterrolebindings",
    ] {
        let all: Value = cluster.json(&["get", kind]).await;
        let left = all["items"].as_array().into_iter().flatten();
        let left: Vec<&str> = left
            .filter_map(|item| item["metadata"]["name"].as_str())
            .filter(|name| name.contains("merlon"))
            .collect();
        assert!(left.is_empty(), "{kind}: {left:?}");
    }
}
