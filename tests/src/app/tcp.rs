//! Programs for protocols other than HTTP.

use http::{HeaderMap, Method, Version};
use tokio::{
    io::{AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
};

use super::requests::{BodyState, Request, RequestLog};

pub(super) async fn echo(listener: TcpListener, seen: RequestLog) {
    each(listener, seen, echo_stream).await;
}

pub(super) async fn banner_and_echo(listener: TcpListener, seen: RequestLog) {
    each(listener, seen, |mut stream| async move {
        if stream.write_all(b"220 ready\r\n").await.is_ok() {
            echo_stream(stream).await;
        }
    })
    .await;
}

pub(super) async fn close(listener: TcpListener, seen: RequestLog) {
    each(listener, seen, |stream| async move { drop(stream) }).await;
}

async fn echo_stream(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    // The client may close the connection early.
    let _ = copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

async fn each<F, R>(listener: TcpListener, seen: RequestLog, serve: F)
where
    F: Fn(TcpStream) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    while let Ok((stream, peer)) = listener.accept().await {
        seen.add(Request {
            method: Method::CONNECT,
            target: peer.to_string(),
            version: Version::HTTP_09,
            headers: HeaderMap::new(),
            body: BodyState::Open,
        });
        tokio::spawn(serve(stream));
    }
}
