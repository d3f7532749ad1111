//! Certificates on service account tokens, and their renewal.

use std::net::{IpAddr, SocketAddr};

use merlon_tests::{ApiServer, api_server::Replica, until, wait::until_value};
use serde_json::{Value, json};
use tonic::Code;

use super::MESH;

#[tokio::test]
async fn a_certificate_is_issued_for_the_token_of_an_existing_pod_and_for_nothing_else() {
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

    // The token is refused after its pod is deleted, even when a pod of the same name exists.
    // API server and control plane notice the deletion a moment later.
    api.delete("/api/v1/namespaces/shop/pods/web").await;
    let answer = || replica.issue(&trust, &web, &right);
    let refused = until_value("a refusal", answer, Result::is_err).await;
    let refused = refused.expect_err("the pod is gone");
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
    // A proxy that waits picks up a renewed token file.
    let sidecar = api
        .sidecar(&again, &replica, SocketAddr::from(([127, 1, 0, 3], 0)))
        .await;
    std::fs::write(api.token_file(&again), "an-old-token").expect("a file");
    sidecar.launch();
    until("the old token is refused", async || {
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
async fn a_token_is_good_only_at_an_address_of_its_pod_unless_the_network_translates_them() {
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    let replica = api
        .replica_that_checks_addresses("one", &json!({ "tokenReview": { "pod": "1s" } }))
        .await;
    let lenient = api.replica("two").await;
    let web = api.pod("shop", "web", "127.1.0.3").await;
    let thief = api.pod("shop", "thief", "127.1.0.4").await;
    let trust = api.trust("shop").await;
    let token = api.token_of(&web).await;
    let address = |last| IpAddr::from([127, 1, 0, last]);

    let own = replica.issue_from(address(3), &trust, &web, &token).await;
    own.expect("a certificate");
    let stolen = replica.issue_from(address(4), &trust, &web, &token).await;
    let refused = stolen.expect_err("the token of another pod");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains(
            "belongs to the pod `shop/web` with 127.1.0.3, and the request comes from 127.1.0.4"
        ),
        "{refused:?}"
    );
    let page = replica.page("/metrics").await.1;
    assert!(
        page.contains("merlon_certificates_refused_total{reason=\"token_address\"} 1"),
        "{page}"
    );
    // The record has the pod.
    let path = "/v1/certificates?identity=spiffe://cluster.merlon.test/ns/shop/sa/web";
    let record = replica.get(path).await;
    assert_eq!(record.as_array().map(Vec::len), Some(1), "{record}");
    assert_eq!(
        record[0]["pod"],
        json!({ "name": "shop/web", "uid": web.uid, "node": "" })
    );

    // A pod may connect before the API server shows its address, and a pod that has ended needs no certificate.
    let path = "/api/v1/namespaces/shop/pods/thief/status";
    let set = async |status: Value| {
        let status = json!({ "status": status });
        api.call(http::Method::PATCH, path, Some(&status)).await;
    };
    set(json!({ "podIP": null, "podIPs": null })).await;
    let token = api.token_of(&thief).await;
    let early = || replica.issue_from(address(4), &trust, &thief, &token);
    let refused = until_value("a refusal", early, Result::is_err).await;
    let refused = refused.expect_err("no address");
    assert!(refused.message().contains("no address yet"), "{refused:?}");
    set(json!({ "podIP": "127.1.0.4", "podIPs": [{ "ip": "127.1.0.4" }] })).await;
    until_value("a certificate", early, Result::is_ok)
        .await
        .expect("a certificate");
    set(json!({ "phase": "Succeeded" })).await;
    let refused = until_value("a refusal", early, Result::is_err).await;
    let refused = refused.expect_err("the pod has ended");
    assert!(refused.message().contains("does not exist"), "{refused:?}");

    let token = api.token_of(&web).await;
    let elsewhere = lenient.issue_from(address(4), &trust, &web, &token).await;
    elsewhere.expect("a certificate");
    assert!(lenient.log().contains("token_review.address_differs"));
    let page = lenient.page("/metrics").await.1;
    assert!(
        page.contains("merlon_pod_addresses_differed_total 1"),
        "{page}"
    );
}

#[tokio::test]
async fn a_proxy_whose_certificate_has_expired_gets_another_once_a_control_plane_is_back() {
    let api = ApiServer::start().await;
    let lifetime = "trustDomain: cluster.merlon.test, certificates: { lifetime: 30s }";
    api.apply(&MESH.replace("trustDomain: cluster.merlon.test", lifetime))
        .await;
    let replica = api.replica("one").await;
    let web = api.pod("shop", "web", "127.1.0.3").await;
    let inbound = SocketAddr::from(([127, 1, 0, 3], 0));
    let sidecar = api.sidecar(&web, &replica, inbound).await;
    sidecar.start().await;

    replica.kill9();
    sidecar.until_unready("tls.expired").await;
    replica.launch();
    // With the token of its pod, and without a restart.
    sidecar.until_ready().await;
}

#[tokio::test]
async fn a_certificate_is_renewed_after_its_pod_is_gone_only_while_the_api_server_is_down_for_long()
{
    let api = ApiServer::start().await;
    api.apply(MESH).await;
    // For one replica an outage is long enough at once, for the other it never is.
    let after = |time: &str| json!({ "tokenReview": { "renewalAfter": time } });
    let (at_once, never) = (after("1ms"), after("1h"));
    let (at_once, never) = tokio::join!(
        api.replica_with("at-once", &at_once),
        api.replica_with("never", &never)
    );
    let web = api.pod("shop", "web", "127.1.0.3").await;
    // The service account still has a pod after this one is deleted.
    let _other = api.pod_of(("shop", "web"), "web-2", "127.1.0.4").await;
    let trust = api.trust("shop").await;
    let token = api.token_of(&web).await;
    let issued = at_once.issue(&trust, &web, &token).await;
    let issued = issued.expect("a certificate");
    let is_refused = async |replica: &Replica| {
        let refused = replica.renew(&issued).await.expect_err("its pod is gone");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        assert!(
            refused.message().contains("the token of its pod"),
            "{refused:?}"
        );
    };

    // API server and control plane notice the deletion a moment later.
    api.delete("/api/v1/namespaces/shop/pods/web").await;
    let answer = || at_once.issue(&trust, &web, &token);
    let refused = until_value("a refusal", answer, Result::is_err).await;
    let refused = refused.expect_err("its pod is gone");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    is_refused(&at_once).await;
    is_refused(&never).await;

    // An API server that is down cannot refuse, so running workloads keep their identity.
    api.kill9();
    for replica in [&at_once, &never] {
        until("the control plane notices", async || {
            let page = replica.page("/ready").await.1;
            page.contains("the cluster does not answer")
        })
        .await;
    }
    let renewed = at_once.renew(&issued).await.expect("a certificate");
    assert_eq!(renewed.id, issued.id);
    is_refused(&never).await;
    api.restart().await;
    until("the control plane is back", async || {
        at_once.page("/ready").await.1 == "ready\n"
    })
    .await;
    is_refused(&at_once).await;
}
