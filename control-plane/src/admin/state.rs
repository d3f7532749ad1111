//! What the handlers of the administration share.

use axum::http::StatusCode;

use super::{health::Health, problem::Problem};
use crate::{
    issuance::{authority::Authority, join_token::JoinTokens, ledger::Ledger},
    push::{ProxyStatus, Registry},
    source::SharedStatus,
    state::snapshot::Snapshots,
};

/// The state that the administration reads and changes.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) snapshots: Snapshots,
    pub(crate) authority: Authority,
    pub(crate) registry: Registry,
    pub(crate) tokens: JoinTokens,
    pub(crate) ledger: Ledger,
    pub(crate) health: Health,
    pub(crate) source: SharedStatus,
}

impl Admin {
    /// The status of a known proxy.
    pub(super) fn find(&self, id: &str) -> Result<ProxyStatus, Problem> {
        self.registry.find(id).ok_or_else(|| {
            let id: String = id.chars().take(253).collect();
            Problem::new(
                StatusCode::NOT_FOUND,
                format!("no proxy with the id `{id}`"),
            )
            .hint("`GET /v1/proxies` lists the known proxies")
        })
    }
}
