//! Requests to the administration socket and the administration address.

use std::{net::SocketAddr, path::Path};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::{
    client::{Client, Reply},
    wait::TIMEOUT,
};

/// One request to the Unix socket at `socket`, with a complete response within [`TIMEOUT`].
pub(crate) async fn call(
    socket: &Path,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Reply, String> {
    tokio::time::timeout(TIMEOUT, exchange(socket, method, path, body))
        .await
        .unwrap_or_else(|_| Err(format!("{path}: nothing within {TIMEOUT:?}")))
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Reply, String> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| format!("{}: {error}", socket.display()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    Reply::read(response).await
}

/// [`call`], for a JSON response.
pub(crate) async fn json(
    socket: &Path,
    method: Method,
    path: &str,
    body: &Value,
) -> Result<Value, String> {
    let reply = call(socket, method, path, body).await?;
    match reply.status {
        StatusCode::OK | StatusCode::CREATED => Ok(reply.json()),
        _ => Err(format!("{path}: {reply:?}")),
    }
}

/// The status and body of a page of an administration address.
pub(super) async fn page(at: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let reply = Client::new(at, "").get("localhost.", path).send().await?;
    Ok((reply.status.as_u16(), reply.text()))
}

/// The sum of the metric `name` in a page of metrics, over all series whose labels contain `labels`; 0 if there is none.
pub(super) fn sum(page: &str, name: &str, labels: &str) -> f64 {
    page.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| line.contains(labels))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}
