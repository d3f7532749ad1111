//! The protocol between proxy and control plane.
#![doc = include_str!("../README.md")]

pub mod discovery;
mod join_token;
mod proto;
mod wire;

pub use join_token::{JoinToken, JoinTokenError};
pub use wire::{
    CONTROL_PLANE_ACCOUNT, MAX_MESSAGE, MAX_NAME, MAX_SUBSCRIPTIONS, MESH_NAME, METADATA_KINDS,
    METADATA_VERSION, METADATA_WORKLOAD, Received, WireError, control_plane_id, decision_prefix,
    metadata, node, open_resource, seal_resource, state_key,
};

/// `merlon.v1.Identity`: certificates.
pub mod identity {
    pub use crate::proto::merlon::v1::{
        IssueRequest, IssueResponse, identity_client, identity_server, issue_request::Evidence,
    };
}

/// Omits the token, because it is sufficient to impersonate the workload.
impl std::fmt::Debug for identity::Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::JoinToken(_) => "JoinToken([redacted])",
            Self::Token(_) => "Token([redacted])",
        })
    }
}

/// Omits the token.
impl std::fmt::Debug for identity::IssueRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssueRequest")
            .field("csr_bytes", &self.csr.len())
            .field("evidence", &self.evidence)
            .field("node_id", &self.node_id)
            .finish()
    }
}

/// `merlon.v1.Inspection`: requests to a proxy.
pub mod inspection {
    pub use crate::proto::merlon::v1::{
        DumpAsk, DumpReply, FactsAsk, FactsReply, InspectReply, InspectRequest, Report, RotateAsk,
        RotateReply, inspect_reply::Reply, inspect_request::Ask, inspection_client,
        inspection_server,
    };
}
