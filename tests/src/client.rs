//! A program that calls services through its sidecar.

use std::{fmt, net::SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::WebSocketStream;
use tonic::transport::{Channel, Endpoint};

use crate::{
    chat::ChatClient,
    connection::Connection,
    wait::{TIMEOUT, limit},
};

/// A program whose sidecar has the outbound address `to`.
#[derive(Debug, Clone)]
pub struct Client {
    to: SocketAddr,
    namespace: String,
}

/// A builder for a request. Awaiting it sends the request on a new connection.
#[derive(Debug)]
#[must_use = "a request is sent when it is awaited"]
pub struct Call {
    to: SocketAddr,
    http2: bool,
    request: Request<Bytes>,
}

/// A response.
#[derive(Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The trailers.
    pub trailers: HeaderMap,
}

impl Client {
    /// A program that calls services of `namespace` by their short names, through the outbound address `to`.
    pub fn new(to: SocketAddr, namespace: &str) -> Self {
        Self {
            to,
            namespace: namespace.to_owned(),
        }
    }

    /// The outbound address of its sidecar.
    pub fn address(&self) -> SocketAddr {
        self.to
    }

    /// The value of `Host`: `orders.shop`, and `ledger.bank` for `bank/ledger`. A name with a dot is not changed.
    pub fn host(&self, service: &str) -> String {
        if service.contains('.') {
            service.to_owned()
        } else if let Some((namespace, service)) = service.split_once('/') {
            format!("{service}.{namespace}")
        } else {
            format!("{service}.{}", self.namespace)
        }
    }

    /// `GET`.
    pub fn get(&self, service: &str, target: &str) -> Call {
        self.call(Method::GET, service, target)
    }

    /// `POST` of a body.
    pub fn post(&self, service: &str, target: &str, body: impl Into<Bytes>) -> Call {
        self.call(Method::POST, service, target).body(body)
    }

    /// `POST` of JSON.
    pub fn post_json(&self, service: &str, target: &str, body: &Value) -> Call {
        self.post(service, target, body.to_string())
            .header("content-type", "application/json")
    }

    /// Any method.
    pub fn call(&self, method: Method, service: &str, target: &str) -> Call {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, self.host(service))
            .body(Bytes::new())
            .unwrap_or_else(|error| panic!("{target}: {error}"));
        Call {
            to: self.to,
            http2: false,
            request,
        }
    }

    /// A gRPC client of a `merlon.test.v1.Chat` service.
    pub async fn chat(&self, service: &str) -> ChatClient<Channel> {
        let origin = format!("http://{}", self.host(service));
        let channel = Endpoint::from_shared(format!("http://{}", self.to))
            .map(|endpoint| endpoint.origin(origin.parse().expect("a host")))
            .expect("an address")
            .timeout(TIMEOUT)
            .connect()
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", self.to));
        ChatClient::new(channel)
    }

    /// A WebSocket.
    ///
    /// # Errors
    /// The HTTP response, if the upgrade was refused.
    pub async fn web_socket(
        &self,
        service: &str,
        target: &str,
    ) -> Result<WebSocketStream<Connection>, Box<http::Response<Option<Vec<u8>>>>> {
        use tokio_tungstenite::tungstenite::{Error, client::IntoClientRequest as _};
        let uri = format!("ws://{}{target}", self.host(service));
        let request = uri.into_client_request().expect("a request");
        let opened = tokio_tungstenite::client_async(request, self.tcp().await);
        match limit(format!("a WebSocket at {service}{target}"), opened).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => Err(response),
            Err(error) => panic!("{service}{target}: {error}"),
        }
    }

    /// Sends raw bytes and reads until the peer closes the connection.
    ///
    /// # Panics
    /// If the peer does not close it: the bytes must be invalid or contain `Connection: close`.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.tcp().await;
        let mut answer = Vec::new();
        let reading = async {
            // The peer may close the connection before it has read everything.
            let _ = stream.write_all(bytes).await;
            stream.read_to_end(&mut answer).await
        };
        match tokio::time::timeout(TIMEOUT, reading).await {
            // The peer may reset the connection after the response, if it did not read all bytes.
            Ok(_) => String::from_utf8_lossy(&answer).into_owned(),
            Err(_) => panic!(
                "the connection is still open after: {}",
                String::from_utf8_lossy(&answer)
            ),
        }
    }

    /// A TCP connection to the sidecar.
    pub async fn tcp(&self) -> Connection {
        connect(self.to).await
    }
}

impl Call {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a header's name");
        let value = HeaderValue::try_from(value).expect("a header's value");
        self.request.headers_mut().append(name, value);
        self
    }

    /// Adds a bearer token.
    pub fn token(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        *self.request.body_mut() = body.into();
        self
    }

    /// Uses HTTP/2 with prior knowledge instead of HTTP/1.1.
    pub fn over_http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// Sends the request.
    ///
    /// # Errors
    /// The cause, if there is no complete response within [`TIMEOUT`].
    pub async fn send(self) -> Result<Reply, String> {
        tokio::time::timeout(TIMEOUT, self.send_without_limit())
            .await
            .unwrap_or_else(|_| Err(format!("no complete response within {TIMEOUT:?}")))
    }

    async fn send_without_limit(self) -> Result<Reply, String> {
        let stream = TcpStream::connect(self.to).await.map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let (mut head, body) = self.request.into_parts();
        let body = Full::new(body);
        let io = TokioIo::new(stream);
        let response = if self.http2 {
            // In HTTP/2, the authority is part of the URI.
            let host = head.headers.remove(header::HOST).expect("a host");
            let host = host.to_str().expect("a host in ASCII");
            head.uri = format!("http://{host}{}", head.uri).parse().expect("a URI");
            head.version = Version::HTTP_2;
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io)
                .await
                .map_err(text)?;
            tokio::spawn(connection);
            sender.send_request(Request::from_parts(head, body)).await
        } else {
            let (mut sender, connection) = http1::handshake(io).await.map_err(text)?;
            tokio::spawn(connection);
            sender.send_request(Request::from_parts(head, body)).await
        };
        Reply::read(response.map_err(text)?).await
    }
}

impl IntoFuture for Call {
    type Output = Reply;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Reply> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async {
            let what = format!("{} {}", self.request.method(), self.request.uri());
            self.send()
                .await
                .unwrap_or_else(|error| panic!("no response to {what}: {error}"))
        })
    }
}

impl Reply {
    /// Reads a response completely.
    ///
    /// # Errors
    /// If the connection closes before the end.
    pub async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Self, String> {
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(text)?;
        Ok(Self {
            status: head.status,
            headers: head.headers,
            trailers: body.trailers().cloned().unwrap_or_default(),
            body: body.to_bytes(),
        })
    }

    /// The one HTTP/1.1 response that a server has sent on a connection.
    ///
    /// # Panics
    /// If `answer` is not exactly one response with a `Content-Length`.
    #[track_caller]
    pub fn from_http1(answer: &str) -> Self {
        Self::try_from_http1(answer)
            .unwrap_or_else(|| panic!("expected exactly one HTTP/1.1 response, got {answer:?}"))
    }

    fn try_from_http1(answer: &str) -> Option<Self> {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?;
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(':')?;
            headers.append(
                HeaderName::try_from(name).ok()?,
                HeaderValue::try_from(value.trim()).ok()?,
            );
        }
        let length = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?;
        let status = status.parse().ok()?;
        (length.parse() == Ok(body.len())).then(|| Self {
            status,
            headers,
            body: Bytes::from(body.to_owned()),
            trailers: HeaderMap::new(),
        })
    }

    /// The value of a header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The body as JSON; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts that the program responded with 200.
    #[track_caller]
    pub fn is_ok(&self) -> &Self {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        self
    }

    /// Asserts that Merlon denied the request: `application/problem+json` with this status and reason, and a decision id.
    #[track_caller]
    pub fn is_problem(&self, status: StatusCode, reason: &str) -> &Self {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{self:?}"
        );
        assert_eq!(self.header("cache-control"), "no-store", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["reason"], reason, "{self:?}");
        assert_eq!(problem["status"], status.as_u16(), "{self:?}");
        assert!(!self.decision_id().is_empty(), "{self:?}");
        assert_eq!(problem["decision_id"], self.decision_id(), "{self:?}");
        self
    }

    /// The decision id, which `merlon explain` accepts.
    pub fn decision_id(&self) -> &str {
        self.header("merlon-decision-id")
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value:?}")?;
        }
        write!(f, "\n{}", self.text())
    }
}

/// A TCP connection with `TCP_NODELAY`.
///
/// # Panics
/// If it cannot be established.
pub async fn connect(to: SocketAddr) -> Connection {
    let stream = TcpStream::connect(to)
        .await
        .unwrap_or_else(|error| panic!("{to}: {error}"));
    stream.set_nodelay(true).expect("a socket option");
    stream.into()
}

/// The error with its sources: hyper's own message does not contain the cause.
fn text(error: impl std::error::Error) -> String {
    merlon_config::causes::chain(&error)
}
