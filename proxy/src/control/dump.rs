//! A dump of the proxy's state, without secrets.

use merlon_config::snapshot::ResourceKind;
use serde_json::{Value, json};

use crate::state::{shared::Shared, snapshot::Snapshot};

/// The resources of the snapshot in force with their versions, identity and readiness. No keys, no tokens.
pub(crate) fn dump(shared: &Shared) -> Value {
    let snapshot = shared.snapshot.load_full();
    let identity = shared.identity.load_full();
    json!({
        "ready": shared.readiness.is_ready(),
        "reasons": shared.readiness.reasons(),
        "identity": identity.as_ref().as_ref().map(|tls| {
            let svid = tls.svid();
            json!({
                "id": svid.id,
                "serial": svid.serial,
                "notBefore": svid.not_before.as_secs(),
                "notAfter": svid.not_after.as_secs(),
            })
        }),
        "outside": shared.egress.list(),
        "snapshot": snapshot.as_ref().as_ref().map(|snapshot| described(snapshot)),
    })
}

fn described(snapshot: &Snapshot) -> Value {
    let resources: Vec<Value> = snapshot
        .resources
        .iter()
        .map(|(key, version)| {
            json!({
                "kind": key.kind,
                "name": key.name,
                "version": version,
                "content": content(snapshot, key.kind, &key.name),
            })
        })
        .collect();
    json!({ "version": snapshot.version, "resources": resources })
}

fn content(snapshot: &Snapshot, kind: ResourceKind, name: &str) -> Value {
    let content = match kind {
        ResourceKind::Manifest => None,
        ResourceKind::Mesh => serde_json::to_value(&*snapshot.mesh).ok(),
        ResourceKind::Workload => serde_json::to_value(&snapshot.workload).ok(),
        ResourceKind::TrustBundle => {
            let mut bundles = snapshot.bundles.iter();
            let found = bundles.find(|bundle| bundle.trust_domain.as_str() == name);
            found.and_then(|bundle| serde_json::to_value(bundle).ok())
        }
        ResourceKind::Service => name.parse().ok().and_then(|name| {
            let service = snapshot.services.get(&name)?;
            serde_json::to_value(&*service.state).ok()
        }),
        ResourceKind::Destination => name.parse().ok().and_then(|name| {
            let destination = snapshot.destinations.get(&name)?;
            serde_json::to_value(&**destination).ok()
        }),
        ResourceKind::Address => name.parse().ok().and_then(|address| {
            let state = snapshot.addresses.get(&address)?;
            serde_json::to_value(state).ok()
        }),
        // The version identifies the content.
        ResourceKind::Certificate | ResourceKind::Secret => None,
    };
    content.unwrap_or(Value::Null)
}
