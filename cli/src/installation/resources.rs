//! Merlon's kinds: whether they are defined, and the status of their resources.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
};
use merlon_config::crd::{CLUSTER_KINDS, GROUP, VERSION};
use serde_json::Value;

use super::finding::{Finding, unreadable};
use crate::cluster::Cluster;

pub(super) async fn definitions(cluster: &Cluster) -> Finding {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let found = match api.list(&ListParams::default()).await {
        Ok(found) => found,
        Err(error) => return unreadable("the custom resource definitions", &error),
    };
    let missing: Vec<&str> = CLUSTER_KINDS
        .iter()
        .filter(|kind| {
            let name = format!("{}.{GROUP}", kind.plural);
            !found.items.iter().any(|crd| {
                let mut versions = crd.spec.versions.iter();
                crd.name_any() == name && versions.any(|v| v.name == VERSION && v.served)
            })
        })
        .map(|kind| kind.kind)
        .collect();
    if missing.is_empty() {
        return Finding::ok(format!("{} kinds are defined", CLUSTER_KINDS.len()));
    }
    Finding::problem(
        format!("the definitions of {} are missing", missing.join(", ")),
        "helm upgrade --install merlon-crds charts/merlon-crds",
    )
}

pub(super) async fn resources(cluster: &Cluster) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut count = 0;
    for kind in CLUSTER_KINDS {
        let resource = ApiResource {
            group: GROUP.to_owned(),
            version: VERSION.to_owned(),
            api_version: format!("{GROUP}/{VERSION}"),
            kind: kind.kind.to_owned(),
            plural: kind.plural.to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let found = match api.list(&ListParams::default()).await {
            Ok(found) => found,
            Err(error) => {
                findings.push(unreadable(kind.plural, &error));
                continue;
            }
        };
        if kind.kind == "MeshConfig" && found.items.is_empty() {
            findings.push(Finding::problem(
                "no MeshConfig",
                "the chart creates it from `mesh.trustDomain`: helm upgrade merlon charts/merlon",
            ));
        }
        count += found.items.len();
        findings.extend(
            found
                .items
                .iter()
                .filter_map(|object| status(kind.kind, object)),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(format!("{count} resources are accepted")));
    }
    findings
}

/// The conditions of a resource that are not healthy.
fn status(kind: &str, object: &DynamicObject) -> Option<Finding> {
    let name = format!(
        "{kind} {}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    );
    let conditions = object.data.pointer("/status/conditions");
    let conditions = conditions.and_then(Value::as_array);
    let Some(conditions) = conditions else {
        return Some(Finding::warning(
            format!("{name} has no status yet"),
            "the leading replica of the control plane writes it within a second or two",
        ));
    };
    let condition = |wanted: &str| {
        let found = conditions
            .iter()
            .find(|one| one.get("type").is_some_and(|t| t == wanted))?;
        let text = |field: &str| found.get(field).and_then(Value::as_str).unwrap_or_default();
        Some((text("status"), text("reason"), text("message")))
    };
    if let Some(("False", _, message)) = condition("CertificatesIssued") {
        return Some(Finding::problem(
            format!("{name}: no certificates are issued: {message}"),
            "check the chart values `certificates` and `vault`; running pods continue until their certificates expire",
        ));
    }
    if let Some(("False", _, message)) = condition("SecretRead") {
        return Some(Finding::problem(
            format!("{name}: the secret cannot be read: {message}"),
            "proxies that have it keep it, programs that wait for it do not start; see docs/secrets.md",
        ));
    }
    match condition("Accepted") {
        Some(("False", "TargetNotFound", message)) => Some(Finding::warning(
            format!("{name}: {message}"),
            "it takes effect as soon as its target exists",
        )),
        Some(("False", _, message)) => Some(Finding::problem(
            format!("{name} is not accepted: {message}"),
            "the last accepted version stays in force until it is fixed",
        )),
        Some((_, "AcceptedWithWarnings", message)) => Some(Finding::warning(
            format!("{name}: {message}"),
            "it is in force",
        )),
        _ => None,
    }
}
