use std::{collections::HashMap, time::Duration};

use url::Url;

use super::{
    checker::Checker,
    text::{is_token, url_problem},
};
use crate::{
    name::ResourceName,
    resource::{RequestAuthenticationSpec, Resource, Spec, TokenIssuer},
};

const MAX_SKEW: Duration = Duration::from_secs(5 * 60);

impl<'a> Checker<'a, '_> {
    /// A name refers to one issuer wherever both documents apply: otherwise `alice` of two issuers would be one user.
    pub(super) fn unique_issuer_names(&mut self) {
        let root = self.root_namespace().cloned();
        let mut known: Vec<(&Resource, &TokenIssuer)> = Vec::new();
        let mut by_name: HashMap<&ResourceName, Vec<usize>> = HashMap::new();
        let mut clashes = Vec::new();
        for resource in &self.checked.resources.list {
            let Spec::RequestAuthentication(spec) = &resource.spec else {
                continue;
            };
            for (index, issuer) in spec.issuers.iter().enumerate() {
                let same_name = by_name.entry(&issuer.name).or_default();
                let clash =
                    same_name
                        .iter()
                        .filter_map(|at| known.get(*at))
                        .find(|(other, theirs)| {
                            let meet = other.namespace == resource.namespace
                                || root.as_ref() == Some(&other.namespace)
                                || root.as_ref() == Some(&resource.namespace);
                            meet && (theirs.issuer != issuer.issuer
                                || other.origin == resource.origin)
                        });
                if let Some((other, theirs)) = clash {
                    clashes.push((resource, index, issuer, *other, *theirs));
                }
                same_name.push(known.len());
                known.push((resource, issuer));
            }
        }
        for (resource, index, issuer, other, theirs) in clashes {
            let field = format!("spec.issuers[{index}].name");
            let message = format!(
                "the issuer name `{}` already refers to `{}`",
                issuer.name, theirs.issuer
            );
            let hint = format!(
                "it is defined in `{}/{}` at {}; use a different name",
                other.namespace, other.name, other.origin
            );
            self.error(resource, &field, message).hint(hint);
        }
    }

    pub(super) fn authentication(
        &mut self,
        resource: &'a Resource,
        spec: &'a RequestAuthenticationSpec,
    ) {
        if spec.issuers.is_empty() {
            self.error(resource, "spec.issuers", "`issuers` is empty")
                .hint("to accept requests without checking tokens, remove the document");
        }
        for (index, issuer) in spec.issuers.iter().enumerate() {
            self.issuer(resource, &format!("spec.issuers[{index}]"), issuer);
        }
    }

    fn issuer(&mut self, resource: &Resource, field: &str, issuer: &TokenIssuer) {
        self.issuer_url(resource, &format!("{field}.issuer"), &issuer.issuer);
        if let Some(url) = &issuer.jwks_uri
            && let Some(problem) = url_problem(url)
        {
            let message = format!("keys cannot be fetched from `{url}`: {problem}");
            self.error(resource, &format!("{field}.jwksUri"), message);
        }
        if let Some(pem) = &issuer.ca_certificates {
            let field = format!("{field}.caCertificates");
            if pem.contains("PRIVATE KEY-----") {
                let message = "`caCertificates` contains a private key";
                self.error(resource, &field, message)
                    .hint("remove the key and replace it with a new one: it may be compromised");
            } else if !pem.contains("-----BEGIN CERTIFICATE-----") {
                let message = "`caCertificates` contains no PEM certificate";
                self.error(resource, &field, message);
            }
        }
        let lists = [
            (
                "audiences",
                issuer.audiences.is_empty(),
                "the audiences that tokens may be issued for",
            ),
            (
                "algorithms",
                issuer.algorithms.is_empty(),
                "the algorithms that tokens may be signed with",
            ),
            (
                "tokenTypes",
                issuer.token_types.is_empty(),
                "the `typ` values that tokens may have",
            ),
        ];
        for (name, empty, what) in lists {
            if empty {
                let message = format!("`{name}` is empty, so every token would be rejected");
                self.error(resource, &format!("{field}.{name}"), message)
                    .hint(format!("list {what}"));
            }
        }
        for (index, audience) in issuer.audiences.iter().enumerate() {
            if audience.is_empty() {
                self.error(
                    resource,
                    &format!("{field}.audiences[{index}]"),
                    "an audience must not be empty",
                );
            }
        }
        for (index, kind) in issuer.token_types.iter().enumerate() {
            let field = format!("{field}.tokenTypes[{index}]");
            if let Some(short) = kind.strip_prefix("application/") {
                let message = format!("`{kind}` must not begin with `application/`");
                self.error(resource, &field, message)
                    .hint(format!("write `{short}`"));
            } else if !is_token(kind) {
                self.error(resource, &field, format!("`{kind}` is not a token type"));
            }
        }
        if issuer.clock_skew.0 > MAX_SKEW {
            let message = format!("`clockSkew` must be at most 5m, not {}", issuer.clock_skew);
            self.error(resource, &format!("{field}.clockSkew"), message);
        }
        if issuer.groups_claim.is_empty() {
            self.error(
                resource,
                &format!("{field}.groupsClaim"),
                "`groupsClaim` must not be empty",
            );
        }
        if issuer.claims.contains_key("") {
            self.error(
                resource,
                &format!("{field}.claims"),
                "a claim name must not be empty",
            );
        }
    }

    fn issuer_url(&mut self, resource: &Resource, field: &str, text: &str) {
        let problem = match text.parse::<Url>() {
            Err(_) => Some("it is not a URL"),
            // OpenID Connect Discovery 1.0 §4, RFC 8414 §2.
            Ok(url) if url.query().is_some() || url.fragment().is_some() => {
                Some("it must not have a query or a fragment")
            }
            Ok(url) => url_problem(&url),
        };
        if let Some(problem) = problem {
            let message = format!("`{text}` cannot be an issuer: {problem}");
            self.error(resource, field, message);
        }
    }
}
