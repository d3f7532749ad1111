//! The replicas of the control plane and their readiness.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, ResourceExt as _, api::ListParams};
use tokio::time::error::Elapsed;

use super::finding::{Finding, unreadable};
use crate::cluster::{CONTROL_PLANES, Cluster};

/// Time-out for the readiness of one pod.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn control_plane(cluster: &Cluster) -> Vec<Finding> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let deployment = match deployments.get_opt("merlon-control-plane").await {
        Ok(Some(deployment)) => deployment,
        Ok(None) => {
            return vec![Finding::problem(
                format!("no control plane in namespace `{}`", cluster.namespace),
                format!(
                    "helm install merlon charts/merlon -n {} --create-namespace -f values.yaml; \
                     `--merlon-namespace` selects another namespace",
                    cluster.namespace
                ),
            )];
        }
        Err(error) => return vec![unreadable("the control plane", &error)],
    };
    let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = deployment.status.and_then(|status| status.ready_replicas);
    let ready = ready.unwrap_or_default();
    let mut findings = Vec::new();
    if ready >= wanted && wanted > 0 {
        findings.push(Finding::ok(format!(
            "{ready} of {wanted} replicas of the control plane are ready"
        )));
        if wanted == 1 {
            findings.push(Finding::warning(
                "the control plane has only one replica",
                "with two replicas, new pods can start while one is down: controlPlane.replicas=2",
            ));
        }
    }
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let all = ListParams::default().labels(CONTROL_PLANES);
    match pods.list(&all).await {
        Err(error) => findings.push(unreadable("the control plane's pods", &error)),
        Ok(pods) => {
            for pod in &pods.items {
                findings.extend(replica(cluster, pod).await);
            }
        }
    }
    if ready < wanted || wanted == 0 {
        findings.push(Finding::problem(
            format!("{ready} of {wanted} replicas of the control plane are ready"),
            format!(
                "see the pods above; kubectl logs -n {} deployment/merlon-control-plane",
                cluster.namespace
            ),
        ));
    }
    findings
}

/// What is wrong with a replica, if anything: why it does not run, or why it is not ready.
async fn replica(cluster: &Cluster, pod: &Pod) -> Option<Finding> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    for container in containers {
        let waiting = container
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref());
        if let Some(waiting) = waiting {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let message = waiting.message.as_deref().unwrap_or_default();
            return Some(Finding::problem(
                format!("pod `{name}` does not run: {reason} {message}"),
                match reason {
                    "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" => {
                        "check that `images.registry` and `images.tag` name an existing image and that `images.pullSecrets` can pull it"
                    }
                    _ => "kubectl describe pod, kubectl logs --previous",
                },
            ));
        }
    }
    if status.phase.as_deref() != Some("Running") || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let asked = page(cluster, &name, "ready").await;
    let Ok(answer) = asked else {
        return Some(Finding::problem(
            format!("pod `{name}` does not answer"),
            "kubectl describe pod shows whether it is terminating or its node is down",
        ));
    };
    match answer {
        Ok(text) if text.trim() == "ready" => addresses(cluster, &name).await,
        // Ready, with a warning.
        Ok(text) => Some(Finding::warning(
            format!("pod `{name}` is {}", text.trim()),
            "it continues with its last known state",
        )),
        Err(kube::Error::Api(answer)) if answer.code == 503 => Some(Finding::problem(
            format!("pod `{name}` is {}", answer.message.trim()),
            "fix the chart values for Vault and the trust domain with `helm upgrade`; running pods are not affected",
        )),
        Err(error) => Some(unreadable(
            &format!("the readiness of pod `{name}`"),
            &error,
        )),
    }
}

/// A page of a replica's administration port. The API server waits longer for a terminating pod than a user would.
async fn page(
    cluster: &Cluster,
    name: &str,
    page: &str,
) -> Result<Result<String, kube::Error>, Elapsed> {
    let path = format!(
        "/api/v1/namespaces/{}/pods/{name}:7567/proxy/{page}",
        cluster.namespace
    );
    let request = http::Request::get(path).body(Vec::new());
    let asked = async {
        cluster
            .client
            .request_text(request.map_err(kube::Error::HttpError)?)
            .await
    };
    tokio::time::timeout(READY_TIMEOUT, asked).await
}

/// Whether a replica was asked for certificates with the token of a pod from another address than the pod's.
async fn addresses(cluster: &Cluster, name: &str) -> Option<Finding> {
    let page = page(cluster, name, "metrics").await;
    addresses_in(name, &page.ok()?.ok()?)
}

/// [`addresses`], from the page of metrics.
fn addresses_in(name: &str, page: &str) -> Option<Finding> {
    let count = |series: &str| {
        let mut lines = page.lines().filter_map(|line| line.strip_prefix(series));
        let value = lines.next()?.trim().parse::<u64>().ok()?;
        (value > 0).then_some(value)
    };
    let hint = "if the pods' network translates their addresses, set `controlPlane.podAddressCheck: warn`; if not, the token of a pod may be stolen: the log of this pod has pod and address";
    if let Some(times) = count("merlon_certificates_refused_total{reason=\"token_address\"}") {
        return Some(Finding::warning(
            format!(
                "pod `{name}` rejected {times} requests for a certificate, because the token of a pod came from another address"
            ),
            hint,
        ));
    }
    let times = count("merlon_pod_addresses_differed_total")?;
    Some(Finding::warning(
        format!(
            "pod `{name}` issued {times} certificates for the token of a pod that came from another address"
        ),
        hint,
    ))
}

/// Whether the control plane with this administration address is ready.
pub(super) async fn ready_at(url: &url::Url) -> Finding {
    let failed = |why: String| {
        Finding::problem(
            format!("the control plane at {url} is not ready: {why}"),
            "see kubectl logs deployment/merlon-control-plane in the namespace of Merlon",
        )
    };
    let Ok(page) = url.join("/ready") else {
        return failed("the URL is invalid".to_owned());
    };
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .no_proxy()
        .tls_certs_only(Vec::new())
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return failed(error.to_string()),
    };
    match client.get(page).send().await {
        Ok(reply) if reply.status().is_success() => {
            Finding::ok(format!("the control plane at {url} is ready"))
        }
        Ok(reply) => failed(reply.text().await.unwrap_or_default().trim().to_owned()),
        Err(error) => failed(format!("{error:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_from_other_addresses_are_reported_with_what_to_do() {
        let page = "# TYPE merlon_pod_addresses_differed counter\n\
                    merlon_pod_addresses_differed_total 0\n\
                    merlon_certificates_refused_total{reason=\"token_address\"} 0\n";
        assert!(addresses_in("one", page).is_none());
        for (series, text) in [
            (
                "merlon_certificates_refused_total{reason=\"token_address\"}",
                "pod `one` rejected 3 requests for a certificate",
            ),
            (
                "merlon_pod_addresses_differed_total",
                "pod `one` issued 3 certificates",
            ),
        ] {
            let page = page.replace(&format!("{series} 0"), &format!("{series} 3"));
            let finding = addresses_in("one", &page).unwrap();
            let text_of = super::super::finding::text(&finding);
            assert!(text_of.contains(text), "{text_of}");
            assert!(
                text_of.contains("controlPlane.podAddressCheck: warn"),
                "{text_of}"
            );
        }
    }
}
