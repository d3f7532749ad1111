//! The namespaces of the mesh, and whether their pods have a current sidecar.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::{Api, ResourceExt as _, api::ListParams};
use merlon_inject::{INJECT, INJECTED, PROXY_CONTAINER};

use super::finding::{Finding, unreadable};
use crate::cluster::Cluster;

/// The label that enforces a Pod Security Standard in a namespace.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
/// Maximum number of objects that are named; the rest is only counted.
const NAMED: usize = 5;

pub(super) async fn namespaces(cluster: &Cluster) -> Vec<Finding> {
    let all: Api<Namespace> = Api::all(cluster.client.clone());
    let asked = ListParams::default().labels(&format!("{INJECT}=enabled"));
    let meshed = match all.list(&asked).await {
        Ok(found) => found,
        Err(error) => return vec![unreadable("the namespaces", &error)],
    };
    let settings = settings(cluster).await;
    let mut findings = Vec::new();
    if meshed.items.is_empty() {
        findings.push(Finding::warning(
            "no namespace is in the mesh",
            format!("kubectl label namespace shop {INJECT}=enabled"),
        ));
    }
    for namespace in &meshed.items {
        let name = namespace.name_any();
        if let Some(level) = namespace.labels().get(POD_SECURITY)
            && level != "privileged"
        {
            findings.push(Finding::problem(
                format!(
                    "namespace `{name}` enforces the Pod Security Standard `{level}`, which rejects the container `merlon-init`: it needs NET_ADMIN and NET_RAW"
                ),
                format!("kubectl label namespace {name} {POD_SECURITY}=privileged --overwrite, or exempt it in the API server's configuration"),
            ));
        }
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &name);
        match pods.list(&ListParams::default()).await {
            Ok(pods) => findings.push(pods_of(&name, &pods.items, settings.as_deref())),
            Err(error) => findings.push(unreadable(&format!("the pods of `{name}`"), &error)),
        }
    }
    findings
}

/// The mark of the current injection settings.
async fn settings(cluster: &Cluster) -> Option<String> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let map = maps.get_opt("merlon-injection").await.ok()??;
    let text = map.data?.remove("injection.yaml")?;
    let settings = merlon_config::injection::InjectionSettings::parse("injection.yaml", &text);
    Some(merlon_inject::settings_hash(&settings.ok()?))
}

fn pods_of(namespace: &str, pods: &[Pod], settings: Option<&str>) -> Finding {
    let is_running = |pod: &&Pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let declined = pod
            .labels()
            .get(INJECT)
            .is_some_and(|value| value == "disabled");
        !declined
            && pod.metadata.deletion_timestamp.is_none()
            && !matches!(phase, Some("Succeeded" | "Failed"))
    };
    let running: Vec<&Pod> = pods.iter().filter(is_running).collect();
    let has_proxy = |pod: &&&Pod| {
        let spec = pod.spec.as_ref();
        let mut containers = spec
            .into_iter()
            .flat_map(|spec| spec.init_containers.iter().flatten());
        containers.any(|container| container.name == PROXY_CONTAINER)
    };
    let restart =
        format!("kubectl rollout restart deployment,statefulset,daemonset -n {namespace}");
    let without: Vec<String> = running
        .iter()
        .filter(|pod| !has_proxy(pod))
        .map(|pod| pod.name_any())
        .collect();
    if !without.is_empty() {
        return Finding::problem(
            format!(
                "namespace `{namespace}`: {} not in the mesh: {}",
                plural(without.len()),
                some_of(&without)
            ),
            format!("they were created before the namespace was labelled: {restart}"),
        );
    }
    let older: Vec<String> = running
        .iter()
        .filter(|pod| {
            let by = pod.annotations().get(INJECTED);
            settings.is_some_and(|now| by.is_some_and(|by| by != now))
        })
        .map(|pod| pod.name_any())
        .collect();
    if !older.is_empty() {
        return Finding::warning(
            format!(
                "namespace `{namespace}`: {} not injected with the current settings and version: {}",
                plural(older.len()),
                some_of(&older)
            ),
            restart,
        );
    }
    Finding::ok(format!(
        "namespace `{namespace}`: {} in the mesh",
        plural(running.len())
    ))
}

fn plural(count: usize) -> String {
    match count {
        1 => "1 pod is".to_owned(),
        more => format!("{more} pods are"),
    }
}

fn some_of(names: &[String]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(NAMED)
        .map(|name| format!("`{name}`"))
        .collect();
    let rest = names.len().saturating_sub(NAMED);
    match rest {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, by: Option<&str>, more: Value) -> Pod {
        let mut pod = json!({
            "metadata": { "name": name, "annotations": {} },
            "spec": { "containers": [], "initContainers": [] },
            "status": { "phase": "Running" },
        });
        if let Some(by) = by {
            pod["metadata"]["annotations"] = json!({ INJECTED: by });
            pod["spec"]["initContainers"] = json!([{ "name": PROXY_CONTAINER }]);
        }
        if let Value::Object(more) = more {
            for (pointer, value) in more {
                *pod.pointer_mut(&pointer).unwrap() = value;
            }
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn pods_without_a_sidecar_are_reported_before_those_with_an_outdated_one() {
        let now = pod("now", Some("new"), Value::Null);
        let older = pod("older", Some("old"), Value::Null);
        let late = pod("late", None, Value::Null);
        let ended = pod("ended", None, json!({ "/status/phase": "Succeeded" }));
        let text = |pods: &[&Pod]| {
            let pods: Vec<Pod> = pods.iter().copied().cloned().collect();
            super::super::finding::text(&pods_of("shop", &pods, Some("new")))
        };
        insta::assert_snapshot!(
            [
                text(&[&now, &ended]),
                text(&[&now, &older]),
                text(&[&now, &older, &late]),
            ]
            .join("\n")
        );
    }

    #[test]
    fn five_pods_are_named_and_the_rest_is_counted() {
        let names: Vec<String> = (0..7).map(|number| format!("web-{number}")).collect();
        assert_eq!(
            some_of(&names),
            "`web-0`, `web-1`, `web-2`, `web-3`, `web-4` and 2 more"
        );
    }
}
