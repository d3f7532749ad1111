//! What is open when the snapshot changes is decided again.

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{harness::*, streams};

#[test]
fn a_stream_ends_when_policy_no_longer_permits_it_and_goes_on_while_it_does() {
    run(async {
        let program = streams::grpc_echo().await;
        let pair = Pair::new(&program, "grpc", ALL);
        let (to, body) = channel();
        let mut client = h2_client(pair.web.outbound).await;
        let response = client
            .send_request(streams::call("/a.B/Chat").body(body).unwrap())
            .await
            .unwrap();
        let mut answer = response.into_body();
        to.send(Frame::data(Bytes::from("one"))).await.unwrap();
        assert_eq!(piece(&mut answer).await.unwrap(), "one");
        // Another policy that permits it as well.
        let port = program.port();
        let again = r#"@id("still") permit (principal, action == Action::"grpc", resource);"#;
        pair.orders.take(&State::of("shop/orders").serving(service(
            "shop/orders",
            80,
            port,
            "grpc",
            again,
        )));
        to.send(Frame::data(Bytes::from("two"))).await.unwrap();
        assert_eq!(piece(&mut answer).await.unwrap(), "two");
        // And one that does not.
        let none = r#"@id("none") permit (principal == Workload::"shop/other", action, resource);"#;
        pair.orders.take(&State::of("shop/orders").serving(service(
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
        assert_eq!(pair.orders.log.of("/a.B/Chat").await["aborted"], true);
    });
}

#[test]
fn a_websocket_ends_when_policy_no_longer_permits_it() {
    run(async {
        let program = streams::websocket_echo().await;
        let pair = Pair::new(&program, "http", ALL);
        let mut stream = TcpStream::connect(pair.web.outbound).await.unwrap();
        stream.write_all(streams::ASK.as_bytes()).await.unwrap();
        assert!(
            streams::head(&mut stream)
                .await
                .starts_with("HTTP/1.1 101 ")
        );
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        pair.orders.take(&State::of("shop/orders").serving(service(
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
fn a_tunnel_ends_when_policy_no_longer_permits_it_and_others_stay() {
    run(async {
        let program = streams::tcp_echo().await;
        let (pair, local) = streams::tcp_pair(&program, ALL).await;
        let mut stream = TcpStream::connect(local).await.unwrap();
        let mut hello = [0; 6];
        stream.read_exact(&mut hello).await.unwrap();
        let state = |policies| {
            State::of("shop/orders").serving(service(
                "shop/orders",
                5432,
                program.port(),
                "tcp",
                policies,
            ))
        };
        pair.orders.take(&state(
            r#"@id("tcp") permit (principal, action == Action::"tcp", resource);"#,
        ));
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        pair.orders.take(&state(""));
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
        pair.orders
            .log
            .line(|line| line["protocol"] == "tcp" && line["aborted"] == true)
            .await;
    });
}

#[test]
fn a_service_that_is_gone_takes_its_streams_with_it() {
    run(async {
        let program = streams::tcp_echo().await;
        let (pair, local) = streams::tcp_pair(&program, ALL).await;
        let mut stream = TcpStream::connect(local).await.unwrap();
        let mut hello = [0; 6];
        stream.read_exact(&mut hello).await.unwrap();
        pair.orders.take(&State::of("shop/orders"));
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    });
}
