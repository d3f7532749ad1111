//! What was in force before a restart of the control plane stays in force, or is denied.

use super::*;

/// Declares the claim that [`CLOSED`] reads.
const TOKENS: &str = "
apiVersion: merlon.io/v1alpha1
kind: RequestAuthentication
metadata: { name: tokens, namespace: shop }
spec:
  required: false
  issuers: [{ name: id, issuer: \"http://127.0.0.1:1\", audiences: [shop], claims: { level: Long } }]
";

const CLOSED: &str = "
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: closed, namespace: shop }
spec:
  policies: |
    @id(\"closed\")
    forbid (principal, action in Action::\"http\", resource) when { context.path like \"/closed*\" };
    @id(\"level\")
    forbid (principal, action, resource)
    when { context has user && context.user.claims has level && context.user.claims.level == 1 };
";

const RETAINED: &str =
    "/api/v1/namespaces/merlon-system/configmaps?labelSelector=merlon.io/retained";

#[tokio::test]
async fn a_forbid_stays_in_force_when_what_it_needs_was_deleted_before_all_replicas_restarted() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let replica = api.replica("one").await;
    let shop = Shop::open(&api, &replica, &replica).await;
    for document in [TOKENS, CLOSED, &policy(WEB_MAY_GET)] {
        api.apply(document).await;
    }
    let resources = "/apis/merlon.io/v1alpha1/namespaces/shop";
    let closed = format!("{resources}/authorizationpolicies/closed");
    api.until_condition(&closed, "Programmed", "True").await;
    api.until_condition(POLICY, "Programmed", "True").await;
    let call = async |path: &str| {
        let client = Client::new(shop.caller.outbound(), "shop");
        client.get("orders", path).await
    };
    let the_forbid_applies = async || {
        let seen = shop.orders.seen().len();
        call("/closed")
            .await
            .is_problem(StatusCode::FORBIDDEN, "authz.denied");
        assert_eq!(shop.orders.seen().len(), seen);
        call("/").await.is_ok();
    };
    the_forbid_applies().await;

    api.delete(&format!("{resources}/requestauthentications/tokens"))
        .await;
    let (reason, message) = api.until_condition(&closed, "Accepted", "False").await;
    let deleted = "`RequestAuthentication/shop/tokens` was deleted but stays in force";
    assert!(
        reason == "Conflicted" && message.contains(deleted),
        "{reason} {message}"
    );
    let kept = async || api.get(RETAINED).await["items"].as_array().cloned();
    let kept = async || kept().await.unwrap_or_default();
    wait::until_value("the declaration is kept", kept, |maps| maps.len() == 1).await;

    for _ in 0..2 {
        restart(&replica).await;
        the_forbid_applies().await;
        let (reason, _) = api.until_condition(&closed, "Accepted", "False").await;
        assert_eq!(reason, "Conflicted");
    }
    // A proxy that starts now enforces it, too.
    shop.server.kill9();
    shop.server.start().await;
    the_forbid_applies().await;

    api.delete(&closed).await;
    wait::until_value("nothing is kept", kept, Vec::is_empty).await;
    until("the path is open", async || {
        call("/closed").await.status == StatusCode::OK
    })
    .await;
}

#[tokio::test]
async fn a_replica_that_rejects_what_is_in_force_waits_for_the_ready_ones_and_without_them_denies()
{
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let replica = api.replica("one").await;
    let shop = Shop::open(&api, &replica, &replica).await;
    api.apply(&policy(WEB_MAY_GET)).await;
    api.until_condition(POLICY, "Programmed", "True").await;
    shop.get().await.is_ok();
    replica.stop().await;
    // As if a version that is less strict had accepted it.
    api.apply(&policy(INVALID)).await;
    let mut status = api.get(POLICY).await["status"].clone();
    for condition in status["conditions"].as_array_mut().expect("conditions") {
        condition["observedGeneration"] = json!(2);
    }
    let status = json!({ "status": status });
    let path = format!("{POLICY}/status");
    api.call(http::Method::PATCH, &path, Some(&status)).await;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/merlon-system/endpointslices";
    let other = json!({
        "metadata": {
            "name": "other",
            "labels": { "kubernetes.io/service-name": "merlon-control-plane" },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.0.0.9"], "conditions": { "ready": true } }],
        "ports": [],
    });
    api.call(http::Method::POST, slices, Some(&other)).await;

    replica.launch();
    wait::until_value(
        "the page reports the policy",
        async || replica.page("/ready").await,
        |(status, text)| {
            let policy = "`AuthorizationPolicy/shop/orders` was in force and cannot be: spec.policies line 4";
            *status == 503 && text.contains(policy)
        },
    )
    .await;
    assert!(
        replica.log().contains("config.not_taken_over"),
        "{}",
        replica.log()
    );
    // What the other replica pushed is still in force.
    shop.get().await.is_ok();

    api.delete(&format!("{slices}/other")).await;
    replica.until_ready().await;
    shop.until_answered(StatusCode::FORBIDDEN).await;
    let seen = shop.orders.seen().len();
    let refused = shop.get().await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(shop.orders.seen().len(), seen);
    let (reason, message) = api.until_condition(POLICY, "Accepted", "False").await;
    assert_eq!(reason, "Invalid");
    let denied = "it was in force, so all requests to its targets are denied until it is valid";
    assert!(message.contains(denied), "{message}");
    let (_, message) = api.until_condition(POLICY, "Programmed", "False").await;
    assert_eq!(message, "all requests to its targets are denied");

    api.apply(&policy(WEB_MAY_GET)).await;
    api.until_condition(POLICY, "Programmed", "True").await;
    shop.get().await.is_ok();
}
