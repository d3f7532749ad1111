//! `make demo-kubernetes`: Merlon on a Kubernetes cluster of its own, told step by step. Ends with 0 only if every step did
//! what it must, and says which did not.

mod documents;
mod story;

use merlon_tests::{
    Cluster,
    cluster::{self, merlon, openbao::ClusterBao},
    process::Output,
    wait,
};

use self::{
    documents::{BROKEN, LIMIT, POLICY, PROGRAMS, SCHEMA},
    story::Story,
};

const CANARY: &str = "two-orders-of-ada";

#[tokio::main]
async fn main() -> std::process::ExitCode {
    if !cluster::is_possible() {
        eprintln!(
            "error: a cluster needs root: it makes namespaces, mounts and cgroups\nhint: sudo make demo-kubernetes"
        );
        return std::process::ExitCode::FAILURE;
    }
    let mut story = Story::default();
    println!(
        "A Kubernetes cluster of one node begins: API server, kubelet, containerd, kube-proxy, CoreDNS."
    );
    let cluster = Cluster::start().await;
    let demo = Demo { cluster: &cluster };
    tell(&demo, &mut story).await;
    story.end()
}

struct Demo<'a> {
    cluster: &'a Cluster,
}

async fn tell(demo: &Demo<'_>, story: &mut Story) {
    let cluster = demo.cluster;
    let mut bao = None;
    story
        .step(
            "OpenBao runs in the cluster, and its administrator runs certs/issuer/vault/setup.sh",
            async {
                let own = cluster.openbao().await;
                let policy = own.cli(&["policy", "read", "merlon-control-plane"]).await;
                bao = Some(own);
                says(
                    policy.contains("pki-int/sign/svid"),
                    "its policy lets the control plane sign, and nothing else",
                )
            },
        )
        .await;
    let Some(bao) = bao else { return };
    story
        .step("helm install merlon-crds, helm install merlon", async {
            cluster.install_merlon(&bao.values()).await;
            let checked = demo.cluster.merlon(&["check"]).await;
            let seen = checked.out.lines().find(|line| line.contains("replicas"));
            let seen = seen.unwrap_or(&checked.out).trim_start_matches("ok").trim();
            says(checked.code() == 0, &format!("`merlon check`: {seen}"))
        })
        .await;
    before(demo, story).await;
    inside(demo, story).await;
    refusals(demo, story).await;
    trouble(demo, story, &bao).await;
}

/// Services as they are without a mesh.
async fn before(demo: &Demo<'_>, story: &mut Story) {
    story
        .step(
            "two services that know nothing of a mesh: web calls http://orders.shop",
            async {
                demo.cluster.apply(PROGRAMS).await;
                demo.available("shop").await;
                let wire = demo.cluster.wire();
                let answer = demo.curl("web", &["http://orders.shop/"]).await;
                says(
                    answer.out.ends_with("\n200") && wire.has(CANARY),
                    "200, and whoever listens on the wire reads the answer",
                )
            },
        )
        .await;
    story
        .step("kubectl label namespace shop merlon.io/inject=enabled, and a restart", async {
            let label = ["label", "namespace", "shop", "merlon.io/inject=enabled"];
            demo.cluster.kubectl(&label).await;
            demo.restart().await;
            let pods = demo.cluster.json(&["get", "pods", "-n", "shop", "-l", "merlon.io/meshed=true"]).await;
            let count = pods["items"].as_array().map_or(0, Vec::len);
            let answer = demo.curl("web", &["http://orders.shop/"]).await;
            says(
                count >= 4 && answer.out.ends_with("\n403"),
                &format!("{count} pods have a sidecar; the same call gets 403: nothing is allowed until a policy allows it"),
            )
        })
        .await;
}

/// The mesh as it is meant.
async fn inside(demo: &Demo<'_>, story: &mut Story) {
    story
        .step("kubectl apply of a policy: web may read orders", async {
            demo.cluster.apply(POLICY).await;
            demo.cluster
                .programmed("shop", "authorizationpolicy/orders")
                .await;
            let table = demo
                .cluster
                .kubectl(&["get", "authorizationpolicy", "orders", "-n", "shop"])
                .await;
            let row: Vec<&str> = table
                .lines()
                .nth(1)
                .unwrap_or_default()
                .split_whitespace()
                .collect();
            says(
                row.get(1..4) == Some(&["True", "True", "2/2"]),
                &format!("kubectl get shows: {}", row.join(" ")),
            )
        })
        .await;
    story
        .step("the same call again", async {
            let wire = demo.cluster.wire();
            let answer = demo.curl("web", &["http://orders.shop/"]).await;
            says(
                answer.out.ends_with("\n200") && wire.bytes() > 0 && !wire.has(CANARY),
                "200, and on the wire there is nothing to read: mutual TLS between the two service accounts",
            )
        })
        .await;
    story
        .step(
            "orders is told who called, and a forged header does not get through",
            async {
                let forged = [
                    "http://orders.shop/cgi-bin/head",
                    "-H",
                    "merlon-caller: spiffe://forged",
                ];
                let answer = demo.curl("web", &forged).await;
                let caller = format!(
                    "HTTP_MERLON_CALLER=spiffe://{}/ns/shop/sa/web\n",
                    merlon::TRUST_DOMAIN
                );
                says(
                    answer.out.contains(&caller) && !answer.out.contains("forged"),
                    caller.trim(),
                )
            },
        )
        .await;
}

/// Those who may not.
async fn refusals(demo: &Demo<'_>, story: &mut Story) {
    story
        .step(
            "another service account of the same namespace calls, and merlon explain says why not",
            async {
                let answer = demo.curl("other", &["http://orders.shop/"]).await;
                let id = answer
                    .out
                    .split("\"decision_id\":\"")
                    .nth(1)
                    .and_then(|rest| rest.split('"').next());
                let explained = demo
                    .cluster
                    .merlon(&["explain", "--kubernetes", id.unwrap_or_default()])
                    .await;
                let told = explained
                    .out
                    .lines()
                    .find(|line| line.starts_with("Decided"))
                    .unwrap_or_default();
                says(
                    answer.out.ends_with("\n403") && explained.out.contains("sa/other"),
                    &format!("403; {told}"),
                )
            },
        )
        .await;
    story
        .step(
            "a pod outside of the mesh calls the meshed port directly",
            async {
                let pods = demo
                    .cluster
                    .json(&["get", "pods", "-n", "shop", "-l", "app=orders"])
                    .await;
                let address = pods["items"][0]["status"]["podIP"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                let url = format!("http://{address}:8080/");
                let answer = demo
                    .cluster
                    .exec("default", "stranger", &["curl", "-s", "-m", "10", &url])
                    .await;
                says(
                    answer.code() != 0 && !answer.out.contains(CANARY),
                    "refused before it could say anything",
                )
            },
        )
        .await;
    story
        .step("a policy with a mistake in it", async {
            let file = demo.cluster.folder().join("broken.yaml");
            std::fs::write(&file, BROKEN).expect("a file");
            let refused = demo
                .cluster
                .try_kubectl(&["apply", "-f", &file.display().to_string()])
                .await;
            let told = refused
                .err
                .split("denied the request: ")
                .nth(1)
                .unwrap_or(&refused.err);
            says(
                refused.code() != 0 && refused.err.contains("line 4, column 13"),
                &format!("refused at admission: {}", told.trim()),
            )
        })
        .await;
    story
        .step("a body that is not what orders takes", async {
            demo.cluster.apply(SCHEMA).await;
            demo.cluster
                .programmed("shop", "requestvalidation/orders")
                .await;
            let post = |body: &'static str| {
                [
                    "http://orders.shop/cgi-bin/order",
                    "-H",
                    "content-type: application/json",
                    "-d",
                    body,
                ]
            };
            let wrong = demo.curl("web", &post(r#"{"quantity":0}"#)).await;
            let right = demo.curl("web", &post(r#"{"quantity":2}"#)).await;
            says(
                wrong.out.ends_with("\n400")
                    && wrong.out.contains("/quantity")
                    && right.out.ends_with("\n200"),
                "400 that names the place, /quantity; with a right one 200",
            )
        })
        .await;
    story
        .step("more calls than a limit lets through", async {
            demo.cluster.apply(LIMIT).await;
            demo.cluster.programmed("shop", "ratelimit/orders").await;
            let answer = demo
                .curl("web", &["-o", "/dev/null", "http://orders.shop/?[1-20]"])
                .await;
            let of = |status: &str| answer.out.lines().filter(|line| *line == status).count();
            let (passed, refused) = (of("200"), of("429"));
            let gone = demo
                .cluster
                .kubectl(&["delete", "ratelimit", "orders", "-n", "shop"])
                .await;
            says(
                passed > 0 && refused > 0 && passed + refused == 20 && gone.contains("deleted"),
                &format!("{passed} of 20 passed, {refused} got 429"),
            )
        })
        .await;
}

/// What goes on when something is away.
async fn trouble(demo: &Demo<'_>, story: &mut Story, bao: &ClusterBao<'_>) {
    let cluster = demo.cluster;
    let calls = async |count: usize| {
        let url = format!("http://orders.shop/?[1-{count}]");
        let answer = demo.curl("web", &["-o", "/dev/null", &url]).await;
        answer.out.lines().filter(|line| *line == "200").count()
    };
    wait::until("the limit is gone", async || calls(20).await == 20).await;
    story
        .step(
            "all replicas of the control plane are deleted, and OpenBao is sealed",
            async {
                bao.seal().await;
                let selector = "app.kubernetes.io/component=control-plane";
                let deleted = [
                    "delete",
                    "pods",
                    "-n",
                    merlon::NAMESPACE,
                    "-l",
                    selector,
                    "--wait=false",
                ];
                cluster.kubectl(&deleted).await;
                let passed = calls(500).await;
                says(
                    passed == 500,
                    &format!("{passed} of 500 calls meanwhile were answered"),
                )
            },
        )
        .await;
    story
        .step(
            "OpenBao is unsealed, the control plane comes back, and all pods are made anew",
            async {
                bao.unseal().await;
                let deployment = "deployment/merlon-control-plane";
                let back = [
                    "rollout",
                    "status",
                    "-n",
                    merlon::NAMESPACE,
                    deployment,
                    "--timeout=60s",
                ];
                cluster.kubectl(&back).await;
                demo.restart().await;
                let passed = calls(100).await;
                let checked = demo.cluster.merlon(&["check"]).await;
                says(
                    passed == 100 && checked.code() == 0,
                    "new certificates are issued, `merlon check` finds all well",
                )
            },
        )
        .await;
    story
        .step("helm uninstall, and a restart", async {
            cluster
                .kubectl(&["label", "namespace", "shop", "merlon.io/inject-"])
                .await;
            cluster
                .helm(&["uninstall", "merlon", "-n", merlon::NAMESPACE, "--wait"])
                .await;
            demo.restart().await;
            // A node forgets the pods that were a moment after they are gone.
            wait::until("the services run as they did before", async || {
                let answer = demo.curl("web", &["http://orders.shop/"]).await;
                answer.out.ends_with("\n200")
            })
            .await;
            says(true, "the services run as they did before")
        })
        .await;
}

impl Demo<'_> {
    async fn available(&self, namespace: &str) {
        self.cluster.available(namespace).await;
        self.cluster
            .wait_for(&["--for=condition=Ready", "-n", "default", "pod/stranger"])
            .await;
    }

    async fn restart(&self) {
        self.cluster
            .kubectl(&["rollout", "restart", "deployment", "-n", "shop"])
            .await;
        for name in ["orders", "web", "other"] {
            let deployment = format!("deployment/{name}");
            self.cluster.rolled_out("shop", &deployment).await;
        }
    }

    async fn curl(&self, from: &str, arguments: &[&str]) -> Output {
        self.cluster.curl("shop", from, arguments).await
    }
}

/// What a step came to: whether it did what it must, and what was seen.
fn says(right: bool, seen: &str) -> Result<String, String> {
    match right {
        true => Ok(seen.to_owned()),
        false => Err(format!("not so: {seen}")),
    }
}
