//! What strangers send: nothing of it reaches a program, and nobody falls over.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use merlon_api::discovery::{
    DeltaDiscoveryRequest, Node, Status,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use merlon_api::inspection::{InspectReply, inspection_client::InspectionClient};
use merlon_config::snapshot::ResourceKind;
use merlon_tests::{
    Client, Mesh,
    app::App,
    client::connect,
    mesh::{Guard, Shared, Standalone, identity},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, transport::Channel};

static MESH: Shared = Shared::new();

async fn mesh() -> Guard {
    MESH.get(async || {
        Mesh::new()
            .service("orders")
            .allow("web", "http", "/**")
            .caller("batch")
            .start()
            .await
    })
    .await
}

// --- HTTP framing ---------------------------------------------------------------------------------------------------

/// A request that must not be read in any way, and what is answered at most: any of these statuses, or nothing.
const FRAMING: &[(&str, &str)] = &[
    (
        "length and encoding",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "two different lengths",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    ),
    (
        "two equal lengths",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    ),
    (
        "a list of lengths",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 5, 5\r\n\r\nhello",
    ),
    (
        "a signed length",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: +5\r\n\r\nhello",
    ),
    (
        "a negative length",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: -1\r\n\r\n",
    ),
    (
        "a hexadecimal length",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 0x5\r\n\r\nhello",
    ),
    (
        "a length beyond all numbers",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 99999999999999999999\r\n\r\n",
    ),
    (
        "an encoding that is not chunked",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: identity\r\n\r\n",
    ),
    (
        "chunked twice",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "gzip before chunked",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked with a tail",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunkedx\r\n\r\n0\r\n\r\n",
    ),
    (
        "an encoding with a vertical tab",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "space before the colon",
        "POST /bad HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a folded header",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx-one: 1\r\n two\r\n\r\n",
    ),
    (
        "a bare line feed",
        "GET /bad HTTP/1.1\nhost: orders.shop\n\n",
    ),
    (
        "a bare carriage return",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx: 1\ry: 2\r\n\r\n",
    ),
    (
        "a null byte in a value",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx: a\0b\r\n\r\n",
    ),
    (
        "a header without a name",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\n: x\r\n\r\n",
    ),
    (
        "a header without a colon",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nnonsense\r\n\r\n",
    ),
    (
        "an underscore in a name",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nmerlon_peer: x\r\n\r\n",
    ),
    ("no host", "GET /bad HTTP/1.1\r\nx: 1\r\n\r\n"),
    (
        "two hosts",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nhost: payments.shop\r\n\r\n",
    ),
    (
        "two tokens",
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n",
    ),
    (
        "a space in the target",
        "GET /bad path HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a tab in the request line",
        "GET\t/bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "two spaces in the request line",
        "GET  /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a fragment in the target",
        "GET /bad#x HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a target without a slash",
        "GET bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "bytes beyond ASCII in the target",
        "GET /bad\u{e9} HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    ("HTTP/0.9", "GET /bad\r\n\r\n"),
    ("HTTP/1.2", "GET /bad HTTP/1.2\r\nhost: orders.shop\r\n\r\n"),
    (
        "HTTP/3 in text",
        "GET /bad HTTP/3.0\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a version in small letters",
        "GET /bad http/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    ("a lonely method", "GET\r\n\r\n"),
    (
        "a method of brackets",
        "<GET> /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "an empty line first",
        "\r\nGET /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    ),
    (
        "a chunk size with a sign",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk size in 0x",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk that is longer than it says",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk size that overflows",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk ended by a line feed",
        "POST /bad-chunk HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    ),
    (
        "TLS to a plain port",
        "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03nonsense\r\n\r\n",
    ),
    (
        "bytes that are nothing",
        "\x01\x02\x03\x04\x05\x06\x07\r\n\r\n",
    ),
];

/// Each connection ends, with 4xx or 5xx or without a word; none is answered by a program.
async fn refuses_framing(to: SocketAddr) {
    let client = Client::new(to, "shop");
    for (what, bytes) in FRAMING {
        let answer = client.raw(bytes.as_bytes()).await;
        let statuses: Vec<_> = answer
            .lines()
            .filter_map(|line| line.strip_prefix("HTTP/1.1 "))
            .collect();
        let refused = match statuses.as_slice() {
            [] => answer.is_empty(),
            [status] => matches!(status.as_bytes().first(), Some(b'4' | b'5')),
            _ => false,
        };
        assert!(refused, "{what}: {answer:?}");
    }
}

#[tokio::test]
async fn broken_framing_from_a_program_ends_the_connection_and_reaches_nobody() {
    let mesh = mesh().await;
    refuses_framing(mesh.sidecar("web").outbound()).await;
    // A chunk is found out after its head was passed on; what was broken is never finished.
    assert!(mesh.seen_at("orders", "/bad").is_empty());
    mesh.as_workload("web")
        .get("orders", "/after-framing")
        .await
        .is_ok();
}

#[tokio::test]
async fn broken_framing_at_a_plain_inbound_address_ends_the_connection_and_reaches_nobody() {
    let app = App::http().await;
    let files = format!(
        "apiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: {{ name: orders, namespace: shop }}\n\
         spec:\n  selector: {{ app: orders }}\n  ports: [{{ port: 80, targetPort: {} }}]\n---\n\
         apiVersion: merlon.io/v1alpha1\nkind: Workload\n\
         metadata: {{ name: orders, namespace: shop, labels: {{ app: orders }} }}\nspec: {{ serviceAccount: orders }}\n---\n\
         apiVersion: merlon.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: all, namespace: shop }}\n\
         spec:\n  policies: |\n    @id(\"all\")\n    @reason(\"A test.\")\n    permit(principal, action, resource);\n",
        app.address().port()
    );
    let proxy = Standalone::sidecar("orders", &[("orders.yaml", &files)])
        .start()
        .await;
    refuses_framing(proxy.proxy().inbound()).await;
    assert!(!app.seen().iter().any(|seen| seen.target == "/bad"));
    Client::new(proxy.proxy().inbound(), "shop")
        .get("orders", "/good")
        .await
        .is_ok();
}

#[tokio::test]
async fn what_follows_a_broken_request_on_its_connection_is_not_read() {
    let mesh = mesh().await;
    let answer = mesh
        .as_workload("web")
        .raw(
            b"POST /smuggled HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
              GET /smuggled HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        )
        .await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(mesh.seen_at("orders", "/smuggled").is_empty());
}

#[tokio::test]
async fn heads_without_measure_are_refused_while_they_come() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let long_line = format!(
        "GET /{} HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
        "x".repeat(10_000)
    );
    assert!(
        web.raw(long_line.as_bytes())
            .await
            .starts_with("HTTP/1.1 414 ")
    );
    let large = format!(
        "GET /bad HTTP/1.1\r\nhost: orders.shop\r\nx: {}\r\n\r\n",
        "x".repeat(80_000)
    );
    assert!(web.raw(large.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let many: String = (0..150)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    let many = format!("GET /bad HTTP/1.1\r\nhost: orders.shop\r\n{many}\r\n");
    assert!(web.raw(many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    // No line end ever comes.
    assert!(
        web.raw("x".repeat(100_000).as_bytes())
            .await
            .starts_with("HTTP/1.1 4")
    );
    assert!(mesh.seen_at("orders", "/bad").is_empty());
}

#[tokio::test]
async fn http_2_frames_that_are_none_end_the_connection() {
    let mesh = mesh().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for frames in [
        b"nonsense that is no frame at all".as_slice(),
        // DATA on stream 0; HEADERS on an even stream; a SETTINGS frame of 5 bytes; a frame of 16 MiB.
        b"\0\0\0\x04\0\0\0\0\0\0\0\x01\0\0\0\0\0\0x",
        b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x05\0\0\0\x02\x82",
        b"\0\0\x05\x04\0\0\0\0\0xxxxx",
        b"\xff\xff\xff\0\0\0\0\0\x01",
    ] {
        let mut stream = mesh.as_workload("web").tcp().await;
        let _ = stream.write_all(preface).await;
        let _ = stream.write_all(frames).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    mesh.as_workload("web")
        .get("orders", "/after-frames")
        .over_http2()
        .await
        .is_ok();
}

#[tokio::test]
async fn methods_that_are_nobodys_are_405() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let reply = web.call(Method::TRACE, "orders", "/trace").await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{reply:?}");
    let answer = web
        .raw(
            b"CONNECT orders.shop:80 HTTP/1.1\r\nhost: orders.shop:80\r\nconnection: close\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[tokio::test]
async fn bytes_of_all_kinds_at_the_inbound_address_are_dropped() {
    let mesh = mesh().await;
    let inbound = mesh.sidecar("orders").inbound();
    for bytes in [
        b"GET /bad HTTP/1.1\r\nhost: orders.shop\r\n\r\n".as_slice(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff\x01",
        b"\x15\x03\x03\0\x02\x02\x28",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        &[0xff; 4_096],
    ] {
        let mut stream = connect(inbound).await;
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
    assert!(mesh.seen_at("orders", "/bad").is_empty());
    mesh.as_workload("web")
        .get("orders", "/after-bytes")
        .await
        .is_ok();
}

#[tokio::test]
async fn a_peer_of_the_mesh_cannot_name_a_service_that_is_not_there() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("web").await;
    let inbound = mesh.sidecar("orders").inbound();
    let stream = peer
        .dial(inbound, "orders", merlon_certs::MERLON_H2)
        .await
        .unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tokio::spawn(connection);
    for peer in [
        "service=shop/payments;port=80;proto=h2",
        "service=shop/orders;port=99;proto=h2",
        "service=shop/orders;port=80;proto=tcp",
        "service=../orders;port=80;proto=h2",
        "service=shop/orders",
        "port=80",
        "",
        &"x".repeat(4_000),
    ] {
        let request = http::Request::get("http://orders.shop/claimed")
            .header("merlon-peer", peer)
            .body(http_body_util::Empty::<bytes::Bytes>::new())
            .unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert!(
            response.status().is_client_error(),
            "{peer}: {}",
            response.status()
        );
    }
    assert!(mesh.seen_at("orders", "/claimed").is_empty());
}

#[tokio::test]
async fn a_peer_of_the_mesh_cannot_tunnel_past_the_checks_of_an_http_service() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("web").await;
    let inbound = mesh.sidecar("orders").inbound();
    for claim in [
        "service=shop/orders;port=80;proto=tcp",
        "service=shop/orders;port=80;proto=http/1.1",
        "service=shop/nobody;port=80;proto=tcp",
        "",
    ] {
        let alpn = merlon_certs::MERLON_TCP;
        let mut stream = peer.dial(inbound, "orders", alpn).await.unwrap();
        let length = u16::try_from(claim.len()).unwrap().to_be_bytes();
        let head = "GET /tunnelled HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
        let bytes = [length.as_slice(), claim.as_bytes(), head.as_bytes()].concat();
        // It may be closed before this is written.
        let _ = stream.write_all(&bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(
            answer.is_empty(),
            "{claim}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert!(mesh.seen_at("orders", "/tunnelled").is_empty());
}

// --- the control plane ----------------------------------------------------------------------------------------------

/// Sends these requests on one delta stream and gives what the stream says first.
async fn discovery(
    channel: Channel,
    requests: Vec<DeltaDiscoveryRequest>,
) -> Result<Value, tonic::Status> {
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    // The requests stay open behind their end: the control plane must answer, not be left.
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
async fn the_push_takes_nobody_without_a_certificate() {
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
async fn nobody_is_told_the_state_of_somebody_else() {
    let mesh = mesh().await;
    let peer = mesh.test_peer("batch").await;
    let told = discovery(peer.channel().await, vec![manifest(&identity("orders"))]).await;
    match told {
        Err(status) => assert!(
            matches!(
                status.code(),
                Code::PermissionDenied | Code::InvalidArgument
            ),
            "{status:?}"
        ),
        Ok(answer) => assert_eq!(answer["resources"], json!([]), "{answer}"),
    }
    // Nor the inbound policies of a service that it does not serve.
    let asked = vec![
        manifest(&identity("batch")),
        subscribe(ResourceKind::Service.type_url(), &["shop/orders"]),
    ];
    let mut client = AggregatedDiscoveryServiceClient::new(peer.channel().await);
    let requests =
        futures_util::StreamExt::chain(tokio_stream::iter(asked), tokio_stream::pending());
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
async fn messages_that_make_no_sense_end_the_stream_and_not_the_control_plane() {
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
        ("a refusal of nothing", vec![refusal], false),
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
async fn bytes_of_all_kinds_at_the_control_planes_address_are_dropped() {
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
async fn the_administration_answers_nonsense_with_problems() {
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
        (Method::GET, "/v1/proxies/nobody", Value::Null),
        (Method::GET, "/v1/proxies/%00/config", Value::Null),
        (Method::POST, "/v1/proxies/nobody/rotate", Value::Null),
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
