//! Open requests and connections are authorized again when the snapshot changes.

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::streams;
use crate::tests::harness::*;

#[test]
fn a_stream_continues_while_policy_permits_it_and_ends_when_policy_no_longer_does() {
    run(async {
        let program = streams::grpc_echo().await;
        let pair = Pair::new(&program, "grpc", PERMIT_ALL);
        let (to, body) = streamed_body();
        let mut client = h2_client(pair.web.outbound).await;
        let response = client
            .send_request(streams::grpc_request("/a.B/Chat").body(body).unwrap())
            .await
            .unwrap();
        let mut answer = response.into_body();
        to.send(Frame::data(Bytes::from("one"))).await.unwrap();
        assert_eq!(next_data(&mut answer).await.unwrap(), "one");
        // Another policy that also permits it.
        let port = program.port();
        let again = r#"@id("still") permit (principal, action == Action::"grpc", resource);"#;
        pair.orders
            .apply(&State::new("shop/orders").with_service(service(
                "shop/orders",
                80,
                port,
                "grpc",
                again,
            )));
        to.send(Frame::data(Bytes::from("two"))).await.unwrap();
        assert_eq!(next_data(&mut answer).await.unwrap(), "two");
        // A policy that does not.
        let none = r#"@id("none") permit (principal == Workload::"shop/other", action, resource);"#;
        pair.orders
            .apply(&State::new("shop/orders").with_service(service(
                "shop/orders",
                80,
                port,
                "grpc",
                none,
            )));
        let ended = answer.frame().await;
        assert!(
            ended.is_none_or(|frame| frame.is_err()),
            "the stream must end"
        );
        assert_eq!(pair.orders.log.for_path("/a.B/Chat").await["aborted"], true);
    });
}

#[test]
fn a_websocket_ends_when_policy_no_longer_permits_it() {
    run(async {
        let program = streams::websocket_echo().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
        stream
            .write_all(streams::WEBSOCKET_REQUEST.as_bytes())
            .await
            .unwrap();
        assert!(
            streams::read_head(&mut stream)
                .await
                .starts_with("HTTP/1.1 101 ")
        );
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        pair.orders
            .apply(&State::new("shop/orders").with_service(service(
                "shop/orders",
                80,
                program.port(),
                "http",
                "",
            )));
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    });
}

#[test]
fn a_tunnel_continues_while_policy_permits_it_and_ends_when_policy_no_longer_does() {
    run(async {
        let program = streams::tcp_echo().await;
        let (pair, local) = streams::tcp_pair(&program, PERMIT_ALL).await;
        let mut stream = TcpStream::connect(local).await.unwrap();
        let mut hello = [0; 6];
        stream.read_exact(&mut hello).await.unwrap();
        let state = |policies| {
            State::new("shop/orders").with_service(service(
                "shop/orders",
                5432,
                program.port(),
                "tcp",
                policies,
            ))
        };
        pair.orders.apply(&state(
            r#"@id("tcp") permit (principal, action == Action::"tcp", resource);"#,
        ));
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        pair.orders.apply(&state(""));
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
        pair.orders
            .log
            .line(|line| {
                line["protocol"] == "tcp"
                    && line["aborted"] == true
                    && line["reason"] == "authz.denied"
            })
            .await;
    });
}

#[test]
fn a_tunnel_ends_when_its_service_is_removed() {
    run(async {
        let program = streams::tcp_echo().await;
        let (pair, local) = streams::tcp_pair(&program, PERMIT_ALL).await;
        let mut stream = TcpStream::connect(local).await.unwrap();
        let mut hello = [0; 6];
        stream.read_exact(&mut hello).await.unwrap();
        pair.orders.apply(&State::new("shop/orders"));
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    });
}

/// Permits requests of `shop/other` only.
const PERMIT_OTHER_ONLY: &str =
    r#"@id("none") permit (principal == Workload::"shop/other", action, resource);"#;

/// A program that answers with the data that the test sends, with or without `Content-Length`.
async fn trickle(length: Option<usize>) -> (Program, tokio::sync::mpsc::Sender<Bytes>) {
    let (to, from) = tokio::sync::mpsc::channel::<Bytes>(4);
    let from = std::rc::Rc::new(std::cell::RefCell::new(Some(from)));
    let program = Program::serving(async move |_| {
        let stream = tokio_stream::wrappers::ReceiverStream::new(from.borrow_mut().take().unwrap());
        let frames = futures_util::StreamExt::map(stream, |bytes| Ok(Frame::data(bytes)));
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        if let Some(length) = length {
            response
                .headers_mut()
                .insert("content-length", HeaderValue::from(length));
        }
        response
    })
    .await;
    (program, to)
}

/// `shop/orders` with `program` and these policies.
fn with_policies(program: &Program, policies: &str) -> State {
    State::new("shop/orders").with_service(service(
        "shop/orders",
        80,
        program.port(),
        "http",
        policies,
    ))
}

async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        read.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(read).unwrap()
}

#[test]
fn a_response_ends_when_it_is_no_longer_permitted_whatever_the_client_accepts() {
    run(async {
        for (accept, length) in [
            ("", None),
            ("Accept: */*\r\n", None),
            ("Accept: Text/Event-Stream\r\n", None),
            ("Accept: text/event-stream, */*\r\n", None),
            ("", Some(1_000)),
            ("", Some(1 << 30)),
        ] {
            let (program, to) = trickle(length).await;
            let pair = Pair::new(&program, "http", PERMIT_ALL);
            let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
            let ask = format!("GET /feed HTTP/1.1\r\nHost: orders\r\n{accept}\r\n");
            stream.write_all(ask.as_bytes()).await.unwrap();
            to.send(Bytes::from("first;")).await.unwrap();
            read_until(&mut stream, "first;").await;
            // Another state that also permits it.
            let again = r#"@id("still") @reason("a test") permit (principal, action, resource);"#;
            pair.orders.apply(&with_policies(&program, again));
            to.send(Bytes::from("second;")).await.unwrap();
            read_until(&mut stream, "second;").await;
            // No data follows: the change itself ends the response, not the next byte.
            pair.orders
                .apply(&with_policies(&program, PERMIT_OTHER_ONLY));
            let line = pair.orders.log.for_path("/feed").await;
            assert_eq!(line["aborted"], true, "{accept:?} {length:?}");
            assert_eq!(
                (&line["status"], &line["reason"]),
                (&200.into(), &"authz.denied".into())
            );
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(
                !rest.ends_with(b"0\r\n\r\n"),
                "the response must not look complete"
            );
            to.closed().await;
        }
    });
}

#[test]
fn a_response_over_http2_ends_when_it_is_no_longer_permitted() {
    run(async {
        let (program, to) = trickle(None).await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let mut client = h2_client(pair.web.outbound).await;
        let (_to, body) = streamed_body();
        let ask = Request::get("http://orders.shop/feed").body(body).unwrap();
        let mut answer = client.send_request(ask).await.unwrap().into_body();
        to.send(Bytes::from("first")).await.unwrap();
        assert_eq!(next_data(&mut answer).await.unwrap(), "first");
        pair.orders
            .apply(&with_policies(&program, PERMIT_OTHER_ONLY));
        assert!(answer.frame().await.unwrap().is_err());
        to.closed().await;
    });
}

#[test]
fn a_gateway_ends_a_response_that_it_no_longer_permits() {
    run(async {
        let (program, to) = trickle(None).await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let (edge, state, address) = super::gateway::plain_edge(&pair).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /orders HTTP/1.1\r\nHost: shop.example\r\nAccept: */*\r\n\r\n")
            .await
            .unwrap();
        to.send(Bytes::from("first;")).await.unwrap();
        read_until(&mut stream, "first;").await;
        let mut without = state;
        without.services[0]["policies"][0]["text"] = "".into();
        edge.apply(&without);
        assert_eq!(edge.log.for_path("/orders").await["aborted"], true);
        to.closed().await;
    });
}

#[test]
fn a_request_that_waits_for_its_response_is_refused_when_it_is_no_longer_permitted() {
    run(async {
        let (arrived, mut arrival) = tokio::sync::mpsc::channel(1);
        let program = Program::serving(async move |_| {
            arrived.send(()).await.unwrap();
            std::future::pending().await
        })
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let answer = http1(pair.web.outbound, get("orders", "/wait"));
        let change = async {
            arrival.recv().await.unwrap();
            pair.orders
                .apply(&with_policies(&program, PERMIT_OTHER_ONLY));
        };
        let (answer, ()) = tokio::join!(answer, change);
        answer.assert_refused(403, "authz.denied");
        assert_eq!(pair.orders.log.for_path("/wait").await["status"], 403);
    });
}

#[test]
fn a_request_body_ends_when_it_is_no_longer_permitted() {
    run(async {
        let (got, mut has_got) = tokio::sync::mpsc::channel::<Option<Bytes>>(4);
        let program = Program::serving(async move |request: Request<Incoming>| {
            let mut body = request.into_body();
            let got = got.clone();
            // The response is complete at once; the request body continues.
            tokio::task::spawn_local(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    got.send(frame.into_data().ok()).await.unwrap();
                }
                got.send(None).await.unwrap();
            });
            Response::new(full("taken"))
        })
        .await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let mut client = h2_client(pair.web.outbound).await;
        let (to, body) = streamed_body();
        let ask = Request::post("http://orders.shop/up").body(body).unwrap();
        let _answer = client.send_request(ask).await.unwrap();
        to.send(Frame::data(Bytes::from("one"))).await.unwrap();
        assert_eq!(has_got.recv().await.unwrap().unwrap(), "one");
        pair.orders
            .apply(&with_policies(&program, PERMIT_OTHER_ONLY));
        assert_eq!(has_got.recv().await.unwrap(), None);
    });
}

#[test]
fn a_request_permitted_by_a_header_is_authorized_again_with_that_header() {
    run(async {
        let by = |name: &str| {
            format!(
                r#"@id("h") @reason("a test") permit (principal, action == Action::"GET", resource) when {{ context.headers has "{name}" && context.headers["{name}"] == "blue" }};"#
            )
        };
        let (program, to) = trickle(None).await;
        let pair = Pair::new(&program, "http", &by("x-tenant"));
        let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
        stream
            .write_all(
                b"GET /feed HTTP/1.1\r\nHost: orders\r\nX-Tenant: blue\r\nX-Other: blue\r\n\r\n",
            )
            .await
            .unwrap();
        to.send(Bytes::from("first;")).await.unwrap();
        read_until(&mut stream, "first;").await;
        let same = format!("{}\n", by("x-tenant")).replace(r#""h""#, r#""again""#);
        pair.orders.apply(&with_policies(&program, &same));
        to.send(Bytes::from("second;")).await.unwrap();
        read_until(&mut stream, "second;").await;
        // The header that the new policy reads was not retained, so the request is no longer permitted.
        pair.orders.apply(&with_policies(&program, &by("x-other")));
        assert_eq!(pair.orders.log.for_path("/feed").await["aborted"], true);
    });
}
