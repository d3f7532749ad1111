use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::target::TargetRef;
use crate::{name::ResourceName, unit::HumanDuration};

/// Limits the rate of requests (GCRA). A request must pass all limits of its target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitSpec {
    /// What it applies to. If omitted, the whole namespace.
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
    /// The limit's name. It is reported to callers that exceed the limit.
    pub name: ResourceName,
    /// The key that requests are counted by. Default: `principal`.
    #[serde(default)]
    pub per: LimitKey,
    /// Requests per period.
    pub rate: Rate,
    /// Maximum number of requests at once. 1–1,000,000; default: `rate.requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// A number of requests per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rate {
    /// The number of requests. 1–1,000,000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// The period. 1ms–24h.
    pub per: HumanDuration,
}

/// The key that a limit counts requests by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum LimitKey {
    /// The peer that TLS authenticated.
    #[default]
    Principal,
    /// The socket address of the peer, without port.
    Address,
    /// The user of the verified token; without a token, the principal.
    User,
}
