//! Names: strings that are parsed once, so that the rest of the program cannot hold an invalid one.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a string is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {why}")]
pub struct NameError {
    what: &'static str,
    text: String,
    why: &'static str,
}

fn bad<T>(what: &'static str, text: &str, why: &'static str) -> Result<T, NameError> {
    // The text may come from an untrusted peer and ends up in logs: limit its length.
    let text = text.chars().take(256).collect();
    Err(NameError { what, text, why })
}

/// DNS-1123 label: 1–63 characters of `a-z0-9-`, without a leading or trailing hyphen.
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

/// DNS-1123 subdomain: labels joined by dots, 253 bytes at most.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr, $why:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                if $check(text) { Ok(Self(text.to_owned())) } else { bad($what, text, $why) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        string_serde!($name, $what);
    };
}

macro_rules! string_serde {
    ($name:ident, $what:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $what })
            }
        }
    };
}

text_name!(
    /// The scope of one root of trust, for example `demo.merlon.test` (SPIFFE-ID §2.1).
    TrustDomain, "a trust domain", is_subdomain, "lower-case letters, digits and hyphens in labels joined by dots"
);
text_name!(
    /// A namespace, as in Kubernetes.
    Namespace, "a namespace", is_label, "1 to 63 lower-case letters, digits and hyphens"
);
text_name!(
    /// The name of a resource within its namespace.
    ResourceName, "a resource name", is_subdomain, "lower-case letters, digits and hyphens in labels joined by dots"
);

impl Default for Namespace {
    /// `default`, as in Kubernetes.
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl TrustDomain {
    /// The identity of a workload in this trust domain.
    pub fn spiffe_id(&self, workload: &WorkloadId) -> SpiffeId {
        SpiffeId {
            trust_domain: self.clone(),
            workload: workload.clone(),
        }
    }
}

/// A workload's service account within its trust domain: `shop/orders` is the service account `orders` of the namespace
/// `shop`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadId {
    /// The namespace.
    pub namespace: Namespace,
    /// The service account.
    pub service_account: ResourceName,
}

impl FromStr for WorkloadId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((namespace, account)) = text.split_once('/') else {
            return bad(
                "a workload",
                text,
                "write it as `namespace/service-account`",
            );
        };
        Ok(Self {
            namespace: namespace.parse()?,
            service_account: account.parse()?,
        })
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

string_serde!(
    WorkloadId,
    "a workload, written `namespace/service-account`"
);

/// A Service, for example `shop/orders`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: Namespace,
    /// The name in the namespace.
    pub name: ResourceName,
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((namespace, name)) = text.split_once('/') else {
            return bad("a service", text, "write it as `namespace/name`");
        };
        Ok(Self {
            namespace: namespace.parse()?,
            name: name.parse()?,
        })
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

string_serde!(ServiceName, "a service, written `namespace/name`");

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>` (SPIFFE-ID §2).
///
/// The same grammar applies to what a proxy requests, what an issuer returns and what a peer presents: no query, fragment,
/// port, user information, percent-encoding, empty or dot segment or upper case, and at most 2,048 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    workload: WorkloadId,
}

impl SpiffeId {
    /// The trust domain, whose roots verify the identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The workload within the trust domain.
    pub fn workload(&self) -> &WorkloadId {
        &self.workload
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        const WHAT: &str = "a SPIFFE ID of this mesh";
        const FORM: &str =
            "write it as `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`";
        if text.len() > 2_048 {
            return bad(WHAT, text, "it is longer than 2,048 bytes");
        }
        let Some(rest) = text.strip_prefix("spiffe://") else {
            return bad(WHAT, text, FORM);
        };
        let mut parts = rest.split('/');
        let (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return bad(WHAT, text, FORM);
        };
        Ok(Self {
            trust_domain: domain.parse()?,
            workload: WorkloadId {
                namespace: namespace.parse()?,
                service_account: account.parse()?,
            },
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkloadId {
            namespace,
            service_account,
        } = &self.workload;
        write!(
            f,
            "spiffe://{}/ns/{namespace}/sa/{service_account}",
            self.trust_domain
        )
    }
}

string_serde!(
    SpiffeId,
    "a SPIFFE ID, written `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`"
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_spiffe_id_has_only_one_form() {
        let valid = "spiffe://example.org/ns/shop/sa/orders";
        let id: SpiffeId = valid.parse().unwrap();
        assert_eq!(id.to_string(), valid);
        assert_eq!(id.workload().to_string(), "shop/orders");
        for wrong in [
            "",
            "spiffe://",
            "SPIFFE://example.org/ns/shop/sa/orders",
            "spiffe://Example.org/ns/shop/sa/orders",
            "spiffe://example.org/ns/shop/sa/orders/",
            "spiffe://example.org//ns/shop/sa/orders",
            "spiffe://example.org/ns/../sa/orders",
            "spiffe://example.org/ns/shop/sa/.",
            "spiffe://example.org/ns/shop/sa/orders?x",
            "spiffe://example.org/ns/shop/sa/orders#x",
            "spiffe://example.org:443/ns/shop/sa/orders",
            "spiffe://me@example.org/ns/shop/sa/orders",
            "spiffe://example.org/ns/sh%6fp/sa/orders",
            "spiffe://example.org/sa/orders/ns/shop",
            "https://example.org/ns/shop/sa/orders",
            "spiffe://example.org/ns/shop/sa/orders\0",
        ] {
            assert!(wrong.parse::<SpiffeId>().is_err(), "{wrong:?}");
        }
        let long = format!("spiffe://{}/ns/a/sa/b", "a.".repeat(1_200));
        assert!(long.parse::<SpiffeId>().is_err());
    }

    proptest! {
        #[test]
        fn any_string_is_rejected_or_a_name_that_prints_as_itself(text in "[a-zA-Z0-9./:%@?# \\-]{0,80}|\\PC{0,40}") {
            if let Ok(name) = text.parse::<SpiffeId>() { prop_assert_eq!(name.to_string(), &*text); }
            if let Ok(name) = text.parse::<WorkloadId>() { prop_assert_eq!(name.to_string(), &*text); }
            if let Ok(name) = text.parse::<ServiceName>() { prop_assert_eq!(name.to_string(), &*text); }
            if let Ok(name) = text.parse::<TrustDomain>() { prop_assert_eq!(name.to_string(), &*text); }
            if let Ok(name) = text.parse::<Namespace>() { prop_assert_eq!(name.to_string(), &*text); }
        }

        #[test]
        fn every_valid_spiffe_id_is_accepted(
            domain in "[a-z0-9]{1,8}(\\.[a-z0-9]{1,8}){0,3}",
            namespace in "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?",
            account in "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?",
        ) {
            let text = format!("spiffe://{domain}/ns/{namespace}/sa/{account}");
            prop_assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
    }
}
