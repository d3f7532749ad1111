//! Probes by gRPC's health service.

use std::{convert::Infallible, net::SocketAddr};

use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use super::*;

/// A health service that returns the status that the service name selects.
async fn program() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| async {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let serving = !body.windows(4).any(|part| part == b"down");
                let status = if serving { 1 } else { 2 };
                let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let frames = [Frame::data(message), Frame::trailers(trailers)];
                let frames = frames.map(Ok::<_, Infallible>);
                let body = StreamBody::new(futures_util::stream::iter(frames));
                Ok::<_, Infallible>(
                    hyper::Response::builder()
                        .header("content-type", "application/grpc")
                        .body(body)
                        .unwrap(),
                )
            });
            let io = TokioIo::new(stream);
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(io, service),
            );
        }
    });
    here
}

#[test]
fn a_grpc_probe_succeeds_only_if_the_service_is_serving() {
    run(async {
        let port = program().await.port();
        for (service, status, reason) in [
            ("", 200, "ok\n"),
            ("shop.Orders", 200, "ok\n"),
            ("down", 503, "the program responded with NOT_SERVING\n"),
        ] {
            let service = service.to_owned();
            let answer = probe_result(Handler::Grpc(Grpc { port, service })).await;
            assert_eq!((answer.0, answer.1.as_str()), (status, reason));
        }
    });
}
