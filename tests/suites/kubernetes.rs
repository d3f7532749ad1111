//! The control plane on a real Kubernetes API: resources, status, identities, replicas, rights.

use std::{collections::BTreeSet, net::SocketAddr};

use http::StatusCode;
use merlon_tests::{
    ApiServer, Client, Reply,
    api_server::{Pod, Replica},
    app::App,
    mesh::Sidecar,
    until, wait,
};
use serde_json::Value;
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
const NONSENSE: &str = "@id(\"web\")\npermit (\n  principal == Workload::\"shop/web\",\n  action == Action::\"GIT\",\n  resource\n);";

/// The names are what matters: nobody is asked.
const WEBHOOKS: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: { name: merlon-injector }
webhooks:
  - { name: inject.merlon.io, admissionReviewVersions: [v1], sideEffects: None, clientConfig: { url: 'https://127.0.0.1:1/' } }
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: { name: merlon-validator }
webhooks:
  - { name: policies.merlon.io, admissionReviewVersions: [v1], sideEffects: None, clientConfig: { url: 'https://127.0.0.1:1/' } }
";

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: merlon }
spec: { controllerName: merlon.io/gateway }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: edge, namespace: merlon-system }
spec:
  gatewayClassName: merlon
  listeners:
    - { name: http, port: 80, protocol: HTTP, allowedRoutes: { namespaces: { from: All } } }
    - { name: https, port: 443, protocol: HTTPS, tls: { certificateRefs: [{ name: gone }] } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: shop }
spec:
  parentRefs: [{ name: edge, namespace: merlon-system }]
  rules: [{ backendRefs: [{ name: orders, port: 80 }] }]
";

/// A program behind its proxy, and another that calls it through its own.
struct Shop {
    orders: App,
    server: Sidecar,
    caller: Sidecar,
    web: Pod,
}

impl Shop {
    /// Two pods, whose proxies follow these replicas.
    async fn open(api: &ApiServer, of_server: &Replica, of_caller: &Replica) -> Self {
        let orders = App::http().await;
        let port = orders.address().port();
        // As interception would have it: other proxies reach this one at the pod's address and the program's port.
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

#[tokio::test]
async fn a_policy_is_in_force_when_its_status_says_so_and_a_broken_one_leaves_it_in_force() {
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

    api.apply(&policy(NONSENSE)).await;
    let (reason, message) = api.until_condition(POLICY, "Accepted", "False").await;
    assert_eq!(reason, "Invalid");
    assert!(
        message.contains("spec.policies line 4, column "),
        "{message}"
    );
    assert!(message.contains("hint: "), "{message}");
    assert!(message.contains("generation 1 stays in force"), "{message}");
    shop.get().await.is_ok();

    // Another is not held up by it.
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

    // What a replica that begins now finds in force is the same.
    replica.kill9();
    replica.launch();
    replica.until_ready().await;
    until("both proxies are back", async || {
        let proxies = replica.get("/v1/proxies").await;
        let list = proxies.as_array().expect("a list");
        list.len() == 2 && list.iter().all(|proxy| proxy["state"] == "acknowledged")
    })
    .await;
    shop.get().await.is_ok();
}

#[tokio::test]
async fn what_keeps_a_control_plane_from_running_is_told_with_how_to_mend_it() {
    let api = ApiServer::without_crds().await;
    let replica = api.launch_replica("one").await;
    until("it says that the definitions are missing", async || {
        let (status, text) = replica.page("/ready").await;
        status == 503 && text.contains("merlon crds | kubectl apply")
    })
    .await;
    assert_eq!(replica.page("/live").await.0, 200);
    // Also then it ends as asked.
    replica.stop().await;
    replica.launch();
    api.install_crds().await;
    until("it says that there is no MeshConfig", async || {
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
        .expect_err("a mesh has one name");
    assert!(refused.contains("`trustDomain` cannot change"), "{refused}");
    let wrong = policy(WEB_MAY_GET).replace("kind: Service, name: orders", "kind: Service");
    let refused = api
        .try_apply(&wrong)
        .await
        .expect_err("a target has a name");
    assert!(refused.contains("`name` is missing"), "{refused}");
}

#[tokio::test]
async fn a_certificate_is_given_on_the_token_of_a_living_pod_and_on_nothing_else() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let replica = api.replica("one").await;
    let web = api.pod("shop", "web", "127.1.0.3").await;
    let account = ("shop", "web");
    let trust = api.trust("shop").await;

    let right = api.token_of(&web).await;
    let issued = replica.issue(&trust, &web, &right).await;
    assert_eq!(
        issued.expect("a certificate").id.to_string(),
        "spiffe://cluster.merlon.test/ns/shop/sa/web"
    );

    let other = api.pod("shop", "orders", "127.1.0.2").await;
    let foreign = api.token_of(&other).await;
    let (head, signature) = right.rsplit_once('.').expect("three parts");
    let (_, of_other) = foreign.rsplit_once('.').expect("three parts");
    assert_ne!(signature, of_other);
    for (what, token, code) in [
        (
            "for another audience",
            api.token(account, Some("vault"), Some(&web)).await,
            Code::PermissionDenied,
        ),
        (
            "for the API server",
            api.token(account, None, Some(&web)).await,
            Code::PermissionDenied,
        ),
        (
            "not bound to a pod",
            api.token(account, Some("merlon"), None).await,
            Code::PermissionDenied,
        ),
        (
            "signed by no key of this cluster",
            format!("{head}.{of_other}"),
            Code::PermissionDenied,
        ),
        ("of another account", foreign, Code::InvalidArgument),
        (
            "no token at all",
            "nothing".to_owned(),
            Code::PermissionDenied,
        ),
    ] {
        let refused = replica.issue(&trust, &web, &token).await.expect_err(what);
        assert_eq!(refused.code(), code, "{what}: {refused:?}");
    }

    // Gone is gone, also under the same name.
    api.delete("/api/v1/namespaces/shop/pods/web").await;
    let refused = replica
        .issue(&trust, &web, &right)
        .await
        .expect_err("the pod is gone");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let again = api.pod("shop", "web", "127.1.0.3").await;
    let refused = replica
        .issue(&trust, &web, &right)
        .await
        .expect_err("another pod's token");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let token = api.token_of(&again).await;
    replica
        .issue(&trust, &again, &token)
        .await
        .expect("a certificate");
    // The cluster renews the file under a proxy that waits.
    let sidecar = api
        .sidecar(&again, &replica, SocketAddr::from(([127, 1, 0, 3], 0)))
        .await;
    std::fs::write(api.token_file(&again), "an-old-token").expect("a file");
    sidecar.launch();
    until("it is refused", async || {
        sidecar
            .process_log()
            .contains("not a service account token")
    })
    .await;
    assert_eq!(sidecar.probe("/ready").await, 503);
    std::fs::write(api.token_file(&again), &token).expect("a file");
    sidecar.until_ready().await;

    let page = replica.page("/metrics").await.1;
    assert!(
        page.contains("merlon_certificates_issued_total{evidence=\"service-account\"} 3"),
        "{page}"
    );
}

#[tokio::test]
async fn a_certificate_renews_itself_alone_while_the_cluster_cannot_be_asked_and_not_after_its_pod()
{
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let replica = api.replica("one").await;
    let web = api.pod("shop", "web", "127.1.0.3").await;
    // The account goes on to have a pod when this one is gone.
    let _other = api.pod_of(("shop", "web"), "web-2", "127.1.0.4").await;
    let trust = api.trust("shop").await;
    let token = api.token_of(&web).await;
    let issued = replica.issue(&trust, &web, &token).await;
    let issued = issued.expect("a certificate");

    api.delete("/api/v1/namespaces/shop/pods/web").await;
    let refused = replica.issue(&trust, &web, &token).await;
    assert_eq!(
        refused.expect_err("its pod is gone").code(),
        Code::PermissionDenied
    );
    let refused = replica.renew(&issued).await.expect_err("its pod is gone");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("its pod's token"), "{refused:?}");

    // Who cannot be asked cannot say no: what runs goes on.
    api.kill9();
    until("the control plane notices", async || {
        replica.page("/ready").await.1.contains("since when")
    })
    .await;
    let refused = replica
        .renew(&issued)
        .await
        .expect_err("it may be back soon");
    assert_eq!(refused.code(), Code::PermissionDenied);
    wait::until_some("it is away for good", async || {
        replica.renew(&issued).await.ok()
    })
    .await;
    api.restart().await;
    until("the control plane is back", async || {
        replica.page("/ready").await.1 == "ready\n"
    })
    .await;
    let refused = replica.renew(&issued).await.expect_err("its pod is gone");
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn two_replicas_have_one_ca_count_together_and_either_may_die() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let (first, second) = tokio::join!(api.replica("one"), api.replica("two"));
    let shop = Shop::open(&api, &first, &second).await;
    api.apply(&policy(WEB_MAY_GET)).await;
    api.until_condition(POLICY, "Programmed", "True").await;
    // Each got its certificate from another replica, and they know one another.
    shop.get().await.is_ok();
    // What concerns all proxies is counted over all replicas.
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
    until("the other leads", async || holder().await != leader).await;
    api.apply(&policy(NONSENSE)).await;
    let (_, message) = api.until_condition(POLICY, "Accepted", "False").await;
    assert!(message.contains("generation 1 stays in force"), "{message}");
    shop.get().await.is_ok();

    // A bundle that somebody broke is mended, and a new namespace gets one.
    let bundle = "/api/v1/namespaces/shop/configmaps/merlon-trust-bundle";
    let right = api.get(bundle).await["data"].clone();
    let broken = serde_json::json!({ "data": { "bundle.pem": "" } });
    api.call(http::Method::PATCH, bundle, Some(&broken)).await;
    until("the bundle is right again", async || {
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
async fn without_the_api_server_proxies_go_on_and_afterwards_everything_is_caught_up() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let replica = api.replica("one").await;
    let shop = Shop::open(&api, &replica, &replica).await;
    api.apply(&policy(WEB_MAY_GET)).await;
    api.until_condition(POLICY, "Programmed", "True").await;

    let token = api.token_of(&shop.web).await;
    let trust = api.trust("shop").await;

    api.kill9();
    until("the replica says that the cluster is away", async || {
        let (status, text) = replica.page("/ready").await;
        status == 200 && text.contains("the cluster does not answer")
    })
    .await;
    assert!(!replica.get("/v1/status").await["clusterAway"].is_null());
    shop.get().await.is_ok();
    // A proxy that has a certificate comes back and is served.
    shop.caller.kill9();
    shop.caller.start().await;
    shop.get().await.is_ok();
    let seen = shop.orders.seen().len();
    // One that would need the cluster to prove itself gets nothing.
    let refused = replica.issue(&trust, &shop.web, &token).await;
    let refused = refused.expect_err("nobody can be asked");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    api.restart().await;
    api.apply(&policy(&WEB_MAY_GET.replace("GET", "PUT"))).await;
    api.until_condition(POLICY, "Programmed", "True").await;
    shop.get()
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(shop.orders.seen().len(), seen);
    until(
        "the replica says nothing of the kind any more",
        async || replica.page("/ready").await == (200, "ready\n".to_owned()),
    )
    .await;
    assert_eq!(shop.server.probe("/ready").await, 200);
}

#[tokio::test]
async fn the_control_plane_needs_each_of_its_rights_and_no_other() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    api.apply(WEBHOOKS).await;
    api.expiring_webhook_ca().await;
    let authority = "/api/v1/namespaces/merlon-system/secrets/merlon-webhook";
    let ending = api.get(authority).await;
    let replica = api.replica_with_webhooks("one").await;
    let shop = Shop::open(&api, &replica, &replica).await;
    api.apply(&policy(WEB_MAY_GET)).await;
    for (kind, plural, spec) in [
        (
            "RateLimit",
            "ratelimits",
            "limits: [{ name: a, rate: { requests: 9, per: 1s } }]",
        ),
        (
            "RequestValidation",
            "requestvalidations",
            "limits: { body: 1MiB }",
        ),
        (
            "SecretGrant",
            "secretgrants",
            "serviceAccount: orders, path: db, files: {}",
        ),
        (
            "RequestAuthentication",
            "requestauthentications",
            "required: false, issuers: [{ name: a, issuer: \"http://127.0.0.1:1\", audiences: [a] }]",
        ),
    ] {
        api.apply(&format!(
            "apiVersion: merlon.io/v1alpha1\nkind: {kind}\nmetadata: {{ name: a, namespace: shop }}\n\
             spec: {{ {spec} }}\n"
        ))
        .await;
        let path = format!("/apis/merlon.io/v1alpha1/namespaces/shop/{plural}/a");
        api.until_condition(&path, "Accepted", "True").await;
    }
    api.until_condition(POLICY, "Programmed", "True").await;
    shop.get().await.is_ok();
    // Gateway API may come later than who follows it.
    api.install_gateway_crds().await;
    api.apply(GATEWAY).await;
    let gateways = "/apis/gateway.networking.k8s.io/v1";
    let class = format!("{gateways}/gatewayclasses/merlon");
    api.until_condition(&class, "Accepted", "True").await;
    let gateway = format!("{gateways}/namespaces/merlon-system/gateways/edge");
    let (reason, _) = api.until_condition(&gateway, "Accepted", "True").await;
    assert_eq!(reason, "ListenersNotValid");
    api.until_condition(&gateway, "Programmed", "False").await;
    let route = format!("{gateways}/namespaces/shop/httproutes/orders");
    until("the route is told that it is accepted", async || {
        let parent = &api.get(&route).await["status"]["parents"][0];
        parent["conditions"][0]["status"] == "True"
    })
    .await;
    api.namespace("late").await;
    wait::until_some("the new namespace has the bundle", async || {
        api.try_get("/api/v1/namespaces/late/configmaps/merlon-trust-bundle")
            .await
    })
    .await;
    for plural in [
        "mutatingwebhookconfigurations/merlon-injector",
        "validatingwebhookconfigurations/merlon-validator",
    ] {
        let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
        until("its webhook has the roots", async || {
            let bundle = &api.get(&path).await["webhooks"][0]["clientConfig"]["caBundle"];
            bundle.is_string()
        })
        .await;
    }
    // A new root is known for a minute before it signs.
    wait::until_some_within(2 * wait::TIMEOUT, "the authority is replaced", async || {
        (api.get(authority).await["data"] != ending["data"]).then_some(())
    })
    .await;
    replica.stop().await;

    let user = "system:serviceaccount:merlon-system:merlon-control-plane";
    let calls: Vec<_> = api
        .calls()
        .into_iter()
        .filter(|call| call.user == user)
        .collect();
    let forbidden: Vec<_> = calls.iter().filter(|call| call.code == 403).collect();
    assert!(forbidden.is_empty(), "{forbidden:#?}");
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    for (place, path) in [
        ("", format!("{roles}/clusterroles/merlon-control-plane")),
        (
            "merlon-system",
            format!("{roles}/namespaces/merlon-system/roles/merlon-control-plane"),
        ),
    ] {
        let role = api.get(&path).await;
        let unused: BTreeSet<_> = granted(&role)
            .into_iter()
            .filter(|(group, resource, verb)| {
                !calls.iter().any(|call| {
                    (&call.group, &call.resource, &call.verb) == (group, resource, verb)
                        && (place.is_empty() || call.namespace == place)
                        // What is looked for and not there was looked for.
                        && (call.code < 400 || call.code == 404)
                })
            })
            .collect();
        assert!(
            unused.is_empty(),
            "granted by {path} and not used: {unused:#?}"
        );
    }
}

/// Group, resource and verb of everything that a role grants.
fn granted(role: &Value) -> Vec<(String, String, String)> {
    let list = |rule: &Value, field: &str| -> Vec<String> {
        let items = rule[field].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect()
    };
    let mut granted = Vec::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in list(rule, "apiGroups") {
            for resource in list(rule, "resources") {
                for verb in list(rule, "verbs") {
                    granted.push((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    granted
}
