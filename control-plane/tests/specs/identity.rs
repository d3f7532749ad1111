//! Which requests are issued a certificate.

use std::sync::Arc;

use merlon_api::{
    JoinToken,
    identity::{Evidence, IssueRequest, identity_client::IdentityClient},
};
use merlon_certs::{Bootstrap, H2, LeafFacts, PrivateKey, unix_now};
use merlon_config::name::SpiffeId;
use merlon_test_support::{limit, until_some};
use rustls::AlertDescription;
use tokio::io::AsyncReadExt as _;
use tonic::{Code, Status};

use crate::harness::{Member, Plane, Stream, id, issue};

fn csr(name: &str) -> Vec<u8> {
    PrivateKey::generate().unwrap().csr(&id(name)).unwrap()
}

fn refused(status: &Status, code: Code, text: &str) {
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(text), "{status}");
}

#[tokio::test]
async fn a_join_token_is_exchanged_for_a_certificate_of_its_identity() {
    let plane = Plane::start().await;
    let web = plane.join("web").await;
    assert_eq!(web.tls.svid().id, id("web"));
    let ledger = plane
        .get(&format!("/v1/certificates?identity={}", id("web")))
        .await;
    assert_eq!(ledger[0]["evidence"], "join-token");
    assert_eq!(ledger[0]["serial"], web.tls.svid().serial.as_str());
}

#[tokio::test]
async fn a_join_token_is_valid_once_and_a_second_use_is_logged_as_reuse() {
    let plane = Plane::start().await;
    let token = plane.token("web").await;
    let channel = plane.without_certificate(&token).await;
    issue(channel.clone(), csr("web"), Some(&token))
        .await
        .unwrap();
    let status = issue(channel, csr("web"), Some(&token)).await.unwrap_err();
    refused(&status, Code::PermissionDenied, "was used before");
    assert_eq!(plane.metric("merlon_join_tokens_reused_total").await, 1);
}

#[tokio::test]
async fn one_of_two_concurrent_uses_wins() {
    let plane = Plane::start().await;
    let token = plane.token("web").await;
    let channel = plane.without_certificate(&token).await;
    let tries = (0..8).map(|_| issue(channel.clone(), csr("web"), Some(&token)));
    let replies = futures_util::future::join_all(tries).await;
    assert_eq!(replies.iter().filter(|reply| reply.is_ok()).count(), 1);
}

#[tokio::test]
async fn a_used_token_stays_used_after_a_restart() {
    let plane = Plane::start().await;
    let token = plane.token("web").await;
    issue(
        plane.without_certificate(&token).await,
        csr("web"),
        Some(&token),
    )
    .await
    .unwrap();
    let plane = plane.restart().await;
    let again = issue(
        plane.without_certificate(&token).await,
        csr("web"),
        Some(&token),
    )
    .await;
    refused(
        &again.unwrap_err(),
        Code::PermissionDenied,
        "was used before",
    );
}

#[tokio::test]
async fn an_unknown_token_is_rejected() {
    let plane = Plane::start().await;
    let made = plane.token("web").await;
    let text = made.reveal();
    let parts: Vec<_> = text.rsplitn(3, '.').collect();
    let guessed = format!("{}.{}.{}", parts[2], "A".repeat(43), parts[0]);
    let guessed: JoinToken = guessed.parse().unwrap();
    let status = issue(
        plane.without_certificate(&made).await,
        csr("web"),
        Some(&guessed),
    )
    .await
    .unwrap_err();
    refused(&status, Code::PermissionDenied, "not known");
}

#[tokio::test]
async fn a_request_for_another_identity_is_rejected_and_does_not_consume_the_token() {
    let plane = Plane::start().await;
    let token = plane.token("web").await;
    let channel = plane.without_certificate(&token).await;
    let status = issue(channel.clone(), csr("orders"), Some(&token))
        .await
        .unwrap_err();
    refused(&status, Code::InvalidArgument, "sa/orders");
    issue(channel, csr("web"), Some(&token)).await.unwrap();
}

#[tokio::test]
async fn invalid_requests_are_rejected_with_their_reason_and_do_not_consume_the_token() {
    let plane = Plane::start().await;
    let token = plane.token("web").await;
    let channel = plane.without_certificate(&token).await;
    let garbage = issue(channel.clone(), b"certainly not DER".to_vec(), Some(&token)).await;
    refused(&garbage.unwrap_err(), Code::InvalidArgument, "PKCS #10");
    let nothing = issue(channel.clone(), Vec::new(), Some(&token)).await;
    refused(&nothing.unwrap_err(), Code::InvalidArgument, "bytes");
    let large = issue(channel.clone(), vec![0x30; 5_000], Some(&token)).await;
    refused(&large.unwrap_err(), Code::InvalidArgument, "bytes");
    let rsa = issue(
        channel.clone(),
        foreign_csr(&rcgen::PKCS_RSA_SHA256),
        Some(&token),
    )
    .await;
    refused(&rsa.unwrap_err(), Code::InvalidArgument, "P-256");
    let p384 = issue(
        channel.clone(),
        foreign_csr(&rcgen::PKCS_ECDSA_P384_SHA384),
        Some(&token),
    )
    .await;
    refused(&p384.unwrap_err(), Code::InvalidArgument, "P-256");
    let mut forged = csr("web");
    *forged.last_mut().unwrap() ^= 1;
    let forged = issue(channel.clone(), forged, Some(&token))
        .await
        .unwrap_err();
    assert_eq!(forged.code(), Code::InvalidArgument, "{forged}");
    issue(channel, csr("web"), Some(&token)).await.unwrap();
}

fn foreign_csr(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let mut params = rcgen::CertificateParams::default();
    let name = rcgen::string::Ia5String::try_from(id("web").to_string()).unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(name)];
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[tokio::test]
async fn a_live_certificate_is_renewed_for_the_same_identity_with_a_new_key() {
    let plane = Plane::start().await;
    let web = plane.join("web").await;
    let key = PrivateKey::generate().unwrap();
    let request = key.csr(&id("web")).unwrap();
    let renewed = issue(web.channel(&plane).await, request, None)
        .await
        .unwrap();
    let renewed = Member::of(renewed, key);
    assert_eq!(renewed.tls.svid().id, id("web"));
    assert_ne!(renewed.tls.svid().serial, web.tls.svid().serial);
}

#[tokio::test]
async fn renewal_with_the_old_key_or_for_another_identity_is_rejected() {
    let plane = Plane::start().await;
    let web = plane.join("web").await;
    let channel = web.channel(&plane).await;
    let other = issue(channel.clone(), csr("orders"), None)
        .await
        .unwrap_err();
    refused(&other, Code::InvalidArgument, "sa/orders");
    let old = web.tls.svid().key.csr(&id("web")).unwrap();
    refused(
        &issue(channel, old, None).await.unwrap_err(),
        Code::InvalidArgument,
        "new key",
    );
}

#[tokio::test]
async fn a_request_without_token_or_certificate_is_rejected() {
    let plane = Plane::start().await;
    let channel = plane.without_certificate(&plane.token("web").await).await;
    let status = issue(channel.clone(), csr("web"), None).await.unwrap_err();
    refused(&status, Code::Unauthenticated, "no evidence");
    let kubernetes = IssueRequest {
        csr: csr("web"),
        node_id: "node-1".into(),
        evidence: Some(Evidence::Token("a token".into())),
    };
    let status = IdentityClient::new(channel)
        .issue(kubernetes)
        .await
        .unwrap_err();
    refused(&status, Code::Unimplemented, "join token");
}

#[tokio::test]
async fn an_identity_without_a_resource_is_not_renewed() {
    // The control plane may renew it for a moment, more often than the default limit allows.
    let plane = Plane::with_limits(|limits| limits.issuance.identity_burst = 100_000).await;
    let payments = plane.join("payments").await;
    plane.remove("payments.yaml");
    let channel = payments.channel(&plane).await;
    let status = until_some("the refusal", async || {
        issue(channel.clone(), csr("payments"), None).await.err()
    })
    .await;
    refused(&status, Code::PermissionDenied, "no Workload or Gateway");
}

#[tokio::test]
async fn a_client_without_a_certificate_can_only_call_issue() {
    let plane = Plane::start().await;
    let channel = plane.without_certificate(&plane.token("web").await).await;
    let status = Stream::open(channel, id("web"), "node-1")
        .await
        .err()
        .unwrap();
    refused(&status, Code::Unauthenticated, "certificate of the mesh");
}

#[tokio::test]
async fn a_certificate_of_another_root_fails_the_handshake() {
    let (plane, other) = (Plane::start().await, Plane::start().await);
    let (own, foreign) = (plane.join("web").await, other.join("web").await);
    // It trusts the control plane's root, and shows the certificate of `member`.
    let token = plane.token("web").await;
    let showing = |member: &Member| {
        let known = Bootstrap::RootHash(token.root_sha256());
        let shown = member.tls.client_config(&plane.control_plane_id(), &[H2]);
        let mut tls = known
            .client_config(&plane.control_plane_id(), &[H2])
            .unwrap();
        Arc::make_mut(&mut tls).client_auth_cert_resolver =
            shown.unwrap().client_auth_cert_resolver.clone();
        tls
    };
    let failed = "merlon_tls_handshakes_failed_total";
    assert_eq!(plane.metric(failed).await, 0);

    let mut stream = plane.dial(showing(&foreign)).await;
    let end = limit("the alert", stream.read_u8()).await.unwrap_err();
    let alert = end.get_ref().and_then(|error| error.downcast_ref());
    // The other root has the same name and another key, so the signature is wrong.
    let expected = rustls::Error::AlertReceived(AlertDescription::DecryptError);
    assert_eq!(alert, Some(&expected), "{end}");
    assert_eq!(plane.metric(failed).await, 1);
    // The same client with a certificate of this control plane.
    let channel = plane.connect(showing(&own)).await.unwrap();
    issue(channel, csr("web"), None).await.unwrap();
    assert_eq!(plane.metric(failed).await, 1);
}

#[tokio::test]
async fn an_address_and_an_identity_have_a_limited_number_of_attempts_each() {
    let plane = Plane::with_limits(|limits| {
        limits.issuance.address_burst = 2;
        limits.issuance.address_rate = 0;
        limits.issuance.identity_burst = 1;
        limits.issuance.identity_rate = 0;
    })
    .await;
    let (web, orders) = (plane.join("web").await, plane.join("orders").await);
    let token = plane.token("payments").await;
    let channel = plane.without_certificate(&token).await;
    let limited = issue(channel, csr("payments"), Some(&token)).await;
    let too_many = "too many certificate requests";
    refused(&limited.unwrap_err(), Code::ResourceExhausted, too_many);
    // A renewal counts for its identity, not for the address.
    for member in [&web, &orders] {
        let name = member.tls.svid().id.workload().service_account.to_string();
        let channel = member.channel(&plane).await;
        issue(channel.clone(), csr(&name), None).await.unwrap();
        let limited = issue(channel, csr(&name), None).await.unwrap_err();
        refused(&limited, Code::ResourceExhausted, too_many);
    }
    let counted = "merlon_certificates_refused_total{reason=\"rate\"}";
    assert_eq!(plane.metric(counted).await, 3);
}

#[tokio::test]
async fn the_certificate_has_the_lifetime_of_the_mesh_config() {
    let mesh = format!(
        "{}  certificates: {{ lifetime: 10m }}\n",
        crate::harness::MESH.replace(
            "spec: { trustDomain: demo.test }",
            "spec:\n  trustDomain: demo.test",
        )
    );
    let plane = Plane::with(&[
        ("mesh.yaml", mesh),
        ("web.yaml", crate::harness::service("web", 7001)),
        ("orders.yaml", crate::harness::service("orders", 7002)),
    ])
    .await;
    let web = plane.join("web").await;
    let facts = LeafFacts::parse(&web.tls.svid().chain[0]).unwrap();
    let left = facts.not_after.as_secs() - unix_now().as_secs();
    assert!((590..=660).contains(&left), "{left}");
    let found: SpiffeId = facts.id;
    assert_eq!(found, id("web"));
}
