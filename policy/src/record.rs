//! The facts of a decision, kept so that it can be made again later.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use merlon_config::{name::ServiceName, snapshot::PolicyName};
use serde::{Deserialize, Serialize};

use crate::{authn::User, principal::Principal};

/// All that policies could have asked about one request. Only headers and query parameters that a policy of the
/// service names are kept, and nothing of a token but its claims.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedFacts {
    /// The service that was asked.
    pub service: ServiceName,
    /// The peer that TLS proved.
    pub principal: Principal,
    /// What was asked for.
    pub request: RecordedRequest,
    /// The socket's other end.
    pub source_ip: IpAddr,
    /// The client's address.
    pub client_ip: IpAddr,
    /// The Service's port.
    pub port: u16,
    /// When it was decided.
    pub now: Timestamp,
    /// Of the verified token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    /// Absent without TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RecordedTls>,
    /// What was decided then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<RecordedDecision>,
}

/// What was asked for.
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
        /// The template it fitted then.
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
    /// A connection of opaque bytes.
    Tcp {
        /// The server name asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sni: Option<String>,
    },
}

/// The connection's TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedTls {
    /// As `TLSv1.3`.
    pub version: String,
    /// The cipher suite.
    pub cipher: String,
    /// DNS names of the peer's certificate.
    #[serde(default)]
    pub dns_names: Vec<String>,
}

/// A decision as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDecision {
    /// Whether it was allowed.
    pub allowed: bool,
    /// The policy that decided; none: nothing permitted it, or the facts were unfit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// The stable reason code of a denial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}
