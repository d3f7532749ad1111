//! Administration over the Unix socket, and the pages for probes.

use std::time::Duration;

use merlon_api::{
    decision_prefix,
    inspection::{
        Ask, DumpReply, FactsReply, InspectReply, InspectRequest, Reply, Report, RotateReply,
        inspection_client::InspectionClient,
    },
};
use merlon_test_support::limit;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use crate::harness::Plane;

/// The proxy's side of the inspection stream, with replies from `answer`.
async fn inspected(
    channel: Channel,
    node: &str,
    answer: fn(Ask) -> Reply,
) -> mpsc::Sender<InspectReply> {
    let (replies, mut questions) = open(channel, report(node)).await;
    let sender = replies.clone();
    tokio::spawn(async move {
        while let Ok(Some(InspectRequest { id, ask: Some(ask) })) = questions.message().await {
            let reply = InspectReply {
                id,
                reply: Some(answer(ask)),
            };
            if replies.send(reply).await.is_err() {
                break;
            }
        }
    });
    sender
}

async fn open(
    channel: Channel,
    first: InspectReply,
) -> (mpsc::Sender<InspectReply>, Streaming<InspectRequest>) {
    let (replies, stream) = mpsc::channel(16);
    replies.send(first).await.unwrap();
    let reply = InspectionClient::new(channel)
        .serve(ReceiverStream::new(stream))
        .await
        .unwrap();
    (replies, reply.into_inner())
}

fn report(node: &str) -> InspectReply {
    InspectReply {
        id: 0,
        reply: Some(Reply::Report(Report {
            node_id: node.into(),
            certificate_serial: "0a0b".into(),
            certificate_not_after: 2_000_000_000,
            snapshot_version: String::new(),
            snapshot_age_seconds: 42,
            ready: false,
            not_ready_reason: "no snapshot".into(),
        })),
    }
}

fn answers(ask: Ask) -> Reply {
    match ask {
        Ask::Dump(_) => Reply::Dump(DumpReply {
            json: br#"{"ready":true}"#.to_vec(),
        }),
        Ask::Rotate(_) => Reply::Rotated(RotateReply {
            old_serial: "01".into(),
            new_serial: "02".into(),
        }),
        Ask::Facts(ask) => Reply::Facts(FactsReply {
            found: ask.decision_id.ends_with("-1"),
            facts: br#"{"service":"shop/orders"}"#.to_vec(),
            service: br#"{"name":"shop/orders"}"#.to_vec(),
            mesh: br#"{"trustDomain":"demo.test"}"#.to_vec(),
            snapshot_version: "v1".into(),
            decision: br#"{"status":403}"#.to_vec(),
        }),
    }
}

#[tokio::test]
async fn a_proxy_reports_its_own_status() {
    let plane = Plane::start().await;
    let web = plane.join("web").await;
    let _open = inspected(web.channel(&plane).await, "web-1", answers).await;
    let status = plane
        .until("web-1", |status| status["notReadyReason"] == "no snapshot")
        .await;
    assert_eq!(status["certificateSerial"], "0a0b");
    assert_eq!(status["certificateNotAfter"], "2033-05-18T03:33:20Z");
    assert_eq!(status["ready"], false);
}

#[tokio::test]
async fn the_proxy_itself_answers_for_its_configuration_and_rotation() {
    let plane = Plane::start().await;
    let web = plane.join("web").await;
    let _open = inspected(web.channel(&plane).await, "web-1", answers).await;
    plane.until("web-1", |status| !status.is_null()).await;
    assert_eq!(
        plane.get("/v1/proxies/web-1/config").await,
        json!({ "ready": true })
    );
    let (status, rotated) = plane.ask("POST", "/v1/proxies/web-1/rotate", "").await;
    assert_eq!(
        (status, rotated),
        (200, json!({ "oldSerial": "01", "newSerial": "02" }))
    );
}

#[tokio::test]
async fn a_decision_id_finds_its_facts_and_the_policies_of_then_and_now() {
    let plane = Plane::start().await;
    let orders = plane.join("orders").await;
    let _open = inspected(orders.channel(&plane).await, "orders-1", answers).await;
    plane.until("orders-1", |status| !status.is_null()).await;
    let prefix = decision_prefix("orders-1");
    let decision = plane.get(&format!("/v1/decisions/{prefix}-1")).await;
    assert_eq!(decision["proxy"], "orders-1");
    assert_eq!(decision["facts"]["service"], "shop/orders");
    assert_eq!(decision["service"]["name"], "shop/orders");
    assert_eq!(decision["serviceNow"]["ports"][0]["port"], 80);
    assert_eq!(decision["meshNow"]["trustDomain"], "demo.test");
    assert_eq!(decision["decision"]["status"], 403);
    let (status, problem) = plane
        .ask("GET", &format!("/v1/decisions/{prefix}-2"), "")
        .await;
    assert_eq!(status, 404);
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("no longer has the decision"),
        "{problem}"
    );
}

#[tokio::test]
async fn failed_requests_have_a_reason() {
    let plane = Plane::start().await;
    let (status, problem) = plane.ask("GET", "/v1/decisions/00000000-1", "").await;
    assert_eq!((status, &problem["status"]), (404, &json!(404)));
    let (status, _) = plane.ask("GET", "/v1/decisions/nonsense", "").await;
    assert_eq!(status, 400);
    let (status, _) = plane.ask("GET", "/v1/proxies/missing/config", "").await;
    assert_eq!(status, 404);
    let (status, problem) = plane.ask("GET", "/v2", "").await;
    assert_eq!((status, &problem["title"]), (404, &json!("Not Found")));
    let (status, _) = plane.ask("DELETE", "/v1/proxies", "").await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn a_disconnected_proxy_is_listed_and_requests_to_it_fail_as_disconnected() {
    let plane = Plane::start().await;
    let web = plane.join("web").await;
    let mut stream = web.stream(&plane, "web-1").await;
    stream.subscribe_manifest().await;
    stream.next().await.unwrap();
    drop(stream);
    plane
        .until("web-1", |status| status["state"] == "disconnected")
        .await;
    let (status, problem) = plane.ask("GET", "/v1/proxies/web-1/config", "").await;
    assert_eq!(status, 503);
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("is not connected"),
        "{problem}"
    );
    let hint = problem["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("merlon proxy status"), "{problem}");
}

#[tokio::test]
async fn an_inspection_that_does_not_begin_with_a_report_is_rejected() {
    let plane = Plane::start().await;
    let web = plane.join("web").await;
    let dump = Reply::Dump(DumpReply { json: Vec::new() });
    let first = InspectReply {
        id: 1,
        reply: Some(dump),
    };
    let (_replies, mut questions) = open(web.channel(&plane).await, first).await;
    let status = questions.message().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("report"), "{status}");
    let (_replies, mut questions) = open(web.channel(&plane).await, report("a b")).await;
    assert!(
        questions
            .message()
            .await
            .unwrap_err()
            .message()
            .contains("node_id")
    );
}

#[tokio::test]
async fn invalid_join_token_requests_are_rejected() {
    let plane = Plane::start().await;
    for (body, status, text) in [
        ("", 400, "not a token request"),
        ("{\"identity\":1}", 400, "not a token request"),
        (
            "{\"identity\":\"shop/web\",\"admin\":true}",
            400,
            "unknown field `admin`",
        ),
        ("{\"identity\":\"web\"}", 400, "namespace/service-account"),
        (
            "{\"identity\":\"shop/web\",\"ttl\":\"11m\"}",
            400,
            "from 1s to 10m",
        ),
        (
            "{\"identity\":\"shop/web\",\"ttl\":\"0s\"}",
            400,
            "from 1s to 10m",
        ),
        (
            "{\"identity\":\"spiffe://other.test/ns/shop/sa/web\"}",
            404,
            "other.test",
        ),
        ("{\"identity\":\"shop/missing\"}", 404, "sa/missing"),
    ] {
        let (found, problem) = plane.ask("POST", "/v1/join-tokens", body).await;
        assert_eq!(found, status, "{body}: {problem}");
        assert!(
            problem["detail"].as_str().unwrap().contains(text),
            "{body}: {problem}"
        );
    }
}

/// Requests `/live` on a connection that stays open.
async fn live(stream: &mut TcpStream) {
    let request = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"live\n") {
        let bytes = limit("the answer", stream.read_buf(&mut read)).await;
        assert_ne!(bytes.unwrap(), 0, "the connection is closed");
    }
}

#[tokio::test]
async fn of_too_many_connections_to_live_ready_and_metrics_the_oldest_is_closed() {
    let plane = Plane::with_limits(|limits| limits.admin.connections = 2).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(plane.running.admin).await.unwrap();
        live(&mut stream).await;
        open.push(stream);
    }
    let mut oldest = open.remove(0);
    let end = limit("the end", oldest.read(&mut [0; 8])).await;
    assert_eq!(end.unwrap(), 0);
    for stream in &mut open {
        live(stream).await;
    }
}

#[tokio::test]
async fn a_client_of_live_ready_and_metrics_that_sends_no_whole_head_is_disconnected() {
    let short = Duration::from_millis(50);
    let plane = Plane::with_limits(|limits| limits.admin.head = short).await;
    for begun in ["", "GET /live HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = TcpStream::connect(plane.running.admin).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut read = String::new();
        let end = limit("the end", stream.read_to_string(&mut read)).await;
        assert!(end.is_ok() && !read.contains("200"), "{read}");
    }
}
