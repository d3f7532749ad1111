//! An HTTP program that responds with the request that it received.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

use super::requests::{self, BodyState, RecordedBody, RequestLog};

type Body = BoxBody<Bytes, hyper::Error>;

pub(super) async fn serve(listener: TcpListener, seen: RequestLog) {
    while let Ok((stream, _)) = listener.accept().await {
        let seen = seen.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let service = service_fn(|request| answer(request, seen.clone()));
            // The client may close the connection early.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: RequestLog,
) -> Result<Response<Body>, Infallible> {
    let number = seen.add(requests::Request {
        method: request.method().clone(),
        target: request
            .uri()
            .path_and_query()
            .map(ToString::to_string)
            .unwrap_or_default(),
        version: request.version(),
        headers: request.headers().clone(),
        body: BodyState::Open,
    });
    if request.uri().path() == "/socket" {
        return Ok(web_socket(request));
    }
    let request = request.map(|body| RecordedBody::new(body, seen, number));
    let path = request.uri().path().to_owned();
    Ok(match path.as_str() {
        path if path == "/stream" || path.starts_with("/stream/") => {
            Response::new(request.into_body().boxed())
        }
        "/trailers" => trailers(),
        "/early" => early(request),
        _ => match path
            .strip_prefix("/status/")
            .and_then(|code| code.parse().ok())
        {
            Some(code) => status(StatusCode::from_u16(code).unwrap_or_default()),
            None => mirror(request).await,
        },
    })
}

async fn mirror(request: Request<RecordedBody>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => body,
        Err(error) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let trailers = body.trailers().map(fields);
    let body = body.to_bytes();
    let mirrored = json!({
        "method": head.method.as_str(),
        "target": head.uri.path_and_query().map(ToString::to_string),
        "version": format!("{:?}", head.version),
        "headers": fields(&head.headers),
        "trailers": trailers,
        "length": body.len(),
        "body": String::from_utf8_lossy(body.get(..4_096).unwrap_or(&body)),
    });
    let mut response = text(StatusCode::OK, &mirrored.to_string());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

fn fields(headers: &HeaderMap) -> Value {
    headers
        .keys()
        .map(|name| {
            let values = headers.get_all(name).iter();
            let values: Vec<_> = values
                .map(|value| String::from_utf8_lossy(value.as_bytes()))
                .collect();
            (name.to_string(), Value::from(values.join(", ")))
        })
        .collect()
}

fn trailers() -> Response<Body> {
    let trailers = HeaderMap::from_iter([(
        header::HeaderName::from_static("x-checksum"),
        HeaderValue::from_static("c0ffee"),
    )]);
    // As a stream: a body whose length is known carries no trailers in HTTP/1.1.
    let frames = [
        Frame::data(Bytes::from_static(b"with trailers")),
        Frame::trailers(trailers),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok)));
    let mut response = Response::new(BodyExt::boxed(body));
    response
        .headers_mut()
        .insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
    response
}

/// Responds at once and reads the body afterwards.
fn early(request: Request<RecordedBody>) -> Response<Body> {
    tokio::spawn(request.into_body().collect());
    text(StatusCode::OK, "early")
}

fn web_socket(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return text(StatusCode::BAD_REQUEST, "not a WebSocket");
    };
    let accept = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let io = TokioIo::new(upgraded);
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                break;
            }
        }
        let _ = socket.close(None).await;
    });
    let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

fn status(status: StatusCode) -> Response<Body> {
    text(status, "")
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = status;
    response
}
