use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use merlon_config::{
    resource::{ClaimType, RequestAuthenticationSpec, SignatureAlgorithm},
    snapshot::Attached,
};
use url::Url;

use super::user::User;
use crate::problem::PolicyProblem;

/// The tokens that a service accepts: its `RequestAuthentication` documents combined.
#[derive(Debug, Clone, Default)]
pub struct TokenRules {
    issuers: Vec<IssuerRules>,
    required: bool,
    forward_token: bool,
}

/// The rules for tokens of one issuer.
#[derive(Debug, Clone, PartialEq)]
pub struct IssuerRules {
    /// The short name in policies.
    pub name: String,
    /// The exact value of `iss`.
    pub issuer: String,
    /// The URL of its keys, for issuers without discovery.
    pub jwks_uri: Option<Url>,
    /// PEM roots for the issuer's own certificate.
    pub ca_certificates: Option<String>,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// Accepted signatures.
    pub algorithms: Vec<SignatureAlgorithm>,
    /// Accepted values of `typ`, without `application/`.
    pub token_types: Vec<String>,
    /// Accepted clock skew; at most five minutes.
    pub clock_skew: Duration,
    /// Claims that become `context.user.claims`.
    pub claims: Vec<(String, ClaimType)>,
    /// The claim that holds the groups.
    pub groups_claim: String,
}

impl TokenRules {
    /// Combines documents: tokens of any of their issuers are accepted, a token is required if one document requires it,
    /// and it is forwarded only if all documents allow that.
    pub fn new(documents: &[Attached<RequestAuthenticationSpec>]) -> Self {
        let mut issuers: Vec<IssuerRules> = Vec::new();
        for issuer in documents.iter().flat_map(|document| &document.spec.issuers) {
            let rules = IssuerRules {
                name: issuer.name.to_string(),
                issuer: issuer.issuer.clone(),
                jwks_uri: issuer.jwks_uri.clone(),
                ca_certificates: issuer.ca_certificates.clone(),
                audiences: issuer.audiences.clone(),
                algorithms: issuer.algorithms.clone(),
                token_types: issuer.token_types.clone(),
                clock_skew: issuer.clock_skew.0.min(Duration::from_secs(300)),
                claims: issuer.claims.iter().map(|(n, t)| (n.clone(), *t)).collect(),
                groups_claim: issuer.groups_claim.clone(),
            };
            if !issuers.contains(&rules) {
                issuers.push(rules);
            }
        }
        Self {
            issuers,
            required: documents.iter().any(|document| document.spec.required),
            forward_token: !documents.is_empty()
                && documents.iter().all(|document| document.spec.forward_token),
        }
    }

    /// Issuers that several documents declare with different settings. Such a declaration is ambiguous.
    pub(crate) fn conflicts(
        documents: &[Attached<RequestAuthenticationSpec>],
    ) -> Vec<PolicyProblem> {
        let all: Vec<_> = documents
            .iter()
            .flat_map(|document| {
                document
                    .spec
                    .issuers
                    .iter()
                    .map(move |issuer| (&document.from, issuer))
            })
            .collect();
        let mut problems = Vec::new();
        for (number, (from, issuer)) in all.iter().enumerate() {
            let other = all.iter().take(number).find(|(_, other)| {
                other != issuer && (other.name == issuer.name || other.issuer == issuer.issuer)
            });
            if let Some((other_from, _)) = other {
                problems.push(
                    PolicyProblem::new(
                        from,
                        format!(
                            "the issuer `{}` is declared twice with different settings",
                            issuer.name
                        ),
                    )
                    .field("spec.issuers")
                    .hint(format!("the other declaration is in `{other_from}`")),
                );
            }
        }
        problems
    }

    /// Whether no issuer is accepted; tokens are then not verified.
    pub fn is_empty(&self) -> bool {
        self.issuers.is_empty()
    }

    /// Whether a request without a token is rejected with 401.
    pub fn required(&self) -> bool {
        self.required && !self.is_empty()
    }

    /// Whether `Authorization` is forwarded to the application. Always true when no issuer is accepted.
    pub fn forward_token(&self) -> bool {
        self.forward_token || self.is_empty()
    }

    /// The accepted issuers. The caller fetches their keys.
    pub fn issuers(&self) -> &[IssuerRules] {
        &self.issuers
    }

    /// The time until which a verified user is accepted: `exp` plus the clock skew.
    pub fn accepted_until(&self, user: &User) -> Timestamp {
        let rules = self.issuers.iter().find(|one| one.name == user.issuer_name);
        let skew = rules.map_or(Duration::ZERO, |rules| rules.clock_skew);
        user.expires_at
            .saturating_add(SignedDuration::try_from(skew).unwrap_or_default())
            .unwrap_or(Timestamp::MAX)
    }

    /// The issuer with exactly this `iss`.
    pub fn issuer(&self, iss: &str) -> Option<&IssuerRules> {
        self.issuers.iter().find(|rules| rules.issuer == iss)
    }
}
