use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::ResourceName;

/// The target that a policy is attached to, always in the policy's own namespace (Gateway API policy attachment).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// The kind of the target.
    pub kind: TargetKind,
    /// The target's name. Optional for `Namespace`; `Mesh` has no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<ResourceName>,
}

/// What policies can be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// One Service of the policy's namespace.
    Service,
    /// One Gateway of the policy's namespace.
    Gateway,
    /// Every Service and Gateway of the policy's namespace. This is the default of a policy without `targetRefs`.
    Namespace,
    /// Every Service and Gateway of the mesh. Only allowed in the mesh's root namespace.
    Mesh,
}
