//! A small HTTP/1.1 client that returns the exact response.

use std::{fmt, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// A response.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is no response.
#[derive(Debug, Clone)]
pub(crate) struct NoReply(String);

impl fmt::Display for NoReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Reply {
    /// The value of a header; empty if it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The body as JSON; null if it is not JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A string in the JSON body; empty if it is absent.
    pub(crate) fn text(&self, pointer: &str) -> String {
        text_at(&self.json(), pointer)
    }
}

/// A string in JSON; empty if it is absent.
pub(crate) fn text_at(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// Sends one request on a new connection.
pub(crate) async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> Result<Reply, NoReply> {
    Connection::open(to).await?.send(request).await
}

/// A connection for several requests.
#[derive(Debug)]
pub(crate) struct Connection {
    to: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr) -> Result<Self, NoReply> {
        let opening = async {
            let stream = TcpStream::connect(to)
                .await
                .map_err(|error| error.to_string())?;
            // An error is ignored: only the timing depends on it.
            let _ = stream.set_nodelay(true);
            handshake(TokioIo::new(stream))
                .await
                .map_err(|error| error.to_string())
        };
        let (sender, connection) = within(to, opening).await?;
        // Ends with the sender, which reports any error of the connection.
        drop(tokio::spawn(connection));
        Ok(Self { to, sender })
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, NoReply> {
        let sender = &mut self.sender;
        let exchange = async {
            sender.ready().await.map_err(|error| error.to_string())?;
            let response = sender.send_request(request).await;
            read(response.map_err(|error| error.to_string())?).await
        };
        within(self.to, exchange).await
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Reply, String> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(|error| error.to_string())?;
    Ok(Reply {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.to_bytes(),
    })
}

async fn within<T>(
    to: SocketAddr,
    exchange: impl Future<Output = Result<T, String>>,
) -> Result<T, NoReply> {
    match tokio::time::timeout(TIMEOUT, exchange).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(NoReply(format!("no answer from {to}: {error}"))),
        Err(_) => Err(NoReply(format!(
            "no answer from {to} within {} seconds",
            TIMEOUT.as_secs()
        ))),
    }
}

/// A request to a service by its mesh name. `token` is sent in `Authorization`.
pub(crate) fn request(
    method: &str,
    service: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, service);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
    // Fails only for a malformed name or path in this program; the response to the empty request then shows it.
    request.body(Full::new(body)).unwrap_or_default()
}

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_BODY: usize = 4 << 20;
