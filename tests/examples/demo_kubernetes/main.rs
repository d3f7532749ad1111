//! `make demo-kubernetes`: a demo of Merlon on a temporary Kubernetes cluster, step by step. Exits with 0 only if every step
//! succeeded, and lists the steps that failed.

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
            "error: a cluster needs root to create namespaces, mounts and cgroups\nhint: sudo make demo-kubernetes"
        );
        return std::process::ExitCode::FAILURE;
    }
    let mut story = Story::default();
    println!(
        "Starting a Kubernetes cluster with one node: API server, kubelet, containerd, kube-proxy, CoreDNS."
    );
    let cluster = Cluster::start().await;
    let demo = Demo { cluster: &cluster };
    run(&demo, &mut story).await;
    story.end()
}

struct Demo<'a> {
    cluster: &'a Cluster,
}

async fn run(demo: &Demo<'_>, story: &mut Story) {
    let cluster = demo.cluster;
    let mut bao = None;
    story
        .step(
            "start OpenBao in the cluster and set it up with certs/issuer/vault/setup.sh",
            async {
                let own = cluster.openbao().await;
                let policy = own.cli(&["policy", "read", "merlon-control-plane"]).await;
                bao = Some(own);
                outcome(
                    policy.contains("pki-int/sign/svid"),
                    "its policy allows the control plane to sign certificates and nothing else",
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
            outcome(checked.code() == 0, &format!("`merlon check`: {seen}"))
        })
        .await;
    before(demo, story).await;
    permitted(demo, story).await;
    refusals(demo, story).await;
    outages(demo, story, &bao).await;
}

/// The services before and after they join the mesh.
async fn before(demo: &Demo<'_>, story: &mut Story) {
    story
        .step(
            "two services without a mesh: web calls http://orders.shop",
            async {
                demo.cluster.apply(PROGRAMS).await;
                demo.available("shop").await;
                let wire = demo.cluster.wire();
                // A node forwards connections of a new Service shortly after its pods are ready.
                wait::until("the call is answered", async || {
                    let answer = demo.curl("web", &["http://orders.shop/"]).await;
                    answer.out.ends_with("\n200")
                })
                .await;
                let exposed = wire.exposed(&[CANARY], async |text| {
                    demo.cluster.in_plain(text).await;
                });
                outcome(
                    exposed.await.is_some(),
                    "200, and the response is in plain text on the network",
                )
            },
        )
        .await;
    story
        .step("kubectl label namespace shop merlon.io/inject=enabled, then kubectl rollout restart", async {
            let label = ["label", "namespace", "shop", "merlon.io/inject=enabled"];
            demo.cluster.kubectl(&label).await;
            demo.restart().await;
            let pods = demo.cluster.json(&["get", "pods", "-n", "shop", "-l", "merlon.io/meshed=true"]).await;
            let count = pods["items"].as_array().map_or(0, Vec::len);
            let answer = demo.curl("web", &["http://orders.shop/"]).await;
            outcome(
                count >= 4 && answer.out.ends_with("\n403"),
                &format!("{count} pods have a sidecar; the same call gets 403, because no policy permits it"),
            )
        })
        .await;
}

/// Permitted calls.
async fn permitted(demo: &Demo<'_>, story: &mut Story) {
    story
        .step("kubectl apply a policy: web may call orders", async {
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
            outcome(
                row.get(1..4) == Some(&["True", "True", "2/2"]),
                &format!("kubectl get shows: {}", row.join(" ")),
            )
        })
        .await;
    story
        .step("the same call again", async {
            let wire = demo.cluster.wire();
            let answer = demo.curl("web", &["http://orders.shop/"]).await;
            let exposed = wire.exposed(&[CANARY], async |text| {
                demo.cluster.in_plain(text).await;
            });
            outcome(
                answer.out.ends_with("\n200") && exposed.await.is_none(),
                "200, encrypted on the network: mutual TLS between the two service accounts",
            )
        })
        .await;
    story
        .step(
            "orders receives the identity of the caller; a forged header is removed",
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
                outcome(
                    answer.out.contains(&caller) && !answer.out.contains("forged"),
                    caller.trim(),
                )
            },
        )
        .await;
}

/// Denied calls and rejected resources.
async fn refusals(demo: &Demo<'_>, story: &mut Story) {
    story
        .step(
            "another service account of the namespace calls; merlon explain shows why it is denied",
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
                let decision = explained
                    .out
                    .lines()
                    .find(|line| line.starts_with("Decided"))
                    .unwrap_or_default();
                outcome(
                    answer.out.ends_with("\n403") && explained.out.contains("sa/other"),
                    &format!("403; {decision}"),
                )
            },
        )
        .await;
    story
        .step(
            "a pod outside the mesh calls a pod of orders directly",
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
                    .exec("default", "outsider", &["curl", "-s", "-m", "10", &url])
                    .await;
                outcome(
                    answer.code() != 0 && !answer.out.contains(CANARY),
                    "the connection is refused before any request is read",
                )
            },
        )
        .await;
    story
        .step("kubectl apply a policy with an error", async {
            let file = demo.cluster.folder().join("broken.yaml");
            std::fs::write(&file, BROKEN).expect("a file");
            let refused = demo
                .cluster
                .try_kubectl(&["apply", "-f", &file.display().to_string()])
                .await;
            let reason = refused
                .err
                .split("denied the request: ")
                .nth(1)
                .unwrap_or(&refused.err);
            outcome(
                refused.code() != 0 && refused.err.contains("line 4, column 13"),
                &format!("rejected at admission: {}", reason.trim()),
            )
        })
        .await;
    story
        .step(
            "a request body that violates the JSON Schema of orders",
            async {
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
                outcome(
                    wrong.out.ends_with("\n400")
                        && wrong.out.contains("/quantity")
                        && right.out.ends_with("\n200"),
                    "400 with the location, /quantity; a valid body gets 200",
                )
            },
        )
        .await;
    story
        .step("more calls than a rate limit permits", async {
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
            outcome(
                passed > 0 && refused > 0 && passed + refused == 20 && gone.contains("deleted"),
                &format!("{passed} of 20 calls passed, {refused} got 429"),
            )
        })
        .await;
}

/// An outage of the control plane and OpenBao, recovery, and uninstallation.
async fn outages(demo: &Demo<'_>, story: &mut Story, bao: &ClusterBao<'_>) {
    let cluster = demo.cluster;
    let calls = async |count: usize| {
        let url = format!("http://orders.shop/?[1-{count}]");
        let answer = demo.curl("web", &["-o", "/dev/null", &url]).await;
        answer.out.lines().filter(|line| *line == "200").count()
    };
    wait::until("the rate limit is removed", async || calls(20).await == 20).await;
    story
        .step(
            "delete all replicas of the control plane and seal OpenBao",
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
                outcome(
                    passed == 500,
                    &format!("{passed} of 500 calls during the outage succeeded"),
                )
            },
        )
        .await;
    story
        .step(
            "unseal OpenBao, wait for the control plane, restart all pods",
            async {
                bao.unseal().await;
                let deployment = "deployment/merlon-control-plane";
                let back = [
                    "rollout",
                    "status",
                    "-n",
                    merlon::NAMESPACE,
                    deployment,
                    "--timeout=200s",
                ];
                cluster.kubectl(&back).await;
                demo.restart().await;
                let passed = calls(100).await;
                let checked = demo.cluster.merlon(&["check"]).await;
                outcome(
                    passed == 100 && checked.code() == 0,
                    "new certificates are issued, and `merlon check` reports no problems",
                )
            },
        )
        .await;
    story
        .step("helm uninstall, then kubectl rollout restart", async {
            cluster
                .kubectl(&["label", "namespace", "shop", "merlon.io/inject-"])
                .await;
            cluster
                .helm(&["uninstall", "merlon", "-n", merlon::NAMESPACE, "--wait"])
                .await;
            demo.restart().await;
            // kube-proxy updates its rules shortly after the old pods are deleted.
            wait::until("the services work without the mesh", async || {
                let answer = demo.curl("web", &["http://orders.shop/"]).await;
                answer.out.ends_with("\n200")
            })
            .await;
            outcome(true, "the services work as before, without the mesh")
        })
        .await;
}

impl Demo<'_> {
    async fn available(&self, namespace: &str) {
        self.cluster.available(namespace).await;
        self.cluster
            .wait_for(&["--for=condition=Ready", "-n", "default", "pod/outsider"])
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

/// The result of a step: whether it succeeded, and what was observed.
fn outcome(succeeded: bool, observed: &str) -> Result<String, String> {
    match succeeded {
        true => Ok(observed.to_owned()),
        false => Err(format!("not true: {observed}")),
    }
}
