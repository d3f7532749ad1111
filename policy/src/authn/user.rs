use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The user or client that a verified token identifies: `context.user`.
///
/// Contains the token's claims but never the token, so that it can be recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// `issuer-name#subject`, so that `alice` of two issuers are different users.
    pub id: String,
    /// The issuer's short name: `Issuer::"customers"`.
    pub issuer_name: String,
    /// `sub`.
    pub subject: String,
    /// `aud`, always as a list.
    #[serde(default)]
    pub audience: Vec<String>,
    /// `scope` (RFC 8693 §4.2) split at spaces, or `scp` as a list.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// `client_id` (RFC 8693 §4.3), else `azp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// How strongly the user was authenticated (OpenID Connect Core §2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acr: Option<String>,
    /// The authentication methods (RFC 8176).
    #[serde(default)]
    pub amr: Vec<String>,
    /// When the user was authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<Timestamp>,
    /// `issuer-name/group` for each group.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The claims that the issuer's resource declares, typed.
    #[serde(default)]
    pub claims: BTreeMap<String, ClaimValue>,
    /// Every other claim that is a scalar or a list of scalars, as strings; nested ones as `realm_access.roles`.
    #[serde(default)]
    pub tags: BTreeMap<String, Vec<String>>,
    /// `exp`: the user must not be accepted after this time.
    pub expires_at: Timestamp,
}

/// The value of a declared claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ClaimValue {
    /// Text.
    String(String),
    /// An integer.
    Long(i64),
    /// True or false.
    Boolean(bool),
    /// A list of texts.
    StringSet(Vec<String>),
}

impl User {
    /// A user with only an identity.
    pub fn new(issuer_name: &str, subject: &str, expires_at: Timestamp) -> Self {
        Self {
            id: format!("{issuer_name}#{subject}"),
            issuer_name: issuer_name.to_owned(),
            subject: subject.to_owned(),
            audience: Vec::new(),
            scopes: Vec::new(),
            client_id: None,
            acr: None,
            amr: Vec::new(),
            auth_time: None,
            groups: Vec::new(),
            claims: BTreeMap::new(),
            tags: BTreeMap::new(),
            expires_at,
        }
    }
}
