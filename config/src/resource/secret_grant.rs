use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::{ResourceName, ServiceName};

/// A secret of Vault's or OpenBao's KV engine (version 2) for one workload, as files or as headers of its calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretGrantSpec {
    /// Who gets it: a service account of the grant's own namespace.
    pub service_account: ResourceName,
    /// Where it is, below `<kvPrefix>/<the grant's namespace>/`: `payments/db`. No grant reaches another namespace's.
    pub path: String,
    /// As files that the program reads, one for each key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<SecretFiles>,
    /// As headers that the program's calls get on their way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<SecretHeader>,
}

/// Below `<the folder of secrets>/<the grant's name>/`, each file named as its key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretFiles {
    /// Which keys; left out: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}

/// A header of calls to one service. What the program itself says under this name is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretHeader {
    /// The service that is called, as `payments/stripe`.
    pub service: ServiceName,
    /// The header's name.
    pub name: String,
    /// The key of the secret whose value it has.
    pub key: String,
    /// What stands before the value, as `Bearer `. Default: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}
