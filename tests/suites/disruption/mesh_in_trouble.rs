//! The mesh on a real Kubernetes cluster while parts of it are down: running workloads continue, and changes wait.
//!
//! The tests share one cluster, and each has it alone, because each takes down something that the others need.

mod admission;
mod injector;
mod issuer;
mod upgrades;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use merlon_tests::{
    Cluster,
    cluster::{self, merlon, openbao},
    process::Process,
    tools, wait,
};
use serde_json::Value;
use tokio::sync::Mutex;

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

/// The control plane.
const REPLICAS: &str = "deployment/merlon-control-plane";
/// The label of its pods.
const OF_REPLICAS: &str = "app.kubernetes.io/component=control-plane";
/// The arguments of `kubectl` for their pods.
const PODS: [&str; 6] = ["get", "pods", "-n", merlon::NAMESPACE, "-l", OF_REPLICAS];

/// A change that every replica's admission accepts.
const LIMIT: &str = "
apiVersion: merlon.io/v1alpha1
kind: RateLimit
metadata: { name: many, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  limits: [{ name: many, rate: { requests: 100000, per: 1s } }]
";

/// What is printed of an event.
const EVENTS: &str =
    "custom-columns=AT:.lastTimestamp,REASON:.reason,OBJECT:.involvedObject.name,MESSAGE:.message";

/// A pod that the injector accepts without a warning.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: { name: changes, namespace: shop }
spec:
  terminationGracePeriodSeconds: 0
  securityContext: { runAsNonRoot: true, runAsUser: 65532 }
  containers:
    - name: main
      image: localhost/programs:test
      imagePullPolicy: Never
      command: [sleep, infinity]
      securityContext: { allowPrivilegeEscalation: false }
";

struct Mesh {
    cluster: Cluster,
    bao: openbao::Access,
    values: String,
}

/// The mesh that the tests share, while none of them uses it.
static MESH: Mutex<Option<Mesh>> = Mutex::const_new(None);

/// Calls `test` with the shared mesh, while no other test has it. A test that fails loses the mesh, and the next one
/// starts another: no test sees what a failed one left.
async fn alone(test: impl AsyncFnOnce(&Mesh)) {
    if !cluster::are_possible() {
        return;
    }
    let mut shared = MESH.lock().await;
    let mesh = taken(&mut shared).await;
    test(&mesh).await;
    *shared = Some(mesh);
}

/// [`alone`], for a test that leaves nothing for others.
async fn alone_and_last(test: impl AsyncFnOnce(&Mesh)) {
    if !cluster::are_possible() {
        return;
    }
    let mut shared = MESH.lock().await;
    test(&taken(&mut shared).await).await;
}

async fn taken(shared: &mut Option<Mesh>) -> Mesh {
    match shared.take() {
        Some(mesh) => mesh,
        None => Mesh::start().await,
    }
}

/// Longer than any time after which the control plane treats the API server as down: its lease ends after seconds, and
/// certificates renew themselves after half a minute.
const OUTAGE: Duration = Duration::from_secs(35);

impl Mesh {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let (bao, values) = {
            let bao = cluster.openbao().await;
            (bao.access(), bao.values())
        };
        cluster.install_merlon(&values).await;
        let this = Self {
            cluster,
            bao,
            values,
        };
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
        let kubectl = tools::installed("kubectl");
        let exec = ["exec", "-n", "shop", "deploy/web", "-c", "web", "--"];
        // Each has its own file of output, which `Load` counts, and its own file that ends it: the load of a test that
        // failed is still running.
        static LOADS: AtomicU32 = AtomicU32::new(0);
        let name = format!("load-{}", LOADS.fetch_add(1, Ordering::Relaxed));
        let stop = format!("/tmp/stop-{name}");
        let script = format!(
            "while [ ! -e {stop} ]; do \
             curl -s -m 10 --rate 200/s -o /dev/null -w '%{{http_code}}\\n' 'http://orders.shop/?[1-100]'; done; \
             echo end"
        );
        let running = self
            .cluster
            .inside(&name, &kubectl)
            .args(exec)
            .args(["sh", "-c", &script])
            .start();
        Load { running, stop }
    }

    /// Creates pods and policies, one after the other, until [`Changes::assert_none_was_refused`]. None is kept.
    fn changes(&self) -> Changes {
        let folder = self.cluster.folder();
        // Not a name that tests create.
        let limit = LIMIT.replace("name: many", "name: changes");
        assert_ne!(limit, LIMIT);
        let documents = format!("{limit}---{POD}---").repeat(Changes::AT_ONCE);
        std::fs::write(folder.join("changes.yaml"), documents).expect("a file");
        let stop = folder.join("stop-changes");
        let script = format!(
            "until [ -e {stop} ]; do {kubectl} create --dry-run=server -f {changes} 2>&1 || date +%T.%N; sleep 0.1; done; rm {stop}",
            stop = stop.display(),
            kubectl = tools::installed("kubectl").display(),
            changes = folder.join("changes.yaml").display(),
        );
        static CHANGES: AtomicU32 = AtomicU32::new(0);
        let name = format!("changes-{}", CHANGES.fetch_add(1, Ordering::Relaxed));
        let running = self.cluster.inside(&name, Path::new("/bin/sh"));
        Changes {
            running: running.args(["-c", &script]).start(),
            stop,
        }
    }

    /// Applies a document in the namespace `shop`.
    async fn apply(&self, documents: &str) {
        self.cluster.apply_in("shop", documents).await;
    }

    /// What a `jsonpath` finds in the replicas of the control plane.
    async fn of_replicas(&self, path: &str) -> String {
        let pods = [&PODS[..], &["-o", path]].concat();
        self.cluster.kubectl(&pods).await
    }

    /// Waits until every replica of the control plane that was replaced has ended.
    async fn until_old_replicas_are_gone(&self) {
        wait::until("only two replicas are left", async || {
            let pods = self.cluster.json(&PODS).await;
            pods["items"].as_array().is_some_and(|all| all.len() == 2)
        })
        .await;
    }

    /// The addresses of the control plane's pods.
    async fn control_plane_addresses(&self) -> Vec<IpAddr> {
        let pods = self.cluster.json(&PODS).await;
        let all = pods["items"].as_array().into_iter().flatten();
        let address = |pod: &Value| pod["status"]["podIP"].as_str()?.parse().ok();
        let found: Vec<IpAddr> = all.filter_map(address).collect();
        assert_eq!(found.len(), 2, "{pods}");
        found
    }

    /// Restarts `orders`, and waits until the restart is complete.
    async fn restart_orders(&self) {
        let orders = "deployment/orders";
        let restart = ["rollout", "restart", "-n", "shop", orders];
        self.cluster.kubectl(&restart).await;
        self.cluster.rolled_out("shop", orders).await;
    }
}

/// Changes that continue in the background.
struct Changes {
    running: Process,
    stop: PathBuf,
}

impl Changes {
    /// Pods, and policies, that one `kubectl` creates.
    const AT_ONCE: usize = 10;

    fn count(&self) -> usize {
        self.running.out().lines().count()
    }

    /// Waits until `more` further pods and policies are created or refused.
    async fn continue_for(&self, more: usize) {
        let aim = self.count() + more;
        let state = async || (self.running.is_alive(), self.count());
        let what = format!("{aim} changes were tried");
        wait::until_value(what, state, |(_, count)| *count >= aim).await;
    }

    /// Ends them. Admission answered and accepted all.
    async fn assert_none_was_refused(self, mesh: &Mesh) {
        std::fs::write(&self.stop, "").expect("a file");
        self.running.ended().await;
        let out = self.running.out();
        let all = out.lines().count();
        let refused: Vec<&str> = out
            .lines()
            .filter(|line| !line.contains("(server dry run)"))
            .collect();
        if !refused.is_empty() {
            let events = ["get", "events", "-n", merlon::NAMESPACE, "-o", EVENTS];
            let events = mesh.cluster.kubectl(&events).await;
            panic!("of {all} changes: {refused:#?}\n{events}");
        }
        assert!(all > 10, "{out}");
    }
}

/// Requests that continue in the background.
struct Load {
    running: Process,
    stop: String,
}

impl Load {
    fn count(&self) -> usize {
        self.running.out().lines().count()
    }

    /// Waits until `more` further requests are answered.
    async fn continues(&self, more: usize) {
        let aim = self.count() + more;
        let state = async || (self.running.is_alive(), self.count(), self.running.err());
        let what = format!("it is running, and {aim} calls are answered");
        wait::until_value(what, state, |(_, count, _)| *count >= aim).await;
    }

    /// Ends the load. Every call was answered with 200.
    async fn assert_no_failures(self, mesh: &Mesh) {
        let from = "deploy/web";
        mesh.cluster
            .exec("shop", from, &["touch", &self.stop])
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
async fn all_replicas_of_the_control_plane_may_be_killed_without_a_failed_call() {
    alone(async |mesh| {
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
                    OF_REPLICAS,
                    "--grace-period=0",
                    "--force",
                ])
                .await;
            load.continues(200).await;
        }
        mesh.cluster.rolled_out(merlon::NAMESPACE, REPLICAS).await;
        load.assert_no_failures(mesh).await;
    })
    .await;
}

#[tokio::test]
async fn a_rolling_restart_of_a_service_loses_no_call() {
    alone(async |mesh| {
        let load = mesh.load();
        load.continues(100).await;
        mesh.restart_orders().await;
        load.continues(200).await;
        load.assert_no_failures(mesh).await;
    })
    .await;
}

#[tokio::test]
async fn an_outage_of_the_api_server_loses_no_call_and_delays_only_changes() {
    alone(async |mesh| {
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
        let replicas = mesh.control_plane_addresses().await;
        cluster.pause_api_server();
        let paused = Instant::now();
        wait::until("the outage has lasted, and every replica reports it", async || {
            let mut reported = 0;
            for replica in &replicas {
                let page = format!("http://{replica}:7567/ready");
                let page = cluster
                    .inside("page", &tools::installed("busybox"))
                    .args(["wget", "-qO-", &page])
                    .run()
                    .await;
                assert!(page.out.starts_with("ready"), "{page:?}");
                reported += usize::from(page.out.contains("the cluster does not answer"));
            }
            reported == replicas.len() && paused.elapsed() > OUTAGE
        })
        .await;
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
        mesh.apply(LIMIT).await;
        cluster.programmed("shop", "ratelimit/many").await;
        cluster
            .kubectl(&["delete", "ratelimit", "many", "-n", "shop"])
            .await;
        // A node that could not report its status counts as lost for a moment, and its pods as not ready.
        wait::until("`merlon check` succeeds again", async || {
            cluster.merlon(&["check"]).await.code() == 0
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn uninstallation_leaves_nothing_and_services_run_as_before() {
    alone_and_last(async |mesh| {
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
    })
    .await;
}
