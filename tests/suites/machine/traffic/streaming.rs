//! Bodies that are streamed, trailers, and answers before the end of a request.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::Frame,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::mesh;

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

/// The program returns each piece as it arrives: a proxy that buffers makes this wait forever.
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
async fn response_trailers_arrive_in_both_http_versions() {
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
async fn request_trailers_reach_the_program() {
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
async fn a_response_before_the_end_of_the_request_arrives() {
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
