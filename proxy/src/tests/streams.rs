//! Streams, trailers, WebSockets and tunnels: the proxies pass data on without buffering it.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use merlon_config::resource::OutboundListener;
use merlon_test_support::ports;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, split},
    net::TcpStream,
};

use crate::tests::harness::*;

/// Echoes each data frame as it arrives, then ends with the trailer `grpc-status: 0`.
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

pub(super) fn grpc_request(path: &str) -> http::request::Builder {
    Request::post(format!("http://orders.shop{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

#[test]
fn a_grpc_stream_is_not_buffered_in_either_direction_and_ends_in_trailers() {
    run(async {
        let program = grpc_echo().await;
        let pair = Pair::new(&program, "grpc", PERMIT_ALL);
        let (to, body) = streamed_body();
        let mut client = h2_client(pair.web.outbound).await;
        let response = client
            .send_request(grpc_request("/a.B/Chat").body(body).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        let mut answer = response.into_body();
        for message in ["one", "two", "three"] {
            // The next message is sent only after the last has come back, so any buffering blocks.
            to.send(Frame::data(Bytes::from(message))).await.unwrap();
            assert_eq!(next_data(&mut answer).await.unwrap(), message);
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
        assert_eq!(program.last_request().headers["te"], "trailers");
        let line = pair.orders.log.for_path("/a.B/Chat").await;
        assert_eq!(
            (line["bytes_in"].as_u64(), line["bytes_out"].as_u64()),
            (Some(11), Some(11))
        );
    });
}

#[test]
fn a_response_streams_to_an_http1_client_without_buffering() {
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
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
            .await
            .unwrap();
        let mut read = String::new();
        for part in ["first", "second"] {
            to.send(Bytes::from(part)).await.unwrap();
            while !read.contains(part) {
                read.push_str(
                    std::str::from_utf8(&stream.read_u8().await.unwrap().to_ne_bytes()).unwrap(),
                );
            }
        }
        assert!(read.starts_with("HTTP/1.1 200 "), "{read}");
    });
}

#[test]
fn a_large_body_arrives_complete() {
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
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let (to, body) = streamed_body();
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
        let count = response
            .unwrap()
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes();
        assert_eq!(count, (256 * (64 << 10)).to_string());
    });
}

/// A frame of the feeder, and the length of its body.
const FRAME: usize = 64 << 10;
const ALL: usize = 64 << 20;
/// More than the flow-control windows on the way (256 KiB at each proxy, 1 MiB at the program) and what client and
/// proxies have in hand.
const MOST: usize = 8 << 20;

#[test]
fn a_body_that_the_program_does_not_read_is_not_gathered() {
    run(async {
        let (release, held) = tokio::sync::watch::channel(false);
        let program = Program::serving(async move |request: Request<Incoming>| {
            held.clone().wait_for(|go| *go).await.unwrap();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(full(body.len().to_string()))
        })
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let (to, body) = streamed_body();
        let mut client = h2_client(pair.web.outbound).await;
        let answer = client.send_request(Request::post("http://orders.shop/").body(body).unwrap());
        let answer = tokio::task::spawn_local(answer);
        let sent = std::rc::Rc::new(std::cell::Cell::new(0));
        let feeder = std::rc::Rc::clone(&sent);
        let feed = tokio::task::spawn_local(async move {
            while feeder.get() < ALL {
                to.send(Frame::data(Bytes::from(vec![7; FRAME])))
                    .await
                    .unwrap();
                feeder.set(feeder.get() + FRAME);
            }
        });
        until("the request", || program.requests.get() == 1).await;
        // It stalls: whatever another request costs, nothing more is taken from the feeder.
        let mut before = usize::MAX;
        while before != sent.get() {
            before = sent.get();
            for _ in 0..20 {
                assert_eq!(
                    http1(pair.web.outbound, get("nothing", "/")).await.status,
                    404
                );
            }
        }
        assert!((FRAME..MOST).contains(&before), "{before} bytes were taken");
        release.send(true).unwrap();
        feed.await.unwrap();
        let answer = collect(answer.await.unwrap().unwrap()).await;
        assert_eq!(answer.body, ALL.to_string());
    });
}

#[test]
fn a_program_notices_when_the_client_disconnects() {
    run(async {
        let (seen, mut gone) = tokio::sync::watch::channel(false);
        let program = Program::serving(async move |request: Request<Incoming>| {
            let mut body = request.into_body();
            let seen = seen.clone();
            tokio::task::spawn_local(async move {
                while let Some(Ok(_)) = body.frame().await {}
                seen.send(true).unwrap();
            });
            Response::new(full("started"))
        })
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let (to, body) = streamed_body();
        let mut client = h2_client(pair.web.outbound).await;
        let response = client
            .send_request(Request::post("http://orders.shop/").body(body).unwrap())
            .await
            .unwrap();
        drop((response, to, client));
        gone.wait_for(|gone| *gone).await.unwrap();
    });
}

/// A program that accepts a WebSocket upgrade and echoes every byte.
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

pub(super) const WEBSOCKET_REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Reads one head byte by byte, and nothing after it.
pub(super) async fn read_head(stream: &mut TcpStream) -> String {
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
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
        // Bytes that arrive before the 101 response are held until then.
        stream
            .write_all(format!("{WEBSOCKET_REQUEST}\x01early").as_bytes())
            .await
            .unwrap();
        let answer = read_head(&mut stream).await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 101 "), "{answer}");
        assert!(
            answer.contains("upgrade: websocket")
                && answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=")
        );
        for data in ["\x01early", "\x00\u{7f}\nbytes"] {
            if data != "\x01early" {
                stream.write_all(data.as_bytes()).await.unwrap();
            }
            let mut back = vec![0; data.len()];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(back, data.as_bytes());
        }
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        let line = pair.orders.log.for_path("/ws").await;
        assert_eq!(
            (
                line["status"].as_u64(),
                line["bytes_in"].as_u64(),
                line["bytes_out"].as_u64()
            ),
            (Some(101), Some(14), Some(14))
        );
        assert_eq!(
            program.last_request().headers["merlon-caller"],
            spiffe("shop/web")
        );
    });
}

#[test]
fn after_a_denied_websocket_upgrade_the_connection_serves_the_next_request() {
    run(async {
        let program = websocket_echo().await;
        let policies = r#"@id("open") permit (principal, action, resource) when { context has path && context.path == "/open" };"#;
        let pair = Pair::new(&program, "http", policies);
        let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
        let follows = "GET /open HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
        stream
            .write_all(format!("{WEBSOCKET_REQUEST}{follows}").as_bytes())
            .await
            .unwrap();
        let mut both = String::new();
        stream.read_to_string(&mut both).await.unwrap();
        assert!(both.starts_with("HTTP/1.1 403 "), "{both}");
        // The program answers 400 to a request that is not an upgrade.
        assert!(both.contains("HTTP/1.1 400 "), "{both}");
        assert_eq!(program.requests.get(), 1);
        assert_eq!(program.last_request().uri.path(), "/open");
    });
}

#[test]
fn an_upgrade_to_anything_else_is_an_ordinary_request() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let ask = "GET /h2c HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
        let answer = raw(pair.web.outbound, ask.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(!program.last_request().headers.contains_key("upgrade"));
    });
}

/// `shop/web` reaches the TCP port of `shop/orders` at a local address.
pub(super) async fn tcp_pair(program: &Program, policies: &str) -> (Pair, std::net::SocketAddr) {
    let local = ports::free();
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
    pair.web.apply(&pair.web_state);
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
fn a_tcp_tunnel_passes_bytes_and_closes_each_direction_independently() {
    run(async {
        let program = tcp_echo().await;
        let (pair, local) = tcp_pair(&program, PERMIT_ALL).await;
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
            "the other direction continues after ours has ended"
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
fn a_tunnel_that_policy_denies_does_not_reach_the_program() {
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
        program.assert_not_reached();
    });
}

/// `POST path` with a body of 5 bytes that waits for `100 Continue`.
fn expecting(host: &str, path: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    .into_bytes()
}

#[test]
fn a_refusal_by_the_other_proxy_precedes_100_continue() {
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
        program.assert_not_reached();
        edge.log.for_path("/orders/no").await;
        let line = pair.orders.log.for_path("/orders/no").await;
        assert_eq!(line["status"], 403);
    });
}

#[test]
fn a_permitted_request_gets_100_continue_and_reaches_the_program_once() {
    run(async {
        let program = Program::echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let (_edge, _, address) = super::gateway::plain_edge(&pair).await;
        for (to, host) in [(pair.web.outbound, "orders"), (address, "shop.example")] {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream
                .write_all(&expecting(host, "/orders/up"))
                .await
                .unwrap();
            assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100 "));
            stream.write_all(b"hello").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.contains("hello"), "{answer}");
        }
        assert_eq!(program.requests.get(), 2);
        // Log lines keep the order of the requests: after the last one, all are present.
        http1(pair.web.outbound, get("orders", "/last")).await;
        pair.orders.log.for_path("/last").await;
        let lines = pair.orders.log.lines();
        let of_it = lines.iter().filter(|line| line["path"] == "/orders/up");
        assert_eq!(
            of_it.count(),
            2,
            "the permission query between the proxies is not a request: {lines:#?}"
        );
    });
}
