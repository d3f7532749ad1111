//! Fixtures that the tests of several modules share.

mod layers;

use std::collections::BTreeMap;

use jiff::Timestamp;
use merlon_config::snapshot::{InboundService, MeshState, PolicyDocument};

use crate::authn::{ClaimValue, User};

// Re-exported so that the tests of modules below `service` do not import it themselves.
pub(crate) use crate::{explain::explained, service::ServicePolicy};

pub(crate) fn mesh() -> MeshState {
    MeshState {
        trust_domain: "demo.test".parse().unwrap(),
        root_namespace: "merlon-system".parse().unwrap(),
        outbound: Default::default(),
        gateways: Default::default(),
    }
}

pub(crate) fn service(text: &str) -> InboundService {
    let mut service: InboundService = serde_json::from_value(serde_json::json!({
        "name": "shop/orders",
        "groups": ["internal"],
        "workloadGroups": { "backoffice": ["ops/console"], "pci": ["shop/web"] },
        "authentication": [{ "from": "shop/tokens", "spec": { "issuers": [{
            "name": "customers", "issuer": "https://id.test", "audiences": ["orders"],
            "claims": { "department": "String", "clearance": "Long", "regions": "StringSet", "staff": "Boolean" },
        }] } }],
        "validation": [{ "from": "shop/shape", "spec": { "routes": [
            { "path": "/users/{user}/orders/{id}" },
            { "path": "/users/{user}/orders" },
            { "path": "/files/{rest*}" },
        ] } }],
    }))
    .unwrap();
    service.policies = vec![PolicyDocument {
        name: "shop/orders".parse().unwrap(),
        origin: String::new(),
        text: text.to_owned(),
    }];
    service
}

pub(crate) fn alice() -> User {
    User {
        groups: vec!["customers/gold".into()],
        amr: vec!["pwd".into(), "mfa".into()],
        claims: BTreeMap::from([
            ("department".into(), ClaimValue::String("sales".into())),
            ("clearance".into(), ClaimValue::Long(3)),
        ]),
        tags: BTreeMap::from([("realm_access.roles".into(), vec!["buyer".into()])]),
        ..User::new("customers", "alice", Timestamp::MAX)
    }
}
