//! The control plane's administration API: JSON over HTTP over a Unix socket. The permissions of the socket file decide
//! who may use it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use merlon_config::snapshot::{InboundService, MeshState};
use merlon_policy::record::RecordedFacts;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

use crate::{
    cluster::{Cluster, SOCKET},
    failure::Failure,
};

/// A control plane, reached by its administration socket or by those of its replicas in a cluster.
#[derive(Debug, Clone)]
pub(crate) struct ControlPlane {
    endpoint: Endpoint,
}

#[derive(Debug, Clone)]
enum Endpoint {
    Socket(PathBuf),
    Cluster(Cluster),
}

/// One process of the control plane.
#[derive(Debug, Clone, Copy)]
enum Replica<'a> {
    Socket(&'a Path),
    Pod(&'a Cluster, &'a str),
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The status of one connected proxy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProxyStatus {
    /// Unique per process.
    pub(crate) id: String,
    pub(crate) identity: String,
    /// The Workload or Gateway of this proxy, as `namespace/name`.
    #[serde(default)]
    pub(crate) workload: Option<String>,
    /// `pending` (a snapshot was sent and not answered yet), `acknowledged`, `refused` or `disconnected`.
    pub(crate) state: String,
    /// Why it refused the snapshot.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// The snapshot that it enforces.
    #[serde(default)]
    pub(crate) snapshot_version: Option<String>,
    /// Seconds since the snapshot was last confirmed; absent after it disconnected.
    #[serde(default)]
    pub(crate) snapshot_age_seconds: Option<u64>,
    /// When it last sent a message.
    #[serde(default)]
    pub(crate) last_seen: Option<Timestamp>,
    #[serde(default)]
    pub(crate) certificate_serial: Option<String>,
    #[serde(default)]
    pub(crate) certificate_not_after: Option<Timestamp>,
    #[serde(default)]
    pub(crate) ready: bool,
    #[serde(default)]
    pub(crate) not_ready_reason: Option<String>,
}

impl ProxyStatus {
    /// Whether it enforces the latest snapshot sent to it.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.state == "acknowledged"
    }
}

/// A decision that a proxy recorded.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RecordedDecision {
    /// The input of the policies; absent if the request was refused before its service was known.
    #[serde(default)]
    pub(crate) facts: Option<RecordedFacts>,
    /// The service at the time of the decision.
    #[serde(default)]
    pub(crate) service: Option<InboundService>,
    #[serde(default)]
    pub(crate) mesh: Option<MeshState>,
    #[serde(default)]
    pub(crate) snapshot_version: String,
    #[serde(default)]
    pub(crate) decision: Decision,
    /// The service today; absent if it was removed.
    #[serde(default)]
    pub(crate) service_now: Option<InboundService>,
    #[serde(default)]
    pub(crate) mesh_now: Option<MeshState>,
    /// The proxy that decided.
    #[serde(default)]
    pub(crate) proxy: String,
}

/// A request and its outcome, with the names of the access log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Decision {
    /// Only recorded for refusals.
    #[serde(default)]
    pub(crate) asked: Option<RefusedRequest>,
    #[serde(default)]
    pub(crate) outcome: DecisionOutcome,
}

/// A refused request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RefusedRequest {
    pub(crate) ts: Timestamp,
    pub(crate) direction: String,
    #[serde(default)]
    pub(crate) src: Option<String>,
    pub(crate) src_address: String,
    #[serde(default)]
    pub(crate) dst: Option<String>,
    #[serde(default)]
    pub(crate) protocol: String,
    #[serde(default)]
    pub(crate) method: Option<String>,
    #[serde(default)]
    pub(crate) host: Option<String>,
    #[serde(default)]
    pub(crate) path: Option<String>,
}

/// The outcome of a request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct DecisionOutcome {
    /// 0 if the request was allowed.
    #[serde(default)]
    pub(crate) status: u16,
    /// Absent if the request was allowed.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) policy: Option<String>,
    /// The detail in the response to the caller.
    #[serde(default)]
    pub(crate) detail: Option<String>,
    /// The cause, which is not sent to callers.
    #[serde(default)]
    pub(crate) cause: Option<String>,
    #[serde(default)]
    pub(crate) place: Option<String>,
}

/// A join token. The control plane returns it only once.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewJoinToken {
    pub(crate) token: String,
    #[serde(default)]
    pub(crate) expires_at: Option<Timestamp>,
}

/// A replaced certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rotated {
    pub(crate) old_serial: String,
    pub(crate) new_serial: String,
}

impl ControlPlane {
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self {
            endpoint: Endpoint::Socket(socket),
        }
    }

    pub(crate) fn in_cluster(cluster: Cluster) -> Self {
        Self {
            endpoint: Endpoint::Cluster(cluster),
        }
    }

    /// The path of its socket; in a cluster, the path in its container.
    pub(crate) fn socket(&self) -> &Path {
        match &self.endpoint {
            Endpoint::Socket(socket) => socket,
            Endpoint::Cluster(_) => Path::new(SOCKET),
        }
    }

    /// All connected proxies, of every replica.
    pub(crate) async fn proxies(&self) -> Result<Vec<ProxyStatus>, Failure> {
        let mut all: BTreeMap<String, ProxyStatus> = BTreeMap::new();
        for pod in &self.pods().await? {
            let theirs: Vec<ProxyStatus> = self
                .replica(pod)
                .request(&Method::GET, "/v1/proxies", None)
                .await?;
            for proxy in theirs {
                // The previous replica still lists a proxy that connected to another one.
                match all.get(&proxy.id) {
                    Some(known) if known.state != "disconnected" => {}
                    _ => drop(all.insert(proxy.id.clone(), proxy)),
                }
            }
        }
        Ok(all.into_values().collect())
    }

    /// The names of the replicas; one empty name for a socket.
    async fn pods(&self) -> Result<Vec<String>, Failure> {
        match &self.endpoint {
            Endpoint::Socket(_) => Ok(vec![String::new()]),
            Endpoint::Cluster(cluster) => cluster.control_planes().await,
        }
    }

    fn replica<'a>(&'a self, pod: &'a str) -> Replica<'a> {
        match &self.endpoint {
            Endpoint::Socket(socket) => Replica::Socket(socket),
            Endpoint::Cluster(cluster) => Replica::Pod(cluster, pod),
        }
    }

    /// The whole configuration of one proxy, without secrets.
    pub(crate) async fn proxy_config(&self, id: &str) -> Result<Value, Failure> {
        let path = format!("/v1/proxies/{}/config", segment(id));
        self.request(Method::GET, &path, None).await
    }

    /// Makes one proxy renew its certificate now.
    pub(crate) async fn rotate(&self, id: &str) -> Result<Rotated, Failure> {
        let path = format!("/v1/proxies/{}/rotate", segment(id));
        self.request(Method::POST, &path, None).await
    }

    /// A recorded decision.
    pub(crate) async fn decision(&self, id: &str) -> Result<RecordedDecision, Failure> {
        let path = format!("/v1/decisions/{}", segment(id));
        self.request(Method::GET, &path, None).await
    }

    /// Creates a join token, with which a workload's proxy gets its first certificate.
    pub(crate) async fn join_token(
        &self,
        identity: &str,
        ttl: Option<&str>,
    ) -> Result<NewJoinToken, Failure> {
        let mut body = json!({ "identity": identity });
        if let (Some(ttl), Some(object)) = (ttl, body.as_object_mut()) {
            object.insert("ttl".to_owned(), ttl.into());
        }
        self.request(Method::POST, "/v1/join-tokens", Some(&body))
            .await
    }

    /// Sends the request to the replicas in turn until one succeeds: each only knows the proxies connected to it.
    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let mut last = None;
        for pod in &self.pods().await? {
            match self.replica(pod).request(&method, path, body).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| Failure::runtime("no control plane")))
    }
}

impl Replica<'_> {
    async fn request<T: DeserializeOwned>(
        self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let exchange = self.exchange(method, path, body);
        let (status, answer) = match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(answered) => answered?,
            Err(_) => {
                return Err(
                    self.unreachable(&format!("no answer within {} seconds", TIMEOUT.as_secs()))
                );
            }
        };
        if !status.is_success() {
            return Err(refusal(status, &answer));
        }
        serde_json::from_slice(&answer).map_err(|error| {
            Failure::runtime(format!(
                "cannot parse the control plane's answer to {path}: {error}"
            ))
            .hint("`merlon` and `merlon-control-plane` may have different versions; `merlon version` prints this one")
        })
    }

    async fn connect(self) -> Result<Box<dyn Duplex>, Failure> {
        match self {
            Self::Socket(socket) => {
                let stream = UnixStream::connect(socket).await;
                let stream = stream.map_err(|error| self.unreachable(&error.to_string()))?;
                Ok(Box::new(stream))
            }
            Self::Pod(cluster, pod) => Ok(Box::new(cluster.tunnel(pod).await?)),
        }
    }

    async fn exchange(
        self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let broken = |error: &dyn std::fmt::Display| self.unreachable(&error.to_string());
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        // Ends with the sender, which reports any error of the connection.
        drop(tokio::spawn(connection));
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(header::HOST, "control-plane");
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request
            .body(Full::new(body))
            .map_err(|error| broken(&error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
    }

    fn unreachable(self, why: &str) -> Failure {
        match self {
            Self::Socket(socket) => Failure::runtime(format!(
                "cannot reach the control plane at {}: {why}",
                socket.display()
            ))
            .hint("check that it runs with this `--admin-socket`; set another path with `--control-plane-socket` or MERLON_CONTROL_PLANE_SOCKET (a running demo prints its own); use `--kubernetes` for one in a cluster"),
            Self::Pod(cluster, pod) => Failure::runtime(format!(
                "cannot reach the control plane in pod `{}/{pod}`: {why}",
                cluster.namespace
            ))
            .hint("`merlon check` shows whether it is healthy"),
        }
    }
}

/// The error of the control plane, from problem+json or `{\"error\": …}`.
fn refusal(status: StatusCode, answer: &[u8]) -> Failure {
    let body: Value = serde_json::from_slice(answer).unwrap_or_default();
    let text = |name| body.get(name).and_then(Value::as_str);
    let detail = text("detail")
        .or_else(|| text("error"))
        .or_else(|| text("message"));
    let failure = Failure::runtime(match detail {
        Some(detail) => detail.to_owned(),
        None => format!("the control plane answered {status}"),
    });
    match text("hint") {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Encodes user input as one segment of a path (RFC 3986 §3.3).
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 64 << 20;
