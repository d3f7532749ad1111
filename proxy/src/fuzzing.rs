//! What the fuzz targets in `fuzz/` call of the private modules. Not part of the interface.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderMap, request::Parts};
use jiff::Timestamp;
use merlon_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use merlon_config::name::{Namespace, ServiceName, SpiffeId};
use url::Url;

use crate::{
    control::{
        assemble::Assembler,
        discovery::subscriber::{Complete, Subscriber},
        jwks::{document, http as fetch},
    },
    limits::Limits,
    protocol::{
        denial::Denial,
        headers, host,
        peer_header::{self, Claim},
        request_head,
    },
    request::checks::validate,
    telemetry::access_log::Line,
};

pub use crate::state::snapshot::Snapshot;

/// A parsed head.
#[derive(Debug)]
pub struct Head {
    /// The one authority, in lower case.
    pub authority: String,
    /// Total size of all header names and values, in bytes.
    pub header_bytes: u64,
    /// Length of path and query as received, in bytes.
    pub uri_bytes: u64,
    /// Whether it requests a WebSocket.
    pub websocket: bool,
}

/// Parses a head; afterwards `head` holds what the upstream gets.
///
/// # Errors
/// The first ambiguity or violation.
pub fn read_head(head: &mut Parts) -> Result<Head, Denial> {
    let parsed = request_head::read(head)?;
    Ok(Head {
        authority: parsed.authority.to_string(),
        header_bytes: parsed.header_bytes,
        uri_bytes: parsed.uri_bytes,
        websocket: parsed.websocket,
    })
}

/// Host and port of an authority.
pub fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    host::split_port(authority)
}

/// The service that a host names.
pub fn mesh_name(host: &str, own: &Namespace) -> Option<ServiceName> {
    host::mesh_name(host, own)
}

/// Whether the host can only be a service of the mesh.
pub fn is_mesh_only(host: &str) -> bool {
    host::is_mesh_only(host)
}

/// Whether a body with these headers is encoded.
pub fn is_encoded(headers: &HeaderMap) -> bool {
    validate::encoded(headers)
}

/// Joins the cookies of a request for HTTP/1.1.
pub fn join_cookies(headers: &mut HeaderMap) {
    headers::join_cookies(headers);
}

/// A text as the value of a header.
pub fn printable(text: &str) -> http::HeaderValue {
    headers::printable(text)
}

/// The claim of a question, and the length of the body in question.
pub fn split_question(value: &http::HeaderValue) -> Option<(http::HeaderValue, Option<u64>)> {
    peer_header::split_question(value)
}

/// A claim as a question.
pub fn question(claim: &http::HeaderValue, length: Option<u64>) -> Option<http::HeaderValue> {
    peer_header::question(claim, length)
}

/// The claim at the start of a tunnel, and the bytes after it.
pub async fn read_claim(mut bytes: &[u8]) -> Option<(Claim, &[u8])> {
    let claim = peer_header::read_claim(&mut bytes).await?;
    Some((claim, bytes))
}

/// The start of a tunnel.
pub fn preamble(claim: &Claim) -> Vec<u8> {
    peer_header::preamble(claim)
}

/// The URL of the keys in an issuer's discovery document.
///
/// # Errors
/// The document is not valid, or names another issuer.
pub fn jwks_uri(document: &[u8], issuer: &str) -> Result<Url, String> {
    document::jwks_uri(document, issuer).map_err(|error| error.to_string())
}

/// How long a response may be used.
pub fn max_age(headers: &HeaderMap) -> Option<Duration> {
    fetch::max_age(headers)
}

/// Checks URLs of an issuer's documents.
#[derive(Debug)]
pub struct Place(fetch::Fetch);

impl Place {
    /// For the issuer with this URL.
    pub fn of(issuer: &Url) -> Option<Self> {
        fetch::Fetch::new(issuer, None, &Limits::default())
            .ok()
            .map(Self)
    }

    /// Whether a document at `url` may be fetched, if its host is an address.
    pub fn allows(&self, url: &Url) -> bool {
        self.0.check_place(url).is_ok()
    }
}

/// A line of the access log with these values of a client.
pub fn access_log_line(
    [src, dst, method, host, path, route, user, cause]: [&str; 8],
    address: Option<SocketAddr>,
) -> Vec<u8> {
    let mut block = Vec::new();
    let line = Line {
        at: Timestamp::UNIX_EPOCH,
        trace_id: None,
        decision_id: None,
        direction: "inbound",
        src: Some(src),
        src_address: address,
        dst: Some(dst),
        protocol: "h2",
        method: Some(method),
        host: Some(host),
        path: Some(path),
        route: Some(route),
        user: Some(user),
        status: 200,
        reason: None,
        cause: Some(cause),
        policy: None,
        snapshot: None,
        upstream: address,
        bytes_in: 1,
        bytes_out: 2,
        duration: Duration::from_millis(1),
        aborted: true,
    };
    line.append_to(&mut block);
    block
}

/// The proxy's side of discovery: the protocol, and the compilation of each complete state.
#[derive(Debug)]
pub struct Discovery {
    subscriber: Subscriber,
    assembler: Assembler,
    compiling: Option<Complete>,
    in_force: Option<Arc<Snapshot>>,
}

impl Discovery {
    /// A proxy with this identity, whose first stream has started.
    pub fn new(identity: SpiffeId) -> Self {
        let mut this = Self {
            subscriber: Subscriber::new(identity.clone()),
            assembler: Assembler::new(identity),
            compiling: None,
            in_force: None,
        };
        this.reconnect();
        this
    }

    /// Starts another stream.
    pub fn reconnect(&mut self) {
        self.subscriber.begin(merlon_api::node("n", None, "0"));
    }

    /// Processes a response, and starts to compile a complete state.
    ///
    /// # Errors
    /// The reason to end the stream.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Result<(), String> {
        self.subscriber.receive(response)?;
        self.compile();
        Ok(())
    }

    /// Ends the compilation that runs, if any.
    pub fn finish(&mut self) {
        if let Some(state) = self.compiling.take() {
            let before = self.in_force.as_deref();
            let version = state.version.clone();
            match self.assembler.assemble(version, &state.resources, before) {
                Ok(snapshot) if self.subscriber.accept(&state) => {
                    self.in_force = Some(Arc::new(snapshot));
                }
                Ok(_) => {}
                Err(error) => self.subscriber.refuse(&state, &error.to_string()),
            }
        }
        self.compile();
    }

    /// The resources of the pending state did not arrive in time.
    pub fn give_up(&mut self) {
        if self.subscriber.incomplete_since().is_some() {
            self.subscriber.give_up();
        }
    }

    /// Looks up a service or an address.
    pub fn look_up(&mut self, name: &str) {
        if let Ok(key) = name.parse() {
            self.subscriber.subscribe_to(&key);
        }
    }

    /// The requests to the control plane.
    pub fn requests(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.subscriber.take_requests()
    }

    /// The state in force.
    pub fn in_force(&self) -> Option<&Snapshot> {
        self.in_force.as_deref()
    }

    fn compile(&mut self) {
        if self.compiling.is_none() {
            self.compiling = self.subscriber.complete();
        }
    }
}
