//! The control plane's administration: JSON over HTTP over a Unix socket, whose file permissions decide who may ask.

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

/// A control plane, by its administration socket or by those of its replicas in a cluster.
#[derive(Debug, Clone)]
pub(crate) struct ControlPlane {
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    Socket(PathBuf),
    Cluster(Cluster),
}

/// One process that can be asked.
#[derive(Debug, Clone, Copy)]
enum Replica<'a> {
    Socket(&'a Path),
    Pod(&'a Cluster, &'a str),
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What is known of one connected proxy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProxyStatus {
    /// Unique per process.
    pub(crate) id: String,
    pub(crate) identity: String,
    /// The Workload or Gateway that it stands for, as `namespace/name`.
    #[serde(default)]
    pub(crate) workload: Option<String>,
    /// `pending` (was sent something and has not answered), `acknowledged`, `refused` or `disconnected`.
    pub(crate) state: String,
    /// Why it refused.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// The state it enforces.
    #[serde(default)]
    pub(crate) snapshot_version: Option<String>,
    /// For how long nothing confirmed that state, in seconds; absent when it is gone.
    #[serde(default)]
    pub(crate) snapshot_age_seconds: Option<u64>,
    /// When it was last heard of.
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
    /// Whether it enforces what it was sent last.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.state == "acknowledged"
    }
}

/// What a proxy remembers of a decision.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RecordedDecision {
    /// With what policies decided, or would have; absent where it was refused before its service was known.
    #[serde(default)]
    pub(crate) facts: Option<RecordedFacts>,
    /// The service as it was then.
    #[serde(default)]
    pub(crate) service: Option<InboundService>,
    #[serde(default)]
    pub(crate) mesh: Option<MeshState>,
    #[serde(default)]
    pub(crate) snapshot_version: String,
    #[serde(default)]
    pub(crate) decision: Decision,
    /// The service as it is today; absent when it is gone.
    #[serde(default)]
    pub(crate) service_now: Option<InboundService>,
    #[serde(default)]
    pub(crate) mesh_now: Option<MeshState>,
    /// Which proxy decided.
    #[serde(default)]
    pub(crate) proxy: String,
}

/// What was asked and what became of it, in the access log's names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Decision {
    /// Of a refusal.
    #[serde(default)]
    pub(crate) asked: Option<Asked>,
    #[serde(default)]
    pub(crate) outcome: DecisionOutcome,
}

/// A refused request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Asked {
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

/// What became of a request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct DecisionOutcome {
    /// 0 when it was let through.
    #[serde(default)]
    pub(crate) status: u16,
    /// None when it was let through.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) policy: Option<String>,
    /// What the caller was told.
    #[serde(default)]
    pub(crate) detail: Option<String>,
    /// What callers are not told.
    #[serde(default)]
    pub(crate) cause: Option<String>,
    #[serde(default)]
    pub(crate) place: Option<String>,
}

/// A join token, shown once.
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
            way: Way::Socket(socket),
        }
    }

    pub(crate) fn in_cluster(cluster: Cluster) -> Self {
        Self {
            way: Way::Cluster(cluster),
        }
    }

    /// Where its socket is; of one in a cluster, in its container.
    pub(crate) fn socket(&self) -> &Path {
        match &self.way {
            Way::Socket(socket) => socket,
            Way::Cluster(_) => Path::new(SOCKET),
        }
    }

    /// All connected proxies, of every replica.
    pub(crate) async fn proxies(&self) -> Result<Vec<ProxyStatus>, Failure> {
        let mut all: BTreeMap<String, ProxyStatus> = BTreeMap::new();
        for pod in &self.pods().await? {
            let theirs: Vec<ProxyStatus> = self
                .replica(pod)
                .ask(&Method::GET, "/v1/proxies", None)
                .await?;
            for proxy in theirs {
                // One that went over to another replica is still remembered by the one before.
                match all.get(&proxy.id) {
                    Some(known) if known.state != "disconnected" => {}
                    _ => drop(all.insert(proxy.id.clone(), proxy)),
                }
            }
        }
        Ok(all.into_values().collect())
    }

    /// The replicas by name; one without, where there is a socket.
    async fn pods(&self) -> Result<Vec<String>, Failure> {
        match &self.way {
            Way::Socket(_) => Ok(vec![String::new()]),
            Way::Cluster(cluster) => cluster.control_planes().await,
        }
    }

    fn replica<'a>(&'a self, pod: &'a str) -> Replica<'a> {
        match &self.way {
            Way::Socket(socket) => Replica::Socket(socket),
            Way::Cluster(cluster) => Replica::Pod(cluster, pod),
        }
    }

    /// Everything that one proxy holds, without secrets.
    pub(crate) async fn proxy_config(&self, id: &str) -> Result<Value, Failure> {
        let path = format!("/v1/proxies/{}/config", segment(id));
        self.ask(Method::GET, &path, None).await
    }

    /// Has one proxy renew its certificate now.
    pub(crate) async fn rotate(&self, id: &str) -> Result<Rotated, Failure> {
        let path = format!("/v1/proxies/{}/rotate", segment(id));
        self.ask(Method::POST, &path, None).await
    }

    /// The facts of a decision.
    pub(crate) async fn decision(&self, id: &str) -> Result<RecordedDecision, Failure> {
        let path = format!("/v1/decisions/{}", segment(id));
        self.ask(Method::GET, &path, None).await
    }

    /// A token by which a workload's proxy gets its first certificate.
    pub(crate) async fn join_token(
        &self,
        identity: &str,
        ttl: Option<&str>,
    ) -> Result<NewJoinToken, Failure> {
        let mut body = json!({ "identity": identity });
        if let (Some(ttl), Some(object)) = (ttl, body.as_object_mut()) {
            object.insert("ttl".to_owned(), ttl.into());
        }
        self.ask(Method::POST, "/v1/join-tokens", Some(&body)).await
    }

    /// Asks the replicas in turn until one knows: each knows its own proxies.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let mut last = None;
        for pod in &self.pods().await? {
            match self.replica(pod).ask(&method, path, body).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| Failure::runtime("there is no control plane")))
    }
}

impl Replica<'_> {
    async fn ask<T: DeserializeOwned>(
        self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<T, Failure> {
        let asking = self.exchange(method, path, body);
        let (status, answer) = match tokio::time::timeout(PATIENCE, asking).await {
            Ok(answered) => answered?,
            Err(_) => {
                return Err(self.unreachable(&format!(
                    "it did not answer within {} seconds",
                    PATIENCE.as_secs()
                )));
            }
        };
        if !status.is_success() {
            return Err(refusal(status, &answer));
        }
        serde_json::from_slice(&answer).map_err(|error| {
            Failure::runtime(format!(
                "the control plane's answer to {path} is not understood: {error}"
            ))
            .hint("`merlon` and `merlon-control-plane` may be of different versions; `merlon version` shows this one's")
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
        // Ends with the sender; what goes wrong on it, the sender says.
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
        let body = Limited::new(response.into_body(), MOST_BODY)
            .collect()
            .await;
        Ok((status, body.map_err(|error| broken(&error))?.to_bytes()))
    }

    fn unreachable(self, why: &str) -> Failure {
        match self {
            Self::Socket(socket) => Failure::runtime(format!(
                "the control plane cannot be asked at {}: {why}",
                socket.display()
            ))
            .hint("is it running, and is this its `--admin-socket`? Name it by `--control-plane-socket` or MERLON_CONTROL_PLANE_SOCKET; a running demo prints its own; one in a cluster is asked with `--kubernetes`"),
            Self::Pod(cluster, pod) => Failure::runtime(format!(
                "the control plane cannot be asked in the pod `{}/{pod}`: {why}",
                cluster.namespace
            ))
            .hint("`merlon check` says whether it is well"),
        }
    }
}

/// The control plane's own words, which are problem+json or `{\"error\": …}`.
fn refusal(status: StatusCode, answer: &[u8]) -> Failure {
    let body: Value = serde_json::from_slice(answer).unwrap_or_default();
    let text = |name| body.get(name).and_then(Value::as_str);
    let said = text("detail")
        .or_else(|| text("error"))
        .or_else(|| text("message"));
    let failure = Failure::runtime(match said {
        Some(said) => said.to_owned(),
        None => format!("the control plane answered {status}"),
    });
    match text("hint") {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// One segment of a path (RFC 3986 §3.3), whatever the user typed.
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

const PATIENCE: Duration = Duration::from_secs(10);
const MOST_BODY: usize = 64 << 20;
