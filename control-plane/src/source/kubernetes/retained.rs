//! Deleted resources that stay in force because others need them. The leader keeps each in a ConfigMap, so that a replica that
//! starts later enforces the same.

use std::{fmt::Write as _, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::core::v1::ConfigMap;
use merlon_config::crd::CLUSTER_KINDS;
use serde_json::{Value, json};

use super::{
    acceptance::VersionsInForce,
    document::{Key, Version},
};
use crate::cluster::names;

/// The resources that are kept.
pub(super) fn read(maps: &[Arc<ConfigMap>]) -> VersionsInForce {
    maps.iter().filter_map(|map| resource(map)).collect()
}

/// The resource in a ConfigMap. `None`: nothing that this version of Merlon can use.
pub(super) fn resource(map: &ConfigMap) -> Option<(Key, Version)> {
    let field = |name: &str| map.data.as_ref()?.get(name);
    let kind = field("kind")?;
    let key = Key {
        kind: CLUSTER_KINDS.iter().find(|known| known.kind == kind)?.kind,
        namespace: field("namespace")?.clone(),
        name: field("name")?.clone(),
    };
    let generation = field("generation")?.parse().ok()?;
    let spec = serde_json::from_str(field("spec")?).ok()?;
    let version = Version::of(&key, generation, spec)?;
    Some((key, version))
}

pub(super) fn config_map(key: &Key, version: &Version) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name(key),
            "labels": {
                names::RETAINED_LABEL: "true",
                "app.kubernetes.io/part-of": "merlon",
            },
        },
        "data": {
            "kind": key.kind,
            "namespace": key.namespace,
            "name": key.name,
            "generation": version.generation.to_string(),
            "spec": version.spec.to_string(),
        },
    })
}

/// The name of the ConfigMap. Kind, namespace and name together may be too long for one.
pub(super) fn name(key: &Key) -> String {
    let hash = digest(&SHA256, key.to_string().as_bytes());
    let mut name = "merlon-retained-".to_owned();
    for byte in hash.as_ref().iter().take(16) {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key {
            kind: "RequestAuthentication",
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    fn map(value: Value) -> Arc<ConfigMap> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn a_resource_is_read_as_it_was_written() {
        let spec = json!({ "issuers": [{ "name": "é\n", "audiences": [] }], "required": false });
        let version = Version::of(&key("a"), 7, spec).unwrap();
        let maps = [map(config_map(&key("a"), &version))];
        assert_eq!(read(&maps), [(key("a"), version)].into());
    }

    #[test]
    fn what_cannot_be_used_is_ignored() {
        let version = Version::of(&key("a"), 1, json!({})).unwrap();
        let right = config_map(&key("a"), &version);
        for (field, wrong) in [
            ("kind", json!("Deployment")),
            ("generation", json!("one")),
            ("spec", json!("{")),
            ("name", Value::Null),
        ] {
            let mut value = right.clone();
            value["data"][field] = wrong;
            if value["data"][field].is_null() {
                value["data"].as_object_mut().unwrap().remove(field);
            }
            assert!(resource(&map(value)).is_none(), "{field}");
        }
        assert!(resource(&ConfigMap::default()).is_none());
    }

    #[test]
    fn each_resource_has_a_name_of_its_own_that_kubernetes_accepts() {
        let long = name(&key(&"x".repeat(253)));
        assert!(long.len() <= 63, "{long}");
        assert_ne!(name(&key("a")), name(&key("b")));
    }
}
