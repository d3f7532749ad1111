//! The facts of a decision, recorded so that it can be repeated later.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr};

use jiff::Timestamp;
use merlon_config::{name::ServiceName, snapshot::PolicyName};
use serde::{Deserialize, Serialize};

use crate::{
    authn::User,
    decision::Decision,
    facts::{Headers, RequestFacts, RequestKind},
    matcher::{Names, decode},
    principal::{PeerFacts, Principal},
    validate::{RouteMatch, Router},
};

/// All facts of one request that policies can read. Of headers and query parameters, only those that a policy of the
/// service reads are recorded; of a token, only its claims.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedFacts {
    /// The service that the request is for.
    pub service: ServiceName,
    /// The peer that TLS authenticated.
    pub principal: Principal,
    /// The request.
    pub request: RecordedRequest,
    /// The peer address of the socket.
    pub source_ip: IpAddr,
    /// The client's address.
    pub client_ip: IpAddr,
    /// The Service's port.
    pub port: u16,
    /// The time of the decision.
    pub now: Timestamp,
    /// The user of the verified token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// Absent without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RecordedTls>,
    /// The decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<RecordedDecision>,
}

/// A request by protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum RecordedRequest {
    /// An HTTP request.
    Http {
        /// `Host` or `:authority`.
        host: String,
        /// The method.
        method: String,
        /// The normalised path.
        path: String,
        /// The template that the path matched.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        route: Option<String>,
        /// The template's parameters.
        #[serde(default)]
        params: BTreeMap<String, String>,
        /// The values of each query parameter that a policy reads, undecoded.
        #[serde(default)]
        query: BTreeMap<String, Vec<String>>,
        /// The values of each header that a policy reads.
        #[serde(default)]
        headers: BTreeMap<String, Vec<String>>,
    },
    /// A gRPC call.
    Grpc {
        /// `:authority`.
        host: String,
        /// The gRPC service.
        service: String,
        /// The gRPC method.
        method: String,
        /// The values of each header that a policy reads.
        #[serde(default)]
        headers: BTreeMap<String, Vec<String>>,
    },
    /// An opaque TCP connection.
    Tcp {
        /// The server name (SNI).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sni: Option<String>,
    },
}

/// The TLS facts of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedTls {
    /// Such as `TLSv1.3`.
    pub version: String,
    /// The cipher suite.
    pub cipher: String,
    /// DNS names of the peer's certificate.
    #[serde(default)]
    pub dns_names: Vec<String>,
}

/// The decision at the time of recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDecision {
    /// Whether the request was allowed.
    pub allowed: bool,
    /// The policy that decided; none when no policy permitted the request or its facts were invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// The stable reason code of a denial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

impl RecordedRequest {
    pub(crate) fn headers(&self) -> Option<&BTreeMap<String, Vec<String>>> {
        match self {
            Self::Http { headers, .. } | Self::Grpc { headers, .. } => Some(headers),
            Self::Tcp { .. } => None,
        }
    }

    pub(crate) fn query(&self) -> Option<&BTreeMap<String, Vec<String>>> {
        match self {
            Self::Http { query, .. } => Some(query),
            _ => None,
        }
    }
}

/// Maximum length of a recorded header or query parameter value, in characters.
const MAX_VALUE: usize = 1_024;

impl RecordedFacts {
    pub(crate) fn new(
        service: &ServiceName,
        names: &Names,
        (router, route): (&Router, &RouteMatch),
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
        decision: Option<&Decision>,
    ) -> Self {
        let request = match facts.kind {
            RequestKind::Http(http) => RecordedRequest::Http {
                host: http.host.to_owned(),
                method: http.method.to_owned(),
                path: http.path.to_owned(),
                route: router.template(route).map(str::to_owned),
                params: router
                    .all_params(route, http.path)
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
                query: parameters(names, http.query.unwrap_or_default()),
                headers: headers(names, http.headers),
            },
            RequestKind::Grpc(grpc) => RecordedRequest::Grpc {
                host: grpc.host.to_owned(),
                service: grpc.service.to_owned(),
                method: grpc.method.to_owned(),
                headers: headers(names, grpc.headers),
            },
            RequestKind::Tcp(tcp) => RecordedRequest::Tcp {
                sni: tcp.sni.map(str::to_owned),
            },
        };
        Self {
            service: service.clone(),
            principal: peer.principal().clone(),
            request,
            source_ip: facts.source_ip,
            client_ip: facts.client_ip,
            port: facts.port,
            now: facts.now,
            user: facts.user.cloned(),
            tls: facts.tls.map(|tls| RecordedTls {
                version: tls.version.to_owned(),
                cipher: tls.cipher.to_owned(),
                dns_names: tls.dns_names.to_vec(),
            }),
            decided: decision.map(RecordedDecision::from),
        }
    }
}

impl From<&Decision> for RecordedDecision {
    fn from(decision: &Decision) -> Self {
        Self {
            allowed: matches!(decision, Decision::Permit(_)),
            policy: decision.policy().cloned(),
            code: match decision {
                Decision::Permit(_) => None,
                Decision::Deny(deny) => Some(deny.code().to_owned()),
            },
        }
    }
}

/// Recorded headers as [`Headers`].
#[derive(Debug, Clone, Default)]
pub(crate) struct RecordedHeaders<'a>(pub(crate) Option<&'a BTreeMap<String, Vec<String>>>);

impl Headers for RecordedHeaders<'_> {
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        for value in self.0.and_then(|all| all.get(name)).into_iter().flatten() {
            each(value.as_bytes());
        }
    }
}

fn headers(names: &Names, headers: &dyn Headers) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for name in &names.headers {
        let mut values = Vec::new();
        headers.each(name, &mut |value| {
            values.push(truncate(&String::from_utf8_lossy(value)))
        });
        if !values.is_empty() {
            all.insert(name.to_string(), values);
        }
    }
    all
}

fn parameters(names: &Names, query: &str) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in query.split('&').filter(|_| !names.query.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let Some(name) = decode(name)
            && names.query.iter().any(|own| **own == *name)
        {
            all.entry(name.into_owned())
                .or_default()
                .push(truncate(value));
        }
    }
    all
}

/// The recorded parameters as a query string.
pub(crate) fn query_text(parameters: &BTreeMap<String, Vec<String>>) -> String {
    let mut text = String::new();
    for (name, value) in parameters
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| (name, value)))
    {
        if !text.is_empty() {
            text.push('&');
        }
        for byte in name.bytes() {
            // Writing to a String does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
        text.push('=');
        text.push_str(value);
    }
    text
}

fn truncate(text: &str) -> String {
    text.chars().take(MAX_VALUE).collect()
}
