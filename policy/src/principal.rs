//! The peer of a connection and its entities in policies.

use std::{collections::BTreeMap, fmt};

use merlon_config::{
    name::{SpiffeId, WorkloadId},
    snapshot::MeshState,
};
use serde::{Deserialize, Serialize};

/// The peer that TLS authenticated. Never taken from a header.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Principal {
    /// A workload with a mesh certificate.
    Workload(SpiffeId),
    /// A peer without a mesh certificate, such as a browser at the gateway or a client of a permissive port.
    Anonymous,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(id) => id.fmt(f),
            Self::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// The entity types of the schema, as an enum that is cheap to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum EntityKind {
    Workload,
    Anonymous,
    Namespace,
    TrustDomain,
    WorkloadGroup,
    Issuer,
    User,
    Group,
    Service,
    ServiceGroup,
    ExternalService,
    Action,
}

impl EntityKind {
    const ALL: [Self; 12] = [
        Self::Workload,
        Self::Anonymous,
        Self::Namespace,
        Self::TrustDomain,
        Self::WorkloadGroup,
        Self::Issuer,
        Self::User,
        Self::Group,
        Self::Service,
        Self::ServiceGroup,
        Self::ExternalService,
        Self::Action,
    ];

    /// The entity type's name in the schema.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Workload => "Workload",
            Self::Anonymous => "Anonymous",
            Self::Namespace => "Namespace",
            Self::TrustDomain => "TrustDomain",
            Self::WorkloadGroup => "WorkloadGroup",
            Self::Issuer => "Issuer",
            Self::User => "User",
            Self::Group => "Group",
            Self::Service => "Service",
            Self::ServiceGroup => "ServiceGroup",
            Self::ExternalService => "ExternalService",
            Self::Action => "Action",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An entity by type and id, such as `Workload::"shop/orders"`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entity {
    pub(crate) kind: EntityKind,
    pub(crate) id: Box<str>,
}

impl Entity {
    pub(crate) fn new(kind: EntityKind, id: impl Into<Box<str>>) -> Self {
        Self {
            kind,
            id: id.into(),
        }
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{:?}", self.kind.name(), self.id)
    }
}

/// A [`Principal`] resolved to entities and memberships, once per connection and service.
#[derive(Debug, Clone)]
pub struct PeerFacts {
    /// Identifies the service policy that resolved it: see [`crate::validate::RouteMatch`].
    pub(crate) stamp: u64,
    pub(crate) principal: Principal,
    /// The whole SPIFFE ID, for `context.tls.spiffeId`.
    pub(crate) spiffe_id: Option<Box<str>>,
    pub(crate) entity: Entity,
    pub(crate) workload: Option<WorkloadFacts>,
    /// Every entity that contains this one, transitively.
    pub(crate) ancestors: Vec<Entity>,
}

/// The attributes of a `Workload`.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadFacts {
    pub(crate) namespace: Entity,
    pub(crate) service_account: Box<str>,
    pub(crate) trust_domain: Entity,
}

impl PeerFacts {
    /// Resolves a principal to its entity, namespace, trust domain and the `groups` it is in.
    pub(crate) fn new(
        principal: &Principal,
        mesh: &MeshState,
        groups: &BTreeMap<String, Vec<WorkloadId>>,
        stamp: u64,
    ) -> Self {
        let Principal::Workload(id) = principal else {
            return Self {
                stamp,
                principal: principal.clone(),
                spiffe_id: None,
                entity: Entity::new(EntityKind::Anonymous, "peer"),
                workload: None,
                ancestors: Vec::new(),
            };
        };
        let is_local = *id.trust_domain() == mesh.trust_domain;
        let WorkloadId {
            namespace,
            service_account,
        } = id.workload();
        // Only workloads of the local trust domain have short names: `shop` of a foreign domain is not the local `shop`.
        let (workload_id, namespace_id) = if is_local {
            (id.workload().to_string(), namespace.to_string())
        } else {
            (
                id.to_string(),
                format!("spiffe://{}/ns/{namespace}", id.trust_domain()),
            )
        };
        let namespace = Entity::new(EntityKind::Namespace, namespace_id);
        let trust_domain = Entity::new(EntityKind::TrustDomain, id.trust_domain().as_str());
        let mut ancestors = vec![namespace.clone(), trust_domain.clone()];
        if is_local {
            ancestors.extend(
                groups
                    .iter()
                    .filter(|(_, members)| members.contains(id.workload()))
                    .map(|(group, _)| Entity::new(EntityKind::WorkloadGroup, group.as_str())),
            );
        }
        Self {
            stamp,
            principal: principal.clone(),
            spiffe_id: Some(id.to_string().into()),
            entity: Entity::new(EntityKind::Workload, workload_id),
            workload: Some(WorkloadFacts {
                namespace,
                service_account: service_account.as_str().into(),
                trust_domain,
            }),
            ancestors,
        }
    }

    /// The principal.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The id in policies: `shop/orders`, the whole SPIFFE ID of a foreign workload, or `peer`.
    pub fn id(&self) -> &str {
        &self.entity.id
    }

    /// Whether the entity is `other` or in it.
    pub(crate) fn is_in(&self, other: &Entity) -> bool {
        self.entity == *other || self.ancestors.contains(other)
    }
}
