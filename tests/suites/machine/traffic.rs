//! Traffic passes two sidecars unchanged.

mod grpc;
mod streaming;
mod tcp;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use merlon_tests::{
    Mesh,
    app::App,
    mesh::{Guard, Shared},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

static MESH: Shared = Shared::new();

/// A program for each protocol, and `web`, which may call them all.
async fn mesh() -> Guard {
    MESH.get(async || {
        Mesh::new()
            .service("orders")
            .allow("web", "http", "/**")
            .grpc_service("chat")
            .allow_grpc("web")
            .tcp_service("echo")
            .allow_tcp("web")
            .service_of("mail", "tcp", App::tcp_server_first().await)
            .allow_tcp("web")
            .service_of("broken", "http", App::that_closes_connections().await)
            .allow("web", "http", "/**")
            .service("stopped")
            .allow("web", "http", "/**")
            .mesh("  outbound: deny\n")
            .start()
            .await
    })
    .await
}

// --- HTTP -----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_http_1_request_arrives_with_its_method_target_headers_and_body() {
    let mesh = mesh().await;
    let reply = mesh
        .as_workload("web")
        .call(Method::PATCH, "orders", "/orders/1?verbose=yes&x=%20")
        .header("x-tenant", "blue")
        .body("{\"state\":\"paid\"}")
        .await;
    let saw = reply.is_ok().json();
    assert_eq!(saw["method"], "PATCH");
    assert_eq!(saw["target"], "/orders/1?verbose=yes&x=%20");
    assert_eq!(saw["version"], "HTTP/1.1");
    assert_eq!(saw["headers"]["host"], "orders.shop");
    assert_eq!(saw["headers"]["x-tenant"], "blue");
    assert_eq!(saw["body"], "{\"state\":\"paid\"}");
}

#[tokio::test]
async fn http_2_with_prior_knowledge_arrives_as_http_2() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let saw = web
        .post("orders", "/h2c", "hello")
        .over_http2()
        .await
        .is_ok()
        .json();
    assert_eq!(saw["version"], "HTTP/2.0");
    assert_eq!(saw["target"], "/h2c");
    assert_eq!(saw["body"], "hello");
}

#[tokio::test]
async fn large_bodies_arrive_whole_in_both_directions() {
    let mesh = mesh().await;
    let body = Bytes::from("0123456789abcdef".repeat(256 << 10));
    for http2 in [false, true] {
        let call = mesh
            .as_workload("web")
            .post("orders", "/stream", body.clone());
        let reply = if http2 {
            call.over_http2().await
        } else {
            call.await
        };
        assert!(
            reply.is_ok().body == body,
            "{} bytes came back",
            reply.body.len()
        );
    }
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let mesh = mesh().await;
    let io = TokioIo::new(mesh.as_workload("web").tcp().await);
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for number in 0..20 {
        let request = Request::get(format!("/kept/{number}"))
            .header("host", "orders.shop")
            .body(Empty::<Bytes>::new())
            .unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        let reply = merlon_tests::Reply::read(response).await.unwrap();
        assert_eq!(reply.is_ok().json()["target"], format!("/kept/{number}"));
    }
}

#[tokio::test]
async fn requests_sent_in_one_go_are_answered_in_order() {
    let mesh = mesh().await;
    let answers = mesh
        .as_workload("web")
        .raw(
            b"GET /status/201 HTTP/1.1\r\nhost: orders.shop\r\n\r\n\
              GET /status/202 HTTP/1.1\r\nhost: orders.shop\r\n\r\n\
              GET /status/203 HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n",
        )
        .await;
    let lines: Vec<_> = answers
        .lines()
        .filter(|line| line.starts_with("HTTP/1.1 "))
        .collect();
    let codes: Vec<_> = lines.iter().map(|line| &line[9..12]).collect();
    assert_eq!(codes, ["201", "202", "203"], "{answers}");
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let mesh = mesh().await;
    let mut stream = mesh.as_workload("web").tcp().await;
    stream
        .write_all(
            b"POST /continue HTTP/1.1\r\nhost: orders.shop\r\nexpect: 100-continue\r\n\
              content-length: 5\r\nconnection: close\r\n\r\n",
        )
        .await
        .unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 "), "{rest}");
    assert!(rest.contains(r#""body":"hello""#), "{rest}");
}

#[tokio::test]
async fn the_programs_own_errors_pass_unchanged() {
    let mesh = mesh().await;
    for status in [404, 500, 503] {
        let reply = mesh
            .as_workload("web")
            .get("orders", &format!("/status/{status}"))
            .await;
        assert_eq!(reply.status, status);
        assert_ne!(reply.header("content-type"), "application/problem+json");
    }
}

#[tokio::test]
async fn a_head_request_is_answered_without_a_body() {
    let mesh = mesh().await;
    let reply = mesh
        .as_workload("web")
        .call(Method::HEAD, "orders", "/head")
        .await;
    assert_eq!(reply.is_ok().body.len(), 0);
    assert_eq!(mesh.seen_at("orders", "/head")[0].method, Method::HEAD);
}

#[tokio::test]
async fn headers_that_only_proxies_may_send_are_stripped_from_a_programs_request() {
    let mesh = mesh().await;
    let reply = mesh
        .as_workload("web")
        .get("orders", "/stripped")
        .header("merlon-peer", "service=shop/ledger;port=80;proto=h2")
        .header("merlon-decision-id", "mine")
        .header("connection", "x-hop")
        .header("x-hop", "for the sidecar only")
        .header("x-kept", "yes")
        .await;
    let saw = &reply.is_ok().json()["headers"];
    assert_eq!(saw["x-kept"], "yes");
    for stripped in ["merlon-peer", "merlon-decision-id", "x-hop"] {
        assert!(saw[stripped].is_null(), "{stripped} in {saw}");
    }
}

#[tokio::test]
async fn a_program_that_resets_the_connection_is_502_with_upstream_reset() {
    let mesh = mesh().await;
    let reply = mesh.as_workload("web").get("broken", "/").await;
    reply.is_problem(StatusCode::BAD_GATEWAY, "upstream.reset");
}

#[tokio::test]
async fn a_program_that_is_not_running_is_503() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    mesh.app("stopped").stop();
    merlon_tests::until("the program is gone", async || {
        tokio::net::TcpStream::connect(mesh.app("stopped").address())
            .await
            .is_err()
    })
    .await;
    let reply = web.get("stopped", "/").await;
    reply.is_problem(StatusCode::SERVICE_UNAVAILABLE, "upstream.connect");
    mesh.log_of("stopped", &reply)
        .await
        .has("status", "503")
        .has("reason", "upstream.connect");
}

#[tokio::test]
async fn a_service_that_is_not_in_the_mesh_is_refused_with_its_name() {
    let mesh = mesh().await;
    let reply = mesh.as_workload("web").get("nowhere", "/not-here").await;
    reply.is_problem(StatusCode::FORBIDDEN, "egress.denied");
    let problem = reply.json();
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("nowhere.shop"), "{detail}");
    mesh.log_of("web", &reply)
        .await
        .has("status", "403")
        .has("reason", "egress.denied")
        .has("host", "nowhere.shop")
        .has("upstream", "");
    assert!(mesh.seen_at("orders", "/not-here").is_empty());
}

// --- WebSocket ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_web_socket_carries_messages_in_both_directions_and_closes() {
    let mesh = mesh().await;
    let mut socket = mesh
        .as_workload("web")
        .web_socket("orders", "/socket")
        .await
        .unwrap();
    for message in [Message::text("hello"), Message::binary(vec![0_u8; 70_000])] {
        socket.send(message.clone()).await.unwrap();
        assert!(socket.next().await.unwrap().unwrap() == message);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
}
