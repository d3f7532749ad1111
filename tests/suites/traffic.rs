//! What goes through two sidecars comes out as it went in.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::{
    body::Frame,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use merlon_tests::{
    Mesh,
    app::App,
    chat::Line,
    client::connect,
    mesh::{Guard, Shared},
    postgres::Postgres,
    redis::Redis,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;
use tonic::Code;

static MESH: Shared = Shared::new();

/// A program for each protocol, and `web`, who may call them all.
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
async fn http_2_with_prior_knowledge_comes_out_as_http_2() {
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
async fn a_streamed_body_is_passed_on_piece_by_piece_over_http_1() {
    let mesh = mesh().await;
    let (pieces, body) = piecemeal();
    let io = TokioIo::new(mesh.as_workload("web").tcp().await);
    let (mut sender, connection) = http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/stream")
        .header("host", "orders.shop")
        .body(body)
        .unwrap();
    each_piece_comes_back_before_the_next_is_sent(pieces, sender.send_request(request)).await;
}

#[tokio::test]
async fn a_streamed_body_is_passed_on_piece_by_piece_over_http_2() {
    let mesh = mesh().await;
    let (pieces, body) = piecemeal();
    let io = TokioIo::new(mesh.as_workload("web").tcp().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://orders.shop/stream")
        .body(body)
        .unwrap();
    each_piece_comes_back_before_the_next_is_sent(pieces, sender.send_request(request)).await;
}

type Pieces = mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>;
type Piecemeal = StreamBody<ReceiverStream<Result<Frame<Bytes>, std::convert::Infallible>>>;

fn piecemeal() -> (Pieces, Piecemeal) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, StreamBody::new(ReceiverStream::new(receiver)))
}

/// The program gives each piece back as it comes: whoever buffers on the way makes this wait for ever.
async fn each_piece_comes_back_before_the_next_is_sent(
    pieces: Pieces,
    response: impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>,
) {
    pieces
        .send(Ok(Frame::data("piece 0".into())))
        .await
        .unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    for number in 0..5 {
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece, format!("piece {number}"));
        let next = format!("piece {}", number + 1);
        pieces.send(Ok(Frame::data(next.into()))).await.unwrap();
    }
    drop(pieces);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "piece 5");
}

#[tokio::test]
async fn trailers_survive_in_both_versions() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let reply = web.get("orders", "/trailers").over_http2().await;
    assert_eq!(reply.is_ok().trailers["x-checksum"], "c0ffee");

    let reply = web
        .get("orders", "/trailers")
        .header("te", "trailers")
        .await;
    assert_eq!(reply.is_ok().trailers["x-checksum"], "c0ffee");
}

#[tokio::test]
async fn trailers_of_a_request_reach_the_program() {
    let mesh = mesh().await;
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
    let (pieces, body) = piecemeal();
    pieces
        .send(Ok(Frame::data("counted".into())))
        .await
        .unwrap();
    let io = TokioIo::new(mesh.as_workload("web").tcp().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://orders.shop/request-trailers")
        .body(body)
        .unwrap();
    let response = sender.send_request(request);
    pieces.send(Ok(Frame::trailers(trailers))).await.unwrap();
    drop(pieces);
    let reply = merlon_tests::Reply::read(response.await.unwrap())
        .await
        .unwrap();
    assert_eq!(reply.is_ok().json()["trailers"]["x-sum"], "42");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_request_arrives() {
    let mesh = mesh().await;
    let (pieces, body) = piecemeal();
    pieces
        .send(Ok(Frame::data("the beginning".into())))
        .await
        .unwrap();
    let io = TokioIo::new(mesh.as_workload("web").tcp().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://orders.shop/early")
        .body(body)
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "early"
    );
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
async fn who_waits_for_100_continue_gets_it() {
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
async fn what_only_proxies_may_say_is_stripped_from_what_programs_say() {
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
async fn a_program_that_breaks_off_is_502_and_tells_whose_fault_it_is() {
    let mesh = mesh().await;
    let reply = mesh.as_workload("web").get("broken", "/").await;
    reply.is_problem(StatusCode::BAD_GATEWAY, "upstream.reset");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_503() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    mesh.app("orders").stop();
    let web = mesh.as_workload("web");
    merlon_tests::until("the program is gone", async || {
        tokio::net::TcpStream::connect(mesh.app("orders").address())
            .await
            .is_err()
    })
    .await;
    let reply = web.get("orders", "/").await;
    reply.is_problem(StatusCode::SERVICE_UNAVAILABLE, "upstream.connect");
    mesh.log_of("orders", &reply).await.has("status", "503");
}

#[tokio::test]
async fn a_service_that_is_not_in_the_mesh_is_refused_with_its_name() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .mesh("  outbound: deny\n")
        .start()
        .await;
    let reply = mesh.as_workload("web").get("nowhere", "/").await;
    assert!(
        reply.status.is_client_error() || reply.status.is_server_error(),
        "{reply:?}"
    );
    assert_eq!(
        reply.header("content-type"),
        "application/problem+json",
        "{reply:?}"
    );
    assert_eq!(mesh.requests_seen_by("orders"), 0);
}

// --- WebSocket ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_web_socket_talks_in_both_directions_and_closes() {
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

// --- gRPC -----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn grpc_calls_of_all_four_kinds_are_answered() {
    let mesh = mesh().await;
    let mut chat = mesh.as_workload("web").chat("chat").await;

    let said = chat.say(Line::new("hello", 1)).await.unwrap().into_inner();
    assert_eq!(said, Line::new("heard hello", 1));

    let counted = chat.count(Line::new("n", 100)).await.unwrap().into_inner();
    assert_eq!(counted.count().await, 100);

    let lines = tokio_stream::iter((1..=10).map(|n| Line::new("", n)));
    assert_eq!(chat.collect(lines).await.unwrap().into_inner().number, 55);

    let (lines, outgoing) = mpsc::channel(1);
    let mut answers = chat
        .talk(ReceiverStream::new(outgoing))
        .await
        .unwrap()
        .into_inner();
    for number in 1..=5 {
        lines.send(Line::new("you", number)).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer, Line::new("heard you", number));
    }
    drop(lines);
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_grpc_error_arrives_with_its_code_and_message() {
    let mesh = mesh().await;
    let mut chat = mesh.as_workload("web").chat("chat").await;
    let error = chat
        .fail(Line::new("no such order: 50 % off", 5))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(error.message(), "no such order: 50 % off");
}

#[tokio::test]
async fn a_grpc_deadline_is_the_programs_to_see() {
    let mesh = mesh().await;
    let mut chat = mesh.as_workload("web").chat("chat").await;
    let mut request = tonic::Request::new(Line::new("soon", 1));
    request.set_timeout(Duration::from_secs(30));
    request
        .metadata_mut()
        .insert("x-tenant", "green".parse().unwrap());
    chat.say(request).await.unwrap();
    let seen = mesh.seen_by("chat");
    let seen = seen.iter().find(|seen| {
        seen.headers
            .get("x-tenant")
            .is_some_and(|tenant| tenant == "green")
    });
    assert!(seen.expect("the call").headers.contains_key("grpc-timeout"));
}

// --- TCP ------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn opaque_bytes_go_both_ways_until_both_sides_have_ended() {
    let mesh = mesh().await;
    let mut stream = connect(mesh.outbound("web", "echo")).await;
    let sent: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let (mut read, mut write) = stream.split();
    let mut back = Vec::new();
    let sending = async {
        write.write_all(&sent).await.unwrap();
        // Half closed: what is still on its way back must come.
        write.shutdown().await.unwrap();
    };
    tokio::join!(sending, async {
        read.read_to_end(&mut back).await.unwrap()
    });
    assert!(back == sent, "{} bytes came back", back.len());
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let mesh = mesh().await;
    let mut stream = connect(mesh.outbound("web", "mail")).await;
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
}

#[tokio::test]
async fn redis_and_postgres_clients_work_through_two_sidecars() {
    let (redis, postgres) = tokio::join!(Redis::start(), Postgres::start());
    let mesh = Mesh::new()
        .service_at("cache", "tcp", redis.address())
        .allow_tcp("web")
        .service_at("ledger", "tcp", postgres.address())
        .allow_tcp("web")
        .start()
        .await;

    let cache = mesh.outbound("web", "cache");
    assert_eq!(
        redis.cli(cache, &["SET", "order:1", "paid"]).await.out,
        "OK\n"
    );
    assert_eq!(
        redis.cli(redis.address(), &["GET", "order:1"]).await.out,
        "paid\n"
    );

    let ledger = mesh.outbound("web", "ledger");
    let made = postgres
        .psql(
            ledger,
            "create table entries as select * from generate_series(1, 1000) n",
        )
        .await;
    assert!(made.status.success(), "{made:?}");
    assert_eq!(
        postgres
            .psql(ledger, "select sum(n) from entries")
            .await
            .out,
        "500500\n"
    );
    assert_eq!(
        postgres
            .psql(postgres.address(), "select count(*) from entries")
            .await
            .out,
        "1000\n"
    );

    mesh.log_where("cache", "src", &merlon_tests::mesh::identity("web"))
        .await
        .has("reason", "");
}
