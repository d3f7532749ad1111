use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::target::TargetRef;

/// Cedar policies. Requests are denied by default, and one `forbid` overrides any `permit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// What it applies to. If omitted, the whole namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// Cedar text. Each policy has an `@id("…")`, unique in its namespace.
    pub policies: String,
}
