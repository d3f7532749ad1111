//! The decision and its reasons.

use std::{fmt, sync::Arc};

use merlon_config::snapshot::PolicyName;
use serde::{Deserialize, Serialize};

/// Whether a policy allows or forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// `forbid`: beats any permit.
    Forbid,
    /// `permit`.
    Permit,
}

/// A policy's name, effect and annotations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyInfo {
    /// Document and `@id`.
    pub name: PolicyName,
    /// Whether it allows or forbids.
    pub effect: Effect,
    /// `@reason`: one sentence that may be shown to the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `@owner`: the contact for questions about the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// `@docs`: a link to documentation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docs: Option<String>,
}

/// The result of a policy decision.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "an unused decision enforces nothing"]
pub enum Decision {
    /// The request is allowed.
    Permit(Permit),
    /// The request is denied.
    Deny(Deny),
}

impl Decision {
    /// The permit, or the denial as an error.
    ///
    /// # Errors
    /// The denial.
    pub fn into_result(self) -> Result<Permit, Deny> {
        match self {
            Self::Permit(permit) => Ok(permit),
            Self::Deny(deny) => Err(deny),
        }
    }

    /// The name of the policy that decided; `None` when no policy permitted the request or its facts were invalid.
    pub fn policy(&self) -> Option<&PolicyName> {
        match self {
            Self::Permit(permit) => Some(permit.policy()),
            Self::Deny(deny) => deny.policy(),
        }
    }
}

/// Proof that a policy allowed a request. Only [`crate::service::ServicePolicy`] creates one.
#[derive(Debug, Clone, PartialEq)]
pub struct Permit {
    by: Arc<PolicyInfo>,
}

impl Permit {
    pub(crate) fn new(by: &Arc<PolicyInfo>) -> Self {
        Self { by: Arc::clone(by) }
    }

    /// The policy that allowed the request.
    pub fn policy(&self) -> &PolicyName {
        &self.by.name
    }

    /// Its name, effect and annotations.
    pub fn info(&self) -> &PolicyInfo {
        &self.by
    }
}

/// A denial by policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Deny {
    kind: DenyKind,
}

/// Why policy denied the request.
#[derive(Debug, Clone, PartialEq)]
pub enum DenyKind {
    /// This `forbid` holds.
    Forbidden(Arc<PolicyInfo>),
    /// This `forbid` could not be evaluated. It might have held, so the request is denied.
    ForbidFailed(Arc<PolicyInfo>),
    /// No policy permits the request.
    NothingPermits,
    /// A policy reads this header and its value is not printable ASCII.
    BadHeader(Arc<str>),
    /// A policy reads this query parameter, and it is repeated or cannot be decoded.
    BadQuery(Arc<str>),
}

impl Deny {
    pub(crate) fn new(kind: DenyKind) -> Self {
        Self { kind }
    }

    /// Why the request was denied.
    pub fn kind(&self) -> &DenyKind {
        &self.kind
    }

    /// The `forbid` that decided.
    pub fn info(&self) -> Option<&PolicyInfo> {
        match &self.kind {
            DenyKind::Forbidden(info) | DenyKind::ForbidFailed(info) => Some(info),
            _ => None,
        }
    }

    /// The name of the `forbid` that decided.
    pub fn policy(&self) -> Option<&PolicyName> {
        self.info().map(|info| &info.name)
    }

    /// The `@reason` of the `forbid` that decided: a sentence that may be shown to the caller.
    pub fn reason(&self) -> Option<&str> {
        self.info().and_then(|info| info.reason.as_deref())
    }

    /// The stable reason code: `authz.denied`, `http.header` or `http.query`.
    pub fn code(&self) -> &'static str {
        match self.kind {
            DenyKind::BadHeader(_) => "http.header",
            DenyKind::BadQuery(_) => "http.query",
            _ => "authz.denied",
        }
    }

    /// The HTTP status: 403, or 400 for an invalid header or query parameter.
    pub fn status(&self) -> u16 {
        match self.kind {
            DenyKind::BadHeader(_) | DenyKind::BadQuery(_) => 400,
            _ => 403,
        }
    }
}

impl fmt::Display for Deny {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            DenyKind::Forbidden(info) => write!(f, "forbidden by `{}`", info.name),
            DenyKind::ForbidFailed(info) => {
                write!(
                    f,
                    "`{}` could not be evaluated, so the request is denied",
                    info.name
                )
            }
            DenyKind::NothingPermits => f.write_str("no policy permits it"),
            DenyKind::BadHeader(name) => {
                write!(f, "the header `{name}` is not printable ASCII")
            }
            DenyKind::BadQuery(name) => write!(
                f,
                "the query parameter `{name}` is repeated or wrongly encoded"
            ),
        }
    }
}

impl std::error::Error for Deny {}
