//! The rights of the control plane's service account.

use std::collections::BTreeSet;

use merlon_certs::{CertificateDer, pem};
use merlon_tests::{ApiServer, api_server::Call, until, wait};
use serde_json::{Value, json};

use super::{MESH, POLICY, Shop, WEB_MAY_GET, decoded, policy};

/// Only the names matter: no webhook is called.
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

#[tokio::test]
async fn the_control_plane_needs_each_of_its_rights_and_no_other() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    api.apply(WEBHOOKS).await;
    api.expiring_webhook_ca().await;
    let authority = "/api/v1/namespaces/merlon-system/secrets/merlon-webhook";
    let ending = api.get(authority).await;
    // A new root is distributed for this time before it signs.
    let limits = json!({ "webhook": { "publish": "1s", "linger": "0ms" } });
    // While it is not ready, it adds its pod's address to the Service.
    let own = api.pod("merlon-system", "one", "10.0.0.1").await;
    let replica = api.replica_with_webhooks("one", &limits).await;
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
    // Gateway API may be installed after the control plane has started.
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
    until("the status of the route is accepted", async || {
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
    let former = certificates(&ending["data"]["ca.pem"]);
    let root = wait::until_some("the authority is replaced", async || {
        let now = certificates(&api.get(authority).await["data"]["ca.pem"]);
        now.into_iter().next().filter(|root| !former.contains(root))
    })
    .await;
    // The API server verifies the webhooks by these roots.
    for plural in [
        "mutatingwebhookconfigurations/merlon-injector",
        "validatingwebhookconfigurations/merlon-validator",
    ] {
        let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
        until("its webhook has the new root", async || {
            let bundle = &api.get(&path).await["webhooks"][0]["clientConfig"]["caBundle"];
            certificates(bundle).contains(&root)
        })
        .await;
    }
    let slices = "/apis/discovery.k8s.io/v1/namespaces/merlon-system/endpointslices";
    let slice = format!("{slices}/merlon-webhook-one");
    let slice = wait::until_some("its endpoint is added", async || api.try_get(&slice).await).await;
    assert_eq!(slice["endpoints"][0]["addresses"][0], "10.0.0.1");
    assert_eq!(slice["ports"][0]["name"], "webhook");
    assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], *own.uid);
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    let roles = [
        ("", format!("{roles}/clusterroles/merlon-control-plane")),
        (
            "merlon-system",
            format!("{roles}/namespaces/merlon-system/roles/merlon-control-plane"),
        ),
    ];
    // Some of the watches start after all that is awaited above.
    for (place, path) in &roles {
        wait::until_value(
            &format!("each watch that {path} grants is open"),
            async || {
                let mut unused = unused(&api, place, path).await;
                unused.retain(|(_, _, verb)| verb == "watch");
                unused
            },
            BTreeSet::is_empty,
        )
        .await;
    }
    replica.stop().await;

    // The API server may record a call after it has answered it.
    for (place, path) in &roles {
        wait::until_value(
            &format!("each right that {path} grants is used"),
            async || unused(&api, place, path).await,
            BTreeSet::is_empty,
        )
        .await;
    }
    let forbidden: Vec<_> = calls(&api)
        .into_iter()
        .filter(|call| call.code == 403)
        .collect();
    assert!(forbidden.is_empty(), "{forbidden:#?}");
}

/// The calls of the control plane.
fn calls(api: &ApiServer) -> Vec<Call> {
    let user = "system:serviceaccount:merlon-system:merlon-control-plane";
    let mut calls = api.calls();
    calls.retain(|call| call.user == user);
    calls
}

/// What the role at `path` grants in the namespace `place`, or everywhere, and no call used.
async fn unused(api: &ApiServer, place: &str, path: &str) -> BTreeSet<(String, String, String)> {
    let calls = calls(api);
    granted(&api.get(path).await)
        .into_iter()
        .filter(|(group, resource, verb)| {
            !calls.iter().any(|call| {
                (&call.group, &call.resource, &call.verb) == (group, resource, verb)
                    && (place.is_empty() || call.namespace == place)
                    // A lookup that finds nothing is a use as well.
                    && (call.code < 400 || call.code == 404)
            })
        })
        .collect()
}

/// The certificates in an encoded field. None if it is missing.
fn certificates(field: &Value) -> Vec<CertificateDer<'static>> {
    pem::certificates(&decoded(field)).unwrap_or_default()
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
