//! Input to the control plane: discovery streams, raw bytes, administration requests.

use http::Method;
use merlon_api::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use merlon_api::inspection::{InspectReply, inspection_client::InspectionClient};
use merlon_config::snapshot::ResourceKind;
use merlon_tests::{mesh::identity, until, wait::limit};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use super::{NO_TLS, is_dropped, mesh};

/// A delta stream to the control plane, which this side keeps open.
struct Discovery {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Discovery {
    /// Opens a stream with its first message.
    async fn open(channel: Channel, first: DeltaDiscoveryRequest) -> Result<Self, tonic::Status> {
        let (requests, stream) = mpsc::channel(4);
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client
            .delta_aggregated_resources(ReceiverStream::new(stream))
            .await?
            .into_inner();
        Ok(Self {
            requests,
            responses,
        })
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    /// The next response, or the status that ends the stream.
    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, tonic::Status> {
        let response = limit("a discovery response", self.responses.message()).await?;
        Ok(response.expect("the control plane ends a stream with a status"))
    }
}

/// The status that ends a stream which starts with this message.
async fn refusal_of(channel: Channel, first: DeltaDiscoveryRequest) -> tonic::Status {
    match Discovery::open(channel, first).await {
        Ok(mut stream) => stream.next().await.expect_err("a status"),
        Err(status) => status,
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

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let resources = response.resources.iter();
    resources.map(|resource| resource.name.as_str()).collect()
}

#[tokio::test]
async fn discovery_and_inspection_require_a_certificate() {
    let mesh = mesh().await;
    let token = mesh.control_plane().join_token("batch").await;
    let channel = mesh.anonymous_peer(&token).channel().await;
    let refused = refusal_of(channel.clone(), manifest(&identity("batch"))).await;
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    let mut inspection = InspectionClient::new(channel);
    let refused = limit(
        "an answer",
        inspection.serve(tokio_stream::pending::<InspectReply>()),
    )
    .await
    .expect_err("a status");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
}

#[tokio::test]
async fn a_workload_does_not_receive_the_state_of_another() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("batch").await;
    let other = identity("orders");
    let refused = refusal_of(peer.channel().await, manifest(&other)).await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    assert!(refused.message().contains(&other), "{refused:?}");

    // The inbound policies of a service that it does not serve are missing for it, by name and in its manifest.
    let service = subscribe(ResourceKind::Service.type_url(), &["shop/orders"]);
    for (workload, is_its_own) in [("batch", false), ("orders", true)] {
        let peer = mesh.test_peer(workload).await;
        let first = manifest(&identity(workload));
        let mut stream = Discovery::open(peer.channel().await, first).await.unwrap();
        let received = stream.next().await.unwrap();
        assert_eq!(names(&received), [identity(workload)]);
        let content = received.resources[0].resource.as_ref().unwrap();
        let content = String::from_utf8_lossy(&content.value).into_owned();
        assert_eq!(
            content.contains("shop/orders"),
            is_its_own,
            "{workload}: {content}"
        );
        stream.send(service.clone()).await;
        let received = stream.next().await.unwrap();
        assert_eq!(received.type_url, ResourceKind::Service.type_url());
        let expected: (&[&str], &[&str]) = match is_its_own {
            true => (&["shop/orders"], &[]),
            false => (&[], &["shop/orders"]),
        };
        assert_eq!(names(&received), expected.0, "{workload}");
        assert_eq!(received.removed_resources, expected.1, "{workload}");
    }
}

#[tokio::test]
async fn invalid_messages_end_their_own_stream_with_the_reason() {
    let mesh = mesh().await;
    let own = identity("batch");
    let destination = ResourceKind::Destination.type_url();
    let foreign = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    let long = "x".repeat(300);
    let many: Vec<String> = (0..1_001)
        .map(|number| format!("shop/s-{number}"))
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let nameless = DeltaDiscoveryRequest {
        node: None,
        ..manifest(&own)
    };
    let peer = mesh.test_peer("batch").await;
    let bystander = mesh.test_peer("batch").await;
    let mut bystander = Discovery::open(bystander.channel().await, manifest(&own))
        .await
        .unwrap();
    bystander.next().await.unwrap();
    for (what, message, code, says) in [
        (
            "an unknown type",
            subscribe(foreign, &["x"]),
            Code::InvalidArgument,
            foreign,
        ),
        (
            "no type",
            subscribe("", &["x"]),
            Code::InvalidArgument,
            "resource type",
        ),
        (
            "a name too long",
            subscribe(destination, &[&long]),
            Code::InvalidArgument,
            "253 bytes",
        ),
        (
            "a wildcard",
            subscribe(destination, &["*"]),
            Code::InvalidArgument,
            "wildcard",
        ),
        (
            "no name",
            subscribe(destination, &[]),
            Code::InvalidArgument,
            "wildcard",
        ),
        (
            "too many names",
            subscribe(destination, &many),
            Code::ResourceExhausted,
            "1000 names",
        ),
    ] {
        // The first message is valid and answered; the second ends the stream.
        let mut stream = Discovery::open(peer.channel().await, manifest(&own))
            .await
            .unwrap();
        assert_eq!(names(&stream.next().await.unwrap()), [own.as_str()]);
        stream.send(message).await;
        let status = stream.next().await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status:?}");
        assert!(status.message().contains(says), "{what}: {status:?}");
    }
    let status = refusal_of(peer.channel().await, nameless).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("`node`"), "{status:?}");

    // Another stream of the same identity continues.
    bystander
        .send(subscribe(destination, &["shop/orders"]))
        .await;
    assert_eq!(bystander.next().await.unwrap().type_url, destination);
}

#[tokio::test]
async fn an_answer_to_nothing_that_was_sent_changes_nothing() {
    let mesh = mesh().await;
    let own = identity("batch");
    let peer = mesh.test_peer("batch").await;
    let mut stream = Discovery::open(peer.channel().await, manifest(&own))
        .await
        .unwrap();
    stream.next().await.unwrap();
    let acknowledgement = DeltaDiscoveryRequest {
        response_nonce: "never-sent".to_owned(),
        ..subscribe(ResourceKind::Manifest.type_url(), &[])
    };
    let rejection = DeltaDiscoveryRequest {
        error_detail: Some(Status {
            code: 3,
            message: "\u{1b}[31m".repeat(10_000),
            details: Vec::new(),
        }),
        ..acknowledgement.clone()
    };
    stream.send(acknowledgement).await;
    stream.send(rejection).await;
    // The stream goes on with the next message.
    let destination = ResourceKind::Destination.type_url();
    stream.send(subscribe(destination, &["shop/orders"])).await;
    let received = stream.next().await.unwrap();
    assert_eq!(received.type_url, destination);
    assert_eq!(names(&received), ["shop/orders"]);
    let log = mesh.control_plane().log();
    assert!(!log.contains('\u{1b}'), "control bytes in the log");
    assert_eq!(mesh.control_plane().probe("/ready").await, 200);
}

#[tokio::test]
async fn bytes_that_are_not_tls_at_the_control_planes_address_are_dropped_and_counted() {
    let mesh = mesh().await;
    let control_plane = mesh.control_plane();
    let failed = async || {
        control_plane
            .metric("merlon_tls_handshakes_failed_total", "")
            .await
    };
    let before = failed().await;
    let mut sent = 0.0;
    for bytes in NO_TLS {
        is_dropped(control_plane.address(), bytes).await;
        sent += 1.0;
    }
    until("each failed handshake is counted", async || {
        failed().await >= before + sent
    })
    .await;
    assert_eq!(control_plane.probe("/ready").await, 200);
}

#[tokio::test]
async fn the_admin_api_answers_invalid_requests_with_problems() {
    let mesh = mesh().await;
    let control_plane = mesh.control_plane();
    let token = |body: Value| (Method::POST, "/v1/join-tokens", body, 400);
    for (method, path, body, status) in [
        token(json!("text")),
        token(json!({ "identity": "shop/web", "ttl": "a while" })),
        token(json!({ "identity": "shop/web", "ttl": "10000h" })),
        token(json!({ "identity": "shop/web", "ttl": "0s" })),
        token(json!({ "identity": "shop/web", "tll": "1m" })),
        (Method::GET, "/v1/proxies/missing", Value::Null, 404),
        (Method::GET, "/v1/proxies/%00/config", Value::Null, 404),
        (Method::POST, "/v1/proxies/missing/rotate", Value::Null, 404),
        (Method::GET, "/v1/decisions/..%2f..%2fetc", Value::Null, 400),
        (Method::DELETE, "/v1/proxies", Value::Null, 405),
        (Method::GET, "/v2/proxies", Value::Null, 404),
    ] {
        let reply = control_plane.call(method.clone(), path, &body).await;
        let what = format!("{method} {path} {body}: {reply:?}");
        assert_eq!(reply.status, status, "{what}");
        assert_eq!(
            reply.header("content-type"),
            "application/problem+json",
            "{what}"
        );
        assert_eq!(reply.json()["status"], status, "{what}");
    }
}
