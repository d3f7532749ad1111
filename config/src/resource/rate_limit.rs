use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetRef;
use crate::{name::ResourceName, unit::Span};

/// How much is let through (GCRA). Several limits on one target must all pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitSpec {
    /// What it applies to; left out: the whole namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// The limits. At least one.
    #[schemars(length(min = 1))]
    pub limits: Vec<RateLimitRule>,
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitRule {
    /// Its name, told to the caller that spent it.
    pub name: ResourceName,
    /// What is counted apart. Default: `principal`.
    #[serde(default)]
    pub per: LimitKey,
    /// How much over time.
    pub rate: Rate,
    /// How many may come at once. 1–1,000,000; default: `rate.requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// So many requests in so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rate {
    /// 1–1,000,000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// 1ms–24h.
    pub per: Span,
}

/// What a limit counts apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LimitKey {
    /// The peer that TLS proved.
    #[default]
    Principal,
    /// The socket address of the peer, without port.
    Address,
    /// The user of the verified token; without one, the principal.
    User,
}
