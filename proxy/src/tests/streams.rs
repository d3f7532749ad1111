//! What goes on for longer than a request: streams, trailers, WebSockets, tunnels. Nothing of it is gathered.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use merlon_config::resource::OutboundListener;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, split},
    net::{TcpListener, TcpStream},
};

use crate::tests::harness::*;

/// Sends back each piece as it comes, then what trailers came, then `grpc-status: 0`.
pub(super) async fn grpc_echo() -> Program {
    Program::serving(async |request: Request<Incoming>| {
        let body = futures_util::stream::unfold(Some(request.into_body()), async |body| {
            let mut body = body?;
            match body.frame().await {
                Some(Ok(frame)) if frame.is_data() => Some((Ok(frame), Some(body))),
                Some(Ok(_)) | None => {
                    let trailers = HeaderMap::from_iter([(
                        http::HeaderName::from_static("grpc-status"),
                        HeaderValue::from_static("0"),
                    )]);
                    Some((Ok(Frame::trailers(trailers)), None))
                }
                Some(Err(error)) => Some((Err(error), None)),
            }
        });
        let mut response = Response::new(StreamBody::new(body).boxed_unsync());
        response
            .headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    })
    .await
}

pub(super) fn call(path: &str) -> http::request::Builder {
    Request::post(format!("http://orders.shop{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

#[test]
fn a_grpc_stream_goes_piece_by_piece_in_both_directions_and_ends_in_trailers() {
    run(async {
        let program = grpc_echo().await;
        let pair = Pair::new(&program, "grpc", ALL);
        let (to, body) = channel();
        let mut client = h2_client(pair.web.outbound).await;
        let response = client
            .send_request(call("/a.B/Chat").body(body).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        let mut answer = response.into_body();
        for said in ["one", "two", "three"] {
            // The next is sent only when the last has come back: nothing on the way may wait for more.
            to.send(Frame::data(Bytes::from(said))).await.unwrap();
            assert_eq!(piece(&mut answer).await.unwrap(), said);
        }
        drop(to);
        let trailers = answer
            .frame()
            .await
            .unwrap()
            .unwrap()
            .into_trailers()
            .unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(program.last().headers["te"], "trailers");
        let line = pair.orders.log.of("/a.B/Chat").await;
        assert_eq!(
            (line["bytes_in"].as_u64(), line["bytes_out"].as_u64()),
            (Some(11), Some(11))
        );
    });
}

#[test]
fn an_answer_streams_to_an_http1_client_as_it_comes() {
    run(async {
        let (to, from) = tokio::sync::mpsc::channel::<Bytes>(4);
        let from = std::rc::Rc::new(std::cell::RefCell::new(Some(from)));
        let program = Program::serving(async move |_| {
            let stream =
                tokio_stream::wrappers::ReceiverStream::new(from.borrow_mut().take().unwrap());
            let frames = futures_util::StreamExt::map(stream, |bytes| Ok(Frame::data(bytes)));
            Response::new(StreamBody::new(frames).boxed_unsync())
        })
        .await;
        let pair = Pair::new(&program, "http", ALL);
        let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
            .await
            .unwrap();
        let mut read = String::new();
        for said in ["first", "second"] {
            to.send(Bytes::from(said)).await.unwrap();
            while !read.contains(said) {
                read.push_str(
                    std::str::from_utf8(&stream.read_u8().await.unwrap().to_ne_bytes()).unwrap(),
                );
            }
        }
        assert!(read.starts_with("HTTP/1.1 200 "), "{read}");
    });
}

#[test]
fn a_large_body_passes_with_little_memory_held_back() {
    run(async {
        let program = Program::serving(async |request: Request<Incoming>| {
            let mut body = request.into_body();
            let mut bytes = 0;
            while let Some(Ok(frame)) = body.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
            }
            Response::new(full(bytes.to_string()))
        })
        .await;
        let pair = Pair::new(&program, "http", ALL);
        let (to, body) = channel();
        let mut client = h2_client(pair.web.outbound).await;
        let sent = client.send_request(Request::post("http://orders.shop/").body(body).unwrap());
        let feed = async {
            for _ in 0..256 {
                to.send(Frame::data(Bytes::from(vec![7; 64 << 10])))
                    .await
                    .unwrap();
            }
            drop(to);
        };
        let (response, ()) = tokio::join!(sent, feed);
        let said = response
            .unwrap()
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes();
        assert_eq!(said, (256 * (64 << 10)).to_string());
    });
}

#[test]
fn a_caller_that_goes_away_is_seen_by_the_program() {
    run(async {
        let (seen, mut gone) = tokio::sync::watch::channel(false);
        let program = Program::serving(async move |request: Request<Incoming>| {
            let mut body = request.into_body();
            let seen = seen.clone();
            tokio::task::spawn_local(async move {
                while let Some(Ok(_)) = body.frame().await {}
                seen.send(true).unwrap();
            });
            Response::new(full("begun"))
        })
        .await;
        let pair = Pair::new(&program, "http", ALL);
        let (to, body) = channel();
        let mut client = h2_client(pair.web.outbound).await;
        let response = client
            .send_request(Request::post("http://orders.shop/").body(body).unwrap())
            .await
            .unwrap();
        drop((response, to, client));
        gone.wait_for(|gone| *gone).await.unwrap();
    });
}

/// A program that agrees to a WebSocket and sends back every byte.
pub(super) async fn websocket_echo() -> Program {
    Program::serving(async |mut request: Request<Incoming>| {
        let mut response = Response::new(full(""));
        if request
            .headers()
            .get("upgrade")
            .is_none_or(|protocol| protocol != "websocket")
        {
            *response.status_mut() = http::StatusCode::BAD_REQUEST;
            return response;
        }
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::task::spawn_local(async move {
            let (mut read, mut write) = split(TokioIo::new(upgrade.await.unwrap()));
            let _ = copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert("connection", HeaderValue::from_static("upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("websocket"));
        headers.insert(
            "sec-websocket-accept",
            HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        );
        response
    })
    .await
}

pub(super) const ASK: &str = "GET /ws HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Reads a head, byte by byte, and no further.
pub(super) async fn head(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(read).unwrap()
}

#[test]
fn a_websocket_goes_through_both_proxies() {
    run(async {
        let program = websocket_echo().await;
        let pair = Pair::new(&program, "http", ALL);
        let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
        // Bytes may follow before the answer: they wait.
        stream
            .write_all(format!("{ASK}\x01early").as_bytes())
            .await
            .unwrap();
        let answer = head(&mut stream).await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        assert!(
            answer.contains("upgrade: websocket")
                && answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=")
        );
        for said in ["\x01early", "\x00\u{7f}\nbytes"] {
            if said != "\x01early" {
                stream.write_all(said.as_bytes()).await.unwrap();
            }
            let mut back = vec![0; said.len()];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(back, said.as_bytes());
        }
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        let line = pair.orders.log.of("/ws").await;
        assert_eq!(
            (
                line["status"].as_u64(),
                line["bytes_in"].as_u64(),
                line["bytes_out"].as_u64()
            ),
            (Some(101), Some(14), Some(14))
        );
        assert_eq!(program.last().headers["merlon-caller"], spiffe("shop/web"));
    });
}

#[test]
fn a_websocket_that_policy_denies_is_refused_and_what_follows_is_a_request_again() {
    run(async {
        let program = websocket_echo().await;
        let policies = r#"@id("open") permit (principal, action, resource) when { context has path && context.path == "/open" };"#;
        let pair = Pair::new(&program, "http", policies);
        let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
        let follows = "GET /open HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
        stream
            .write_all(format!("{ASK}{follows}").as_bytes())
            .await
            .unwrap();
        let mut both = String::new();
        stream.read_to_string(&mut both).await.unwrap();
        assert!(both.starts_with("HTTP/1.1 403 "), "{both}");
        // The program's own answer to a request that is no upgrade.
        assert!(both.contains("HTTP/1.1 400 "), "{both}");
        assert_eq!(program.requests.get(), 1);
        assert_eq!(program.last().uri.path(), "/open");
    });
}

#[test]
fn an_upgrade_to_anything_else_is_an_ordinary_request() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", ALL);
        let ask = "GET /h2c HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
        let answer = raw(pair.web.outbound, ask.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(!program.last().headers.contains_key("upgrade"));
    });
}

/// `shop/web` finds the TCP port of `shop/orders` at a local address.
pub(super) async fn tcp_pair(program: &Program, policies: &str) -> (Pair, std::net::SocketAddr) {
    let local = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let mut pair = Pair::with(
        service("shop/orders", 5432, program.port(), "tcp", policies),
        "tcp",
    );
    let to = destination(
        "shop/orders",
        5432,
        "tcp",
        pair.orders.inbound,
        Some("shop/orders"),
    );
    pair.web_state.destinations = vec![to];
    pair.web_state.outbound = vec![OutboundListener {
        listen: local,
        service: "shop/orders".parse().unwrap(),
        port: 5432,
    }];
    pair.web.take(&pair.web_state);
    while TcpStream::connect(local).await.is_err() {
        tokio::task::yield_now().await;
    }
    (pair, local)
}

pub(super) async fn tcp_echo() -> Program {
    Program::raw(async |stream: TcpStream| {
        let (mut read, mut write) = split(stream);
        let _ = write.write_all(b"hello ").await;
        let _ = copy(&mut read, &mut write).await;
        let _ = write.write_all(b" bye").await;
        let _ = write.shutdown().await;
    })
    .await
}

#[test]
fn opaque_bytes_pass_and_each_direction_ends_by_itself() {
    run(async {
        let program = tcp_echo().await;
        let (pair, local) = tcp_pair(&program, ALL).await;
        let mut stream = TcpStream::connect(local).await.unwrap();
        // The server speaks first.
        let mut hello = [0; 6];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello ");
        let long = vec![9; 1 << 20];
        let (mut read, mut write) = stream.split();
        let send = async {
            write.write_all(&long).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let (_, received) = tokio::join!(send, read.read_to_end(&mut back));
        received.unwrap();
        assert_eq!(back.len(), long.len() + 4);
        assert!(
            back.ends_with(b" bye"),
            "the other direction goes on after ours has ended"
        );
        let line = pair
            .orders
            .log
            .line(|line| line["protocol"] == "tcp" && line["bytes_in"] == 1 << 20)
            .await;
        assert_eq!(
            (line["src"].as_str(), line["dst"].as_str()),
            (Some(&*spiffe("shop/web")), Some("shop/orders:5432"))
        );
        assert_eq!(line["bytes_out"], (1 << 20) + 10);
    });
}

#[test]
fn a_tunnel_that_policy_denies_never_reaches_the_program() {
    run(async {
        let program = tcp_echo().await;
        let policies = r#"@id("http") permit (principal, action in Action::"http", resource);"#;
        let (pair, local) = tcp_pair(&program, policies).await;
        let mut stream = TcpStream::connect(local).await.unwrap();
        let _ = stream.write_all(b"anything").await;
        let mut back = Vec::new();
        let _ = stream.read_to_end(&mut back).await;
        assert!(back.is_empty());
        let line = pair
            .orders
            .log
            .line(|line| line["reason"] == "authz.denied")
            .await;
        assert_eq!(line["src"], spiffe("shop/web"));
        program.saw_nothing();
    });
}

/// `POST path` of a body of 5 bytes that waits to be asked for.
fn expecting(host: &str, path: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}

#[test]
fn a_refusal_of_the_other_proxy_comes_before_the_body_is_asked_for() {
    run(async {
        let program = Program::echo().await;
        let policies = r#"@id("all") @reason("a test") permit (principal, action, resource);
            @id("no") forbid (principal, action, resource) when { context has path && context.path like "/orders/no*" };"#;
        let mut service = service("shop/orders", 80, program.port(), "http", policies);
        service["validation"] = serde_json::json!([{ "from": "shop/small", "spec": {
            "limits": { "headers": "4KiB", "uri": "1KiB", "body": "64KiB" },
            "routes": [{ "path": "/orders/small", "methods": ["POST"], "maxBody": "4" }],
        } }]);
        let pair = Pair::with(service, "http");
        let (edge, _, address) = super::gateway::plain_edge(&pair).await;
        for (to, host) in [(pair.web.outbound, "orders"), (address, "shop.example")] {
            for (path, status) in [("/orders/no", "403"), ("/orders/small", "413")] {
                let answer = raw(to, &expecting(host, path)).await;
                let wanted = format!("HTTP/1.1 {status} ");
                assert!(answer.starts_with(&wanted), "{host} {path}: {answer}");
            }
        }
        program.saw_nothing();
        edge.log.of("/orders/no").await;
        let line = pair.orders.log.of("/orders/no").await;
        assert_eq!(line["status"], 403);
    });
}

#[test]
fn a_body_that_may_come_is_asked_for_and_the_program_sees_one_request() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", ALL);
        let (_edge, _, address) = super::gateway::plain_edge(&pair).await;
        for (to, host) in [(pair.web.outbound, "orders"), (address, "shop.example")] {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream
                .write_all(&expecting(host, "/orders/up"))
                .await
                .unwrap();
            assert!(head(&mut stream).await.starts_with("HTTP/1.1 100 "));
            stream.write_all(b"hello").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.contains("hello"), "{answer}");
        }
        assert_eq!(program.requests.get(), 2);
        // Lines come in the order of their requests: with the last one's all are there.
        http1(pair.web.outbound, get("orders", "/last")).await;
        pair.orders.log.of("/last").await;
        let lines = pair.orders.log.lines();
        let of_it = lines.iter().filter(|line| line["path"] == "/orders/up");
        assert_eq!(of_it.count(), 2, "a question is no request: {lines:#?}");
    });
}
