//! Merlon's gateways and their routes: conditions that are not healthy.

use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::Value;

use super::finding::{Finding, unreadable};
use crate::cluster::Cluster;

const GROUP: &str = "gateway.networking.k8s.io";
/// The controller name of Merlon, in GatewayClasses and in the status of routes.
const CONTROLLER: &str = "merlon.io/gateway";

pub(super) async fn gateways(cluster: &Cluster) -> Vec<Finding> {
    let (classes, gateways, routes) = tokio::join!(
        list(cluster, "GatewayClass", "gatewayclasses"),
        list(cluster, "Gateway", "gateways"),
        list(cluster, "HTTPRoute", "httproutes")
    );
    let (classes, gateways, routes) = match (classes, gateways, routes) {
        (Ok(classes), Ok(gateways), Ok(routes)) => (classes, gateways, routes),
        // Gateway API is not installed.
        (Err(kube::Error::Api(status)), ..) if status.code == 404 => return Vec::new(),
        (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => {
            return vec![unreadable("Gateway API", &error)];
        }
    };
    let text = |object: &DynamicObject, pointer: &str| {
        let value = object.data.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let own: Vec<String> = classes
        .iter()
        .filter(|class| text(class, "/spec/controllerName") == CONTROLLER)
        .map(|class| class.name_any())
        .collect();
    let gateways: Vec<_> = gateways
        .iter()
        .filter(|gateway| own.contains(&text(gateway, "/spec/gatewayClassName")))
        .collect();
    let mut findings: Vec<Finding> = gateways.iter().flat_map(|one| gateway(one)).collect();
    findings.extend(routes.iter().flat_map(route));
    if findings.is_empty() && !gateways.is_empty() {
        findings.push(Finding::ok(format!(
            "{} gateways and their routes are served",
            gateways.len()
        )));
    }
    findings
}

async fn list(
    cluster: &Cluster,
    kind: &str,
    plural: &str,
) -> Result<Vec<DynamicObject>, kube::Error> {
    let resource = ApiResource {
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{GROUP}/v1"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    Ok(api.list(&ListParams::default()).await?.items)
}

fn name(kind: &str, object: &DynamicObject) -> String {
    let namespace = object.namespace().unwrap_or_default();
    format!("{kind} {namespace}/{}", object.name_any())
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    let list = value.get(field).and_then(Value::as_array);
    list.into_iter().flatten()
}

/// Conditions of these types that are false, each with its message.
fn broken<'a>(
    of: &'a Value,
    kinds: &'static [&'static str],
) -> impl Iterator<Item = (&'static str, &'a str)> {
    items(of, "conditions").filter_map(|one| {
        let kind = one.get("type")?.as_str()?;
        let kind = kinds.iter().find(|known| **known == kind)?;
        let no = one.get("status")? == "False";
        no.then_some((*kind, one.get("message")?.as_str()?))
    })
}

fn gateway(object: &DynamicObject) -> Vec<Finding> {
    let name = name("Gateway", object);
    let none = Value::Null;
    let status = object.data.get("status").unwrap_or(&none);
    let own = broken(status, &["Accepted", "Programmed"])
        .map(|(kind, message)| format!("{name} is not {}: {message}", kind.to_lowercase()));
    let listeners = items(status, "listeners").flat_map(|listener| {
        let listener_name = listener.get("name").and_then(Value::as_str);
        let listener_name = listener_name.unwrap_or_default().to_owned();
        let name = &name;
        broken(listener, &["Accepted", "ResolvedRefs"]).map(move |(_, message)| {
            format!("{name}: the listener `{listener_name}` is not served: {message}")
        })
    });
    own.chain(listeners)
        .map(|message| {
            Finding::problem(
                message,
                "see docs/gateway.md for the meaning of each reason",
            )
        })
        .collect()
}

fn route(object: &DynamicObject) -> Vec<Finding> {
    let none = Value::Null;
    let status = object.data.get("status").unwrap_or(&none);
    let ours = items(status, "parents").filter(|one| one["controllerName"] == CONTROLLER);
    let findings = ours.flat_map(|parent| broken(parent, &["Accepted", "ResolvedRefs"]));
    findings
        .map(|(_, message)| {
            Finding::problem(
                format!("{}: {message}", name("HTTPRoute", object)),
                "see docs/gateway.md for the meaning of each reason",
            )
        })
        .collect()
}
