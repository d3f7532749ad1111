//! The control plane on a real Kubernetes API: resources, status, identities, replicas, rights.

mod certificates;
mod restarts;
mod rights;

use std::net::SocketAddr;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::StatusCode;
use merlon_certs::{PrivateKey, pem};
use merlon_tests::{
    ApiServer, Client, Reply,
    api_server::{Pod, Replica},
    app::App,
    hostile,
    mesh::Sidecar,
    until, wait,
};
use serde_json::{Value, json};
use tonic::Code;

const MESH: &str = "
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: cluster.merlon.test }
";

const POLICY: &str = "/apis/merlon.io/v1alpha1/namespaces/shop/authorizationpolicies/orders";
const MESH_CONFIG: &str = "/apis/merlon.io/v1alpha1/namespaces/merlon-system/meshconfigs/mesh";

fn policy(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
    format!(
        "apiVersion: merlon.io/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{ name: orders, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: orders }}]\n  policies: |\n{}\n",
        lines.join("\n")
    )
}

const WEB_MAY_GET: &str = "@id(\"web\")\npermit (\n  principal == Workload::\"shop/web\",\n  action == Action::\"GET\",\n  resource\n);";
const INVALID: &str = "@id(\"web\")\npermit (\n  principal == Workload::\"shop/web\",\n  action == Action::\"GIT\",\n  resource\n);";

/// What an encoded field contains, such as an entry of a Secret. Empty if it is missing.
fn decoded(field: &Value) -> Vec<u8> {
    let text = field.as_str().unwrap_or_default();
    BASE64_STANDARD.decode(text).expect("base64")
}

/// A program behind its proxy, and another that calls it through its own.
struct Shop {
    orders: App,
    server: Sidecar,
    caller: Sidecar,
    web: Pod,
}

impl Shop {
    /// Two pods, whose proxies connect to these replicas.
    async fn open(api: &ApiServer, of_server: &Replica, of_caller: &Replica) -> Self {
        let orders = App::http().await;
        let port = orders.address().port();
        // As with interception, other proxies reach this one at the pod's address and the program's port.
        let inbound = SocketAddr::from(([127, 1, 0, 2], port));
        let pod = api.pod("shop", "orders", "127.1.0.2").await;
        let web = api.pod("shop", "web", "127.1.0.3").await;
        api.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: orders, namespace: shop }}\n\
             spec: {{ selector: {{ app: orders }}, ports: [{{ port: 80, targetPort: {port} }}] }}\n"
        ))
        .await;
        let server = api.sidecar(&pod, of_server, inbound).await;
        let caller = api
            .sidecar(&web, of_caller, SocketAddr::from(([127, 1, 0, 3], port)))
            .await;
        server.start().await;
        caller.start().await;
        Self {
            orders,
            server,
            caller,
            web,
        }
    }

    async fn get(&self) -> Reply {
        let call = Client::new(self.caller.outbound(), "shop").get("orders", "/");
        call.await
    }

    async fn until_answered(&self, status: StatusCode) {
        until(format!("the answer is {status}"), async || {
            self.get().await.status == status
        })
        .await;
    }
}

/// Kills the replica that both proxies of the shop use, and starts it again.
async fn restart(replica: &Replica) {
    replica.kill9();
    replica.launch();
    replica.until_ready().await;
    until("both proxies are back", async || {
        let proxies = replica.get("/v1/proxies").await;
        let list = proxies.as_array().expect("a list");
        list.len() == 2 && list.iter().all(|proxy| proxy["state"] == "acknowledged")
    })
    .await;
}

#[tokio::test]
async fn a_policy_is_in_force_when_its_status_reports_it_and_a_broken_edit_leaves_it_in_force() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let replica = api.replica("one").await;
    let shop = Shop::open(&api, &replica, &replica).await;
    shop.get()
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");

    api.apply(&policy(WEB_MAY_GET)).await;
    api.until_condition(POLICY, "Accepted", "True").await;
    let (reason, message) = api.until_condition(POLICY, "Programmed", "True").await;
    assert_eq!((&reason[..], &message[..]), ("Programmed", "1/1 proxies"));
    shop.get().await.is_ok();
    assert_eq!(shop.orders.seen().len(), 1);

    api.apply(&policy(INVALID)).await;
    let (reason, message) = api.until_condition(POLICY, "Accepted", "False").await;
    assert_eq!(reason, "Invalid");
    assert!(
        message.contains("spec.policies line 4, column "),
        "{message}"
    );
    assert!(message.contains("hint: "), "{message}");
    assert!(message.contains("generation 1 stays in force"), "{message}");
    shop.get().await.is_ok();

    // The broken policy does not delay another resource.
    api.apply(
        "apiVersion: merlon.io/v1alpha1\nkind: RateLimit\nmetadata: { name: few, namespace: shop }\n\
         spec:\n  limits: [{ name: few, rate: { requests: 1, per: 1h }, burst: 1 }]\n",
    )
    .await;
    let limit = "/apis/merlon.io/v1alpha1/namespaces/shop/ratelimits/few";
    api.until_condition(limit, "Programmed", "True").await;
    shop.until_answered(StatusCode::TOO_MANY_REQUESTS).await;
    api.delete(limit).await;
    shop.until_answered(StatusCode::OK).await;

    // A replica that starts now has the same state in force.
    restart(&replica).await;
    shop.get().await.is_ok();
}

#[tokio::test]
async fn a_control_plane_that_is_not_ready_reports_the_cause_and_the_fix() {
    let api = ApiServer::without_crds().await;
    let replica = api.launch_replica("one").await;
    until("the page reports the missing definitions", async || {
        let (status, text) = replica.page("/ready").await;
        status == 503 && text.contains("merlon crds | kubectl apply")
    })
    .await;
    assert_eq!(replica.page("/live").await.0, 200);
    // It also ends in this state when it is asked to.
    replica.stop().await;
    replica.launch();
    api.install_crds().await;
    until("the page reports the missing MeshConfig", async || {
        let (status, text) = replica.page("/ready").await;
        status == 503 && text.contains("there is no MeshConfig")
    })
    .await;
    api.apply(&MESH.replace(
        "trustDomain: cluster.merlon.test",
        "trustDomain: cluster.merlon.test, certificates: { lifetime: 2s }",
    ))
    .await;
    let (_, message) = api.until_condition(MESH_CONFIG, "Accepted", "False").await;
    assert!(message.contains("spec.certificates.lifetime"), "{message}");
    assert_eq!(replica.page("/ready").await.0, 503);

    api.apply(MESH).await;
    replica.until_ready().await;
    api.until_condition(MESH_CONFIG, "Accepted", "True").await;

    let other = MESH.replace("cluster.merlon.test", "other.test");
    let refused = api
        .try_apply(&other)
        .await
        .expect_err("the trust domain cannot change");
    assert!(refused.contains("`trustDomain` cannot change"), "{refused}");
    let wrong = policy(WEB_MAY_GET).replace("kind: Service, name: orders", "kind: Service");
    let refused = api
        .try_apply(&wrong)
        .await
        .expect_err("a target needs a name");
    assert!(refused.contains("`name` is missing"), "{refused}");
}

#[tokio::test]
async fn two_replicas_share_one_ca_count_together_and_either_may_die() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let limits = json!({ "lease": {
        "duration": "5s", "retry": "500ms", "renewDeadline": "3s", "timeout": "1s",
    } });
    let (first, second) = tokio::join!(
        api.replica_with("one", &limits),
        api.replica_with("two", &limits)
    );
    let shop = Shop::open(&api, &first, &second).await;
    api.apply(&policy(WEB_MAY_GET)).await;
    api.until_condition(POLICY, "Programmed", "True").await;
    // Each proxy got its certificate from another replica, and they trust each other.
    shop.get().await.is_ok();
    // The CA is in one Secret, with its key.
    let secret = "/api/v1/namespaces/merlon-system/secrets/merlon-ca";
    let secret = api.get(secret).await["data"].clone();
    PrivateKey::from_pkcs8_pem(&decoded(&secret["ca.key"])).expect("a key");
    let bundle = "/api/v1/namespaces/shop/configmaps/merlon-trust-bundle";
    let trusted = api.get(bundle).await["data"]["bundle.pem"].clone();
    let trusted = trusted.as_str().unwrap_or_default().as_bytes();
    let roots = pem::certificates(trusted).expect("roots");
    let root = pem::certificates(&decoded(&secret["ca.pem"])).expect("a root");
    assert_eq!(roots, root);
    // The status counts the proxies of all replicas.
    wait::until_some("both proxies are counted", async || {
        let mesh = api.try_get(MESH_CONFIG).await?;
        (mesh["status"]["proxies"] == "2/2").then_some(())
    })
    .await;

    let lease = "/apis/coordination.k8s.io/v1/namespaces/merlon-system/leases/merlon-leader";
    let holder = async || {
        let lease = api.get(lease).await;
        lease["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let leader = holder().await;
    let (leads, follows) = if leader == "one" {
        (&first, &second)
    } else {
        (&second, &first)
    };
    leads.kill9();
    until("the other replica leads", async || holder().await != leader).await;
    api.apply(&policy(INVALID)).await;
    let (_, message) = api.until_condition(POLICY, "Accepted", "False").await;
    assert!(message.contains("generation 1 stays in force"), "{message}");
    shop.get().await.is_ok();

    // A modified bundle is restored, and a new namespace gets one.
    let right = api.get(bundle).await["data"].clone();
    let broken = json!({ "data": { "bundle.pem": "" } });
    api.call(http::Method::PATCH, bundle, Some(&broken)).await;
    until("the bundle is restored", async || {
        api.get(bundle).await["data"] == right
    })
    .await;
    api.namespace("late").await;
    wait::until_some("the new namespace has the bundle", async || {
        let bundle = api
            .try_get("/api/v1/namespaces/late/configmaps/merlon-trust-bundle")
            .await?;
        (bundle["data"] == right).then_some(())
    })
    .await;
    assert_eq!(follows.page("/ready").await.0, 200);
}

#[tokio::test]
async fn without_the_api_server_proxies_continue_and_later_changes_are_picked_up() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let replica = api.replica("one").await;
    let shop = Shop::open(&api, &replica, &replica).await;
    api.apply(&policy(WEB_MAY_GET)).await;
    api.until_condition(POLICY, "Programmed", "True").await;

    let token = api.token_of(&shop.web).await;
    let trust = api.trust("shop").await;

    api.kill9();
    until("the replica reports the outage", async || {
        let (status, text) = replica.page("/ready").await;
        status == 200 && text.contains("the cluster does not answer")
    })
    .await;
    assert!(!replica.get("/v1/status").await["clusterAway"].is_null());
    shop.get().await.is_ok();
    // A proxy that has a certificate restarts and gets its state.
    shop.caller.kill9();
    shop.caller.start().await;
    shop.get().await.is_ok();
    let seen = shop.orders.seen().len();
    // A proxy that needs the API server to prove its identity gets no certificate.
    let refused = replica.issue(&trust, &shop.web, &token).await;
    let refused = refused.expect_err("the API server is down");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    api.restart().await;
    api.apply(&policy(&WEB_MAY_GET.replace("GET", "PUT"))).await;
    api.until_condition(POLICY, "Programmed", "True").await;
    shop.get()
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(shop.orders.seen().len(), seen);
    until("the replica no longer reports the outage", async || {
        replica.page("/ready").await == (200, "ready\n".to_owned())
    })
    .await;
    assert_eq!(shop.server.probe("/ready").await, 200);
}

#[tokio::test]
async fn hostile_resources_of_a_tenant_are_not_accepted_and_keep_no_replica_from_starting() {
    let api = ApiServer::start().await;
    // A share that none of them exceeds.
    api.apply(&MESH.replace(
        "merlon.test }",
        "merlon.test, policiesPerNamespace: 10000 }",
    ))
    .await;
    let replica = api.replica("one").await;
    let shop = Shop::open(&api, &replica, &replica).await;
    let hostile = hostile::documents()
        .into_iter()
        .filter(|one| one.in_cluster);
    let hostile: Vec<_> = hostile.enumerate().collect();
    for (number, document) in &hostile {
        let name = format!("name: hostile-{number}");
        let text = document.text.replacen("name: hostile", &name, 1);
        api.apply(&text).await;
    }
    let all_are_refused = async || {
        for (number, document) in &hostile {
            let validates = document.text.contains("kind: RequestValidation");
            let plural = if validates {
                "requestvalidations"
            } else {
                "authorizationpolicies"
            };
            let path =
                format!("/apis/merlon.io/v1alpha1/namespaces/shop/{plural}/hostile-{number}");
            let (reason, message) = api.until_condition(&path, "Accepted", "False").await;
            assert_eq!(reason, "Invalid", "{}: {message}", document.name);
            assert!(
                message.contains(document.problem),
                "{}: {message}",
                document.name
            );
        }
    };
    all_are_refused().await;
    api.apply(&policy(WEB_MAY_GET)).await;
    api.until_condition(POLICY, "Programmed", "True").await;
    shop.get().await.is_ok();

    // A replica that starts reads them all at once.
    replica.kill9();
    replica.launch();
    replica.until_ready().await;
    all_are_refused().await;
    let only_head = WEB_MAY_GET.replace("GET", "HEAD");
    api.apply(&policy(&only_head)).await;
    api.until_condition(POLICY, "Programmed", "True").await;
    let seen = shop.orders.seen().len();
    let refused = shop.get().await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(shop.orders.seen().len(), seen);
}
