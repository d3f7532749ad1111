//! The mesh on a real Kubernetes cluster while parts of it are down: running workloads continue, and changes wait.
//!
//! The parts run one after another in one cluster, because each takes down something that the others need.

use merlon_tests::{
    Cluster,
    cluster::{self, merlon, openbao::ClusterBao},
    process::Process,
    tools, wait,
};
use serde_json::Value;

/// A service of two replicas, and their caller. The replicas stop as programs should: they accept nothing new, finish
/// open requests and end soon, long before the proxies know of their removal.
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

    /// Calls at 200 a second, until [`Load::assert_no_failures`].
    fn load(&self) -> Load {
        // A pause between requests, not a fixed rate: on a busy machine the load must not fall behind and catch up.
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

/// Requests that continue in the background.
struct Load {
    running: Process,
}

impl Load {
    fn count(&self) -> usize {
        self.running.out().lines().count()
    }

    /// Waits until `more` further requests are answered.
    async fn continues(&self, more: usize) {
        let aim = self.count() + more;
        wait::until(format!("{more} more calls"), async || self.count() >= aim).await;
    }

    /// Ends the load. Every call was answered with 200.
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
async fn running_workloads_continue_while_parts_of_the_mesh_are_down() {
    if !cluster::are_possible() {
        return;
    }
    let mesh = Mesh::start(Cluster::start().await).await;
    // A failure message does not show which part was running.
    let part = |what: &str| eprintln!("--- {what}");
    part("replicas");
    replicas_may_die_at_any_time(&mesh).await;
    part("restart");
    a_rolling_restart_loses_nothing(&mesh).await;
    part("upgrade");
    an_upgrade_and_its_rollback_lose_nothing(&mesh).await;
    part("version");
    a_newer_version_and_its_rollback_lose_nothing(&mesh).await;
    part("API server");
    a_minute_without_the_api_server_loses_nothing(&mesh).await;
    part("injector");
    without_an_injector_meshed_pods_are_refused_and_all_others_start(&mesh).await;
    part("vault");
    a_wrong_vault_address_is_reported_and_interrupts_nothing(&mesh).await;
    part("uninstall");
    uninstalling_leaves_nothing(&mesh).await;
}

async fn replicas_may_die_at_any_time(mesh: &Mesh) {
    let load = mesh.load();
    load.continues(100).await;
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
        load.continues(200).await;
    }
    mesh.cluster
        .rolled_out(merlon::NAMESPACE, "deployment/merlon-control-plane")
        .await;
    load.assert_no_failures(mesh).await;
}

async fn a_rolling_restart_loses_nothing(mesh: &Mesh) {
    let load = mesh.load();
    load.continues(100).await;
    let all = ["rollout", "restart", "-n", "shop", "deployment/orders"];
    mesh.cluster.kubectl(&all).await;
    mesh.cluster.rolled_out("shop", "deployment/orders").await;
    load.continues(200).await;
    load.assert_no_failures(mesh).await;
}

async fn an_upgrade_and_its_rollback_lose_nothing(mesh: &Mesh) {
    let load = mesh.load();
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
    let restart = ["rollout", "restart", "-n", "shop", "deployment/orders"];
    mesh.cluster.kubectl(&restart).await;
    mesh.cluster.rolled_out("shop", "deployment/orders").await;
    let back = ["rollback", "merlon", "-n", merlon::NAMESPACE, "--wait"];
    mesh.cluster.helm(&back).await;
    load.continues(200).await;
    load.assert_no_failures(mesh).await;
}

/// The newer version adds a field to the state that every proxy receives, and one to the definition of RateLimit.
async fn a_newer_version_and_its_rollback_lose_nothing(mesh: &Mesh) {
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
    // Shortly after a replica has ended, the API server may still call its webhook.
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
    apply(&limit("")).await;
    cluster.programmed("shop", "ratelimit/many").await;
    load.continues(100).await;

    // They reject what they cannot enforce and keep their state; sidecars of the new version enforce it.
    apply(&limit(", newer: 7")).await;
    let refused = wait::until_some("the older sidecars reject it", async || {
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
    load.continues(100).await;
    restarted().await;
    cluster.programmed("shop", "ratelimit/many").await;
    load.continues(100).await;

    // The rollback, while sidecars are of the newer version.
    cluster
        .helm(&["rollback", "merlon", "-n", merlon::NAMESPACE, "--wait"])
        .await;
    cluster.helm(&["rollback", "merlon-crds", "--wait"]).await;
    load.continues(100).await;
    apply(&limit("")).await;
    cluster.programmed("shop", "ratelimit/many").await;
    restarted().await;
    load.continues(100).await;
    load.assert_no_failures(mesh).await;
    cluster
        .kubectl(&["delete", "ratelimit", "many", "-n", "shop"])
        .await;
}

async fn a_minute_without_the_api_server_loses_nothing(mesh: &Mesh) {
    let cluster = &mesh.cluster;
    // This load runs in the pod alone: the output of the other loads comes through the API server.
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
    // The minute itself is under test.
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    cluster.resume_api_server().await;
    web("touch /tmp/stop").await;
    wait::until("the calls have ended", async || {
        let ended = ["test", "-e", "/tmp/ended"];
        cluster.exec("shop", "deploy/web", &ended).await.code() == 0
    })
    .await;
    let answers = web("cat /tmp/calls").await;
    let lost: Vec<&str> = answers.lines().filter(|line| *line != "200").collect();
    assert!(lost.is_empty(), "{lost:?} of {}", answers.lines().count());
    assert!(
        answers.lines().count() > before + 500,
        "{}",
        answers.lines().count()
    );
    // Later changes take effect as before.
    let limit = "apiVersion: merlon.io/v1alpha1\nkind: RateLimit\nmetadata: { name: after, namespace: shop }\nspec:\n  \
                targetRefs: [{ kind: Service, name: orders }]\n  limits: [{ name: after, rate: { requests: 100000, per: 1s } }]\n";
    wait::until("admission answers again", async || {
        cluster.try_apply_in("shop", limit).await.code() == 0
    })
    .await;
    cluster.programmed("shop", "ratelimit/after").await;
    cluster
        .kubectl(&["delete", "ratelimit", "after", "-n", "shop"])
        .await;
    // A node that could not report its status counts as lost for a moment, and its pods as not ready.
    wait::until("`merlon check` succeeds again", async || {
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

async fn without_an_injector_meshed_pods_are_refused_and_all_others_start(mesh: &Mesh) {
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
    load.continues(100).await;
    load.assert_no_failures(mesh).await;
    scale("--replicas=2").await;
    mesh.cluster
        .rolled_out(merlon::NAMESPACE, control_plane)
        .await;
    wait::until("the pod is injected", async || {
        cluster.try_kubectl(&["apply", "-f", &path]).await.code() == 0
    })
    .await;
    cluster
        .wait_for(&["--for=condition=Ready", "-n", "shop", "pod/late"])
        .await;
}

async fn a_wrong_vault_address_is_reported_and_interrupts_nothing(mesh: &Mesh) {
    let load = mesh.load();
    mesh.cluster
        .helm_merlon(
            "upgrade",
            &mesh.values,
            &["--set", "vault.address=https://missing.vault.svc:8200"],
        )
        .await;
    // A replica that starts now has no certificate and reports why.
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
    let report = mesh.cluster.merlon(&["check"]).await;
    assert_eq!(report.code(), 1, "{report:?}");
    assert!(report.out.contains("missing.vault.svc"), "{report:?}");
    load.continues(200).await;
    load.assert_no_failures(mesh).await;
    mesh.cluster
        .helm_merlon("upgrade", &mesh.values, &["--wait"])
        .await;
    mesh.cluster
        .rolled_out(merlon::NAMESPACE, "deployment/merlon-control-plane")
        .await;
    let report = mesh.cluster.merlon(&["check"]).await;
    assert_eq!(report.code(), 0, "{report:?}");
}

async fn uninstalling_leaves_nothing(mesh: &Mesh) {
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
    // A node removes its rules for pods shortly after they are gone.
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
