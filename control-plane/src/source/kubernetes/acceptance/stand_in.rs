//! Denies what a resource protects, if the resource was in force and cannot be in force now.

use merlon_config::crd;
use serde_json::{Value, json};

use super::{
    super::document::{Key, Version},
    VersionsInForce,
};

/// What replaces a resource in `set`. `None`: the resource only grants something, and is left out.
///
/// The policy denies all requests to the resource's targets, or to its whole namespace, because a version of Merlon may reject
/// the targets as well.
pub(super) fn stand_in(
    set: &VersionsInForce,
    key: &Key,
    version: &Version,
    whole_namespace: bool,
) -> Option<Version> {
    if key.kind == "SecretGrant" {
        return None;
    }
    // Names and ids are unique in a namespace, and its users may use any.
    let own = || {
        let texts = set.iter().filter(|(of, _)| of.namespace == key.namespace);
        texts.map(|(_, version)| version.text.as_str())
    };
    let names = (0..=set.len()).map(|number| format!("not-in-force-{number}"));
    let mut free = names.filter(|name| !own().any(|text| text.contains(name.as_str())));
    let id = free.next().unwrap_or_default();
    let name = match key.kind {
        "AuthorizationPolicy" => &key.name,
        _ => &id,
    };
    let mut spec = json!({
        "policies": format!("@id(\"{id}\")\nforbid (principal, action, resource);"),
    });
    if let (Some(targets), false) = (version.spec.get("targetRefs"), whole_namespace)
        && let Value::Object(fields) = &mut spec
    {
        fields.insert("targetRefs".to_owned(), targets.clone());
    }
    let text = crd::document("AuthorizationPolicy", (&key.namespace, name), &spec);
    // Does not occur. The text is invalid, so that nothing is permitted.
    let text = text.unwrap_or_else(|error| error.to_string());
    Some(Version {
        generation: version.generation,
        spec,
        text,
    })
}
