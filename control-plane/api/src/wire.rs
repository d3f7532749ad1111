//! Snapshot resources in the messages of delta discovery.

use merlon_config::{
    name::{Namespace, SpiffeId, TrustDomain, WorkloadId},
    snapshot::{ResourceKey, ResourceKind, Version},
};
use prost_types::{Any, Struct, Value, value::Kind};

use crate::discovery::{Node, Resource};

/// The control plane's service account, in the mesh's root namespace.
pub const CONTROL_PLANE_ACCOUNT: &str = "merlon-control-plane";
/// Maximum length of a name, in bytes.
pub const MAX_NAME: usize = 253;
/// Maximum size of a message to the control plane, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Maximum number of subscriptions of one proxy.
pub const MAX_SUBSCRIPTIONS: usize = 1_000;
/// The name of the only [`ResourceKind::Mesh`] resource.
pub const MESH_NAME: &str = "mesh";
/// Key of [`Node::metadata`]: the name of the proxy's `Workload`, among those with its identity.
pub const METADATA_WORKLOAD: &str = "workload";
/// Key of [`Node::metadata`]: the proxy's version.
pub const METADATA_VERSION: &str = "version";

/// Key of [`Node::metadata`]: type URLs of the kinds of [`ResourceKind::NEGOTIATED`] that the proxy supports, separated
/// by commas.
pub const METADATA_KINDS: &str = "kinds";

/// The identity that a proxy requires from the control plane:
/// `spiffe://<trust-domain>/ns/<root namespace>/sa/merlon-control-plane`.
pub fn control_plane_id(trust_domain: &TrustDomain, root_namespace: &Namespace) -> SpiffeId {
    #[expect(clippy::expect_used, reason = "a constant that a test parses")]
    let service_account = CONTROL_PLANE_ACCOUNT.parse().expect("a resource name");
    trust_domain.spiffe_id(&WorkloadId {
        namespace: root_namespace.clone(),
        service_account,
    })
}

/// The prefix of every decision id of a process, before the hyphen: eight hexadecimal digits.
pub fn decision_prefix(node_id: &str) -> String {
    Version::of(node_id.as_bytes())
        .as_str()
        .chars()
        .take(8)
        .collect()
}

/// The node of a proxy's first message.
pub fn node(id: &str, workload: Option<&str>, version: &str) -> Node {
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let kinds = ResourceKind::NEGOTIATED
        .map(ResourceKind::type_url)
        .join(",");
    let mut fields = vec![
        (METADATA_VERSION.to_owned(), text(version)),
        (METADATA_KINDS.to_owned(), text(&kinds)),
    ];
    if let Some(workload) = workload {
        fields.push((METADATA_WORKLOAD.to_owned(), text(workload)));
    }
    Node {
        id: id.to_owned(),
        metadata: Some(Struct {
            fields: fields.into_iter().collect(),
        }),
        user_agent_name: "merlon-proxy".to_owned(),
        ..Node::default()
    }
}

/// A text in the node's metadata.
pub fn metadata<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

/// The key of a subscription.
///
/// # Errors
/// [`WireError::Type`] for an unknown type URL.
pub fn state_key(type_url: &str, name: &str) -> Result<ResourceKey, WireError> {
    let kind =
        ResourceKind::from_type_url(type_url).ok_or_else(|| WireError::Type(cut(type_url)))?;
    Ok(ResourceKey {
        kind,
        name: name.to_owned(),
    })
}

/// Wraps the JSON of a snapshot type in a discovery resource.
pub fn seal_resource(key: &ResourceKey, version: &Version, json: &[u8]) -> Resource {
    Resource {
        version: version.as_str().to_owned(),
        resource: Some(Any {
            type_url: key.kind.type_url().to_owned(),
            value: json.to_vec(),
        }),
        name: key.name.clone(),
        aliases: Vec::new(),
    }
}

/// A received resource, whose bytes match its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Kind and name.
    pub key: ResourceKey,
    /// The hash of `json`.
    pub version: Version,
    /// JSON of the kind's snapshot type.
    pub json: Vec<u8>,
}

/// Unwraps and verifies a discovery resource.
///
/// # Errors
/// The resource has no content or an unknown type, or its bytes do not match its version.
pub fn open_resource(resource: Resource) -> Result<Received, WireError> {
    let name = cut(&resource.name);
    let Some(any) = resource.resource else {
        return Err(WireError::Empty(name));
    };
    let key = state_key(&any.type_url, &resource.name)?;
    let version = Version::of(&any.value);
    if version.as_str() != resource.version {
        return Err(WireError::Version(name));
    }
    Ok(Received {
        key,
        version,
        json: any.value,
    })
}

/// Why a discovery resource was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Unknown type.
    #[error("`{0}` is not a resource type of Merlon")]
    Type(String),
    /// No content.
    #[error("the resource `{0}` has no content")]
    Empty(String),
    /// Bytes and version do not match.
    #[error("the bytes of the resource `{0}` do not match the hash in its version")]
    Version(String),
}

/// Truncates a peer's text, because it is logged.
fn cut(text: &str) -> String {
    text.chars().take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ResourceKey {
        ResourceKey {
            kind: ResourceKind::Service,
            name: "shop/orders".into(),
        }
    }

    #[test]
    fn the_control_planes_identity_is_in_the_root_namespace() {
        let id = control_plane_id(&"a.test".parse().unwrap(), &"root".parse().unwrap());
        assert_eq!(
            id.to_string(),
            "spiffe://a.test/ns/root/sa/merlon-control-plane"
        );
    }

    #[test]
    fn a_sealed_resource_is_opened_unchanged() {
        let sealed = seal_resource(&key(), &Version::of(b"{}"), b"{}");
        let opened = open_resource(sealed).unwrap();
        assert_eq!((opened.key, opened.json), (key(), b"{}".to_vec()));
    }

    #[test]
    fn bytes_of_another_version_are_rejected() {
        let sealed = seal_resource(&key(), &Version::of(b"{ }"), b"{}");
        assert_eq!(
            open_resource(sealed),
            Err(WireError::Version("shop/orders".into()))
        );
    }

    #[test]
    fn the_metadata_of_a_node_can_be_read() {
        let node = node("n1", Some("orders-1"), "0.1.0");
        assert_eq!(metadata(&node, METADATA_WORKLOAD), Some("orders-1"));
        assert_eq!(metadata(&node, METADATA_VERSION), Some("0.1.0"));
        assert_eq!(metadata(&node, "cluster"), None);
    }
}
