use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetRef;

/// Who may do what: Cedar policies. Denied by default; one `forbid` beats any `permit`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// What it applies to; left out: the whole namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// Cedar text. Each policy carries an `@id("…")`, unique in its namespace.
    pub policies: String,
}
