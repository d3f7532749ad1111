use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::name::{ResourceName, ServiceName};

/// Grants one workload a secret of Vault's or OpenBao's KV engine (version 2), as files or as headers of its requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretGrantSpec {
    /// The service account that receives the secret, in the grant's own namespace.
    pub service_account: ResourceName,
    /// The secret's path below `<kvPrefix>/<the grant's namespace>/`, for example `payments/db`. A grant cannot reach the
    /// secrets of another namespace.
    pub path: String,
    /// Delivers the secret as files that the program reads, one for each key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<SecretFiles>,
    /// Delivers the secret as headers that the proxy adds to the program's requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<SecretHeader>,
}

/// Files in `<the secrets directory>/<the grant's name>/`. Each file is named after its key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretFiles {
    /// The keys to deliver. If omitted, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
}

/// A header of requests to one service. It replaces a header of this name that the program sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretHeader {
    /// The service that is called, for example `payments/stripe`.
    pub service: ServiceName,
    /// The header's name.
    pub name: String,
    /// The key of the secret that holds the value.
    pub key: String,
    /// Text before the value, for example `Bearer `. Default: empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}
