//! The checks, in order.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::Api;
use serde_json::Value;

use super::{
    finding::{Finding, Level, unreadable},
    gateways, namespaces, replicas, resources,
};
use crate::{cluster::Cluster, failure::Failure};

/// All checks; each comes after those that it depends on.
pub(super) async fn all(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let mut findings = vec![server(cluster).await?];
    let defined = resources::definitions(cluster).await;
    let is_defined = defined.level == Level::Ok;
    findings.push(defined);
    findings.extend(replicas::control_plane(cluster).await);
    findings.extend(webhooks(cluster).await);
    if is_defined {
        findings.extend(resources::resources(cluster).await);
        findings.extend(gateways::gateways(cluster).await);
    }
    findings.extend(namespaces::namespaces(cluster).await);
    Ok(findings)
}

async fn server(cluster: &Cluster) -> Result<Finding, Failure> {
    let version = cluster.client.apiserver_version().await;
    let version = version.map_err(|error| cluster.failed(&error))?;
    let digits: String = version
        .minor
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let new_enough = version.major != "1" || digits.parse::<u32>().is_ok_and(|minor| minor >= 33);
    Ok(if new_enough {
        Finding::ok(format!(
            "Kubernetes {} at {}",
            version.git_version, cluster.server
        ))
    } else {
        Finding::problem(
            format!("Kubernetes {} is too old", version.git_version),
            "native sidecars need 1.33 or later",
        )
    })
}

async fn webhooks(cluster: &Cluster) -> Vec<Finding> {
    let injector: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let validator: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let mut findings = Vec::new();
    let injector = injector
        .get_opt("merlon-injector")
        .await
        .map(|found| found.map(|found| serde_json::to_value(found).unwrap_or_default()));
    let validator = validator
        .get_opt("merlon-validator")
        .await
        .map(|found| found.map(|found| serde_json::to_value(found).unwrap_or_default()));
    for (name, what, found) in [
        ("merlon-injector", "pods get their sidecars", injector),
        (
            "merlon-validator",
            "resources are validated at admission",
            validator,
        ),
    ] {
        findings.push(match found {
            Err(error) => unreadable(&format!("webhook `{name}`"), &error),
            Ok(None) => Finding::problem(
                format!("webhook configuration `{name}` is missing: not all {what}"),
                "helm upgrade merlon charts/merlon",
            ),
            Ok(Some(found)) => {
                let hooks = found.get("webhooks").and_then(Value::as_array);
                let trusted = hooks.into_iter().flatten().all(|hook| {
                    let bundle = hook.pointer("/clientConfig/caBundle");
                    bundle.and_then(Value::as_str).is_some_and(|text| !text.is_empty())
                });
                if trusted {
                    Finding::ok(format!("{what} (`{name}`)"))
                } else {
                    Finding::problem(
                        format!("webhook configuration `{name}` has no `caBundle`"),
                        "the leading replica of the control plane writes it; its log shows why it does not",
                    )
                }
            }
        });
    }
    findings
}
