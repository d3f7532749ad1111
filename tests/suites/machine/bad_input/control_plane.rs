//! Input to the control plane: discovery streams, raw bytes, administration requests.

use http::Method;
use merlon_api::discovery::{
    DeltaDiscoveryRequest, Node, Status,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use merlon_api::inspection::{InspectReply, inspection_client::InspectionClient};
use merlon_config::snapshot::ResourceKind;
use merlon_tests::{client::connect, mesh::identity};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, transport::Channel};

use super::mesh;

/// Sends these requests on one delta stream and returns the first response.
async fn discovery(
    channel: Channel,
    requests: Vec<DeltaDiscoveryRequest>,
) -> Result<Value, tonic::Status> {
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    // The request stream stays open, so that the control plane must answer.
    let requests =
        futures_util::StreamExt::chain(tokio_stream::iter(requests), tokio_stream::pending());
    let mut answers = client
        .delta_aggregated_resources(requests)
        .await?
        .into_inner();
    match answers.message().await? {
        Some(answer) => Ok(json!({
            "type": answer.type_url,
            "resources": answer.resources.iter().map(|resource| resource.name.clone()).collect::<Vec<_>>(),
            "removed": answer.removed_resources,
        })),
        None => Ok(Value::Null),
    }
}

fn subscribe(kind: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node {
            id: "insider".to_owned(),
            ..Node::default()
        }),
        type_url: kind.to_owned(),
        resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn manifest(name: &str) -> DeltaDiscoveryRequest {
    subscribe(ResourceKind::Manifest.type_url(), &[name])
}

#[tokio::test]
async fn discovery_and_inspection_require_a_certificate() {
    let mesh = mesh().await;
    let token = mesh.control_plane().join_token("batch").await;
    let refused = discovery(
        mesh.anonymous_peer(&token).channel().await,
        vec![manifest(&identity("batch"))],
    )
    .await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let mut inspection = InspectionClient::new(mesh.anonymous_peer(&token).channel().await);
    let refused = inspection
        .serve(tokio_stream::pending::<InspectReply>())
        .await;
    assert_eq!(
        refused.err().map(|status| status.code()),
        Some(Code::Unauthenticated)
    );
}

#[tokio::test]
async fn a_workload_does_not_receive_the_state_of_another() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("batch").await;
    let outcome = discovery(peer.channel().await, vec![manifest(&identity("orders"))]).await;
    match outcome {
        Err(status) => assert!(
            matches!(
                status.code(),
                Code::PermissionDenied | Code::InvalidArgument
            ),
            "{status:?}"
        ),
        Ok(answer) => assert_eq!(answer["resources"], json!([]), "{answer}"),
    }
    // It does not receive the inbound policies of a service that it does not serve either.
    let subscriptions = vec![
        manifest(&identity("batch")),
        subscribe(ResourceKind::Service.type_url(), &["shop/orders"]),
    ];
    let mut client = AggregatedDiscoveryServiceClient::new(peer.channel().await);
    let requests =
        futures_util::StreamExt::chain(tokio_stream::iter(subscriptions), tokio_stream::pending());
    let mut answers = client
        .delta_aggregated_resources(requests)
        .await
        .unwrap()
        .into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        if answer.type_url == ResourceKind::Service.type_url() {
            assert!(answer.resources.is_empty(), "{answer:?}");
            break;
        }
    }
}

#[tokio::test]
async fn invalid_messages_end_at_most_their_own_stream() {
    let mesh = mesh().await;
    let own = identity("batch");
    let long = "x".repeat(300);
    let many: Vec<String> = (0..1_001)
        .map(|number| format!("shop/s-{number}"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let nameless = DeltaDiscoveryRequest {
        node: None,
        ..manifest(&own)
    };
    let nonce = DeltaDiscoveryRequest {
        response_nonce: "never-sent".to_owned(),
        ..manifest(&own)
    };
    let refusal = DeltaDiscoveryRequest {
        response_nonce: "never-sent".to_owned(),
        error_detail: Some(Status {
            code: 3,
            message: "\u{1b}[31m".repeat(10_000),
            details: Vec::new(),
        }),
        ..manifest(&own)
    };
    for (what, requests, must_fail) in [
        (
            "an unknown type",
            vec![subscribe(
                "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                &["x"],
            )],
            true,
        ),
        ("no type", vec![subscribe("", &["x"])], true),
        ("no node", vec![nameless], true),
        (
            "a name too long",
            vec![
                manifest(&own),
                subscribe(ResourceKind::Destination.type_url(), &[&long]),
            ],
            false,
        ),
        (
            "too many names",
            vec![
                manifest(&own),
                subscribe(ResourceKind::Destination.type_url(), &many),
            ],
            false,
        ),
        ("a nonce that was never sent", vec![nonce], false),
        ("a rejection of no response", vec![refusal], false),
    ] {
        let peer = mesh.test_peer("batch").await;
        let outcome = discovery(peer.channel().await, requests).await;
        if must_fail {
            let status = outcome.expect_err(what);
            assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
        } else if let Err(status) = outcome {
            assert_ne!(status.code(), Code::Internal, "{what}: {status:?}");
        }
    }
    assert_eq!(mesh.control_plane().probe("/ready").await, 200);
    mesh.as_workload("web")
        .get("orders", "/after-messages")
        .await
        .is_ok();
}

#[tokio::test]
async fn arbitrary_bytes_at_the_control_planes_address_are_dropped() {
    let mesh = mesh().await;
    for bytes in [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".as_slice(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff\x01",
        &[0; 10_000],
    ] {
        let mut stream = connect(mesh.control_plane().address()).await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(
            !answer.starts_with(b"HTTP/"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert_eq!(mesh.control_plane().probe("/ready").await, 200);
}

#[tokio::test]
async fn the_admin_api_answers_invalid_requests_with_problems() {
    let mesh = mesh().await;
    let control_plane = mesh.control_plane();
    for (method, path, body) in [
        (Method::POST, "/v1/join-tokens", json!("text")),
        (
            Method::POST,
            "/v1/join-tokens",
            json!({ "identity": "shop/web", "ttl": "a while" }),
        ),
        (
            Method::POST,
            "/v1/join-tokens",
            json!({ "identity": "shop/web", "ttl": "10000h" }),
        ),
        (
            Method::POST,
            "/v1/join-tokens",
            json!({ "identity": "shop/web", "ttl": "0s" }),
        ),
        (
            Method::POST,
            "/v1/join-tokens",
            json!({ "identity": "shop/web", "tll": "1m" }),
        ),
        (Method::GET, "/v1/proxies/missing", Value::Null),
        (Method::GET, "/v1/proxies/%00/config", Value::Null),
        (Method::POST, "/v1/proxies/missing/rotate", Value::Null),
        (Method::GET, "/v1/decisions/..%2f..%2fetc", Value::Null),
        (Method::DELETE, "/v1/proxies", Value::Null),
        (Method::GET, "/v2/proxies", Value::Null),
    ] {
        let reply = control_plane.call(method.clone(), path, &body).await;
        assert!(
            reply.status.is_client_error(),
            "{method} {path} {body}: {reply:?}"
        );
        assert!(
            reply.json().is_object(),
            "{method} {path} {body}: {reply:?}"
        );
    }
}
