//! What is looked at, one after the other.

use std::time::Duration;

use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
};
use merlon_config::crd::{CLUSTER_KINDS, GROUP, VERSION};
use merlon_inject::{INJECT, INJECTED, PROXY_CONTAINER};
use serde_json::Value;

use super::Finding;
use crate::{
    cluster::{CONTROL_PLANES, Cluster},
    failure::Failure,
};

/// The label by which a namespace asks for a Pod Security Standard.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";
/// For one pod to say whether it is ready.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many objects are named; of more their number is told.
const NAMED: usize = 5;

/// Everything, in the order in which one thing stands upon another.
pub(super) async fn all(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let mut findings = vec![server(cluster).await?];
    let defined = definitions(cluster).await;
    let is_defined = defined.level == super::Level::Ok;
    findings.push(defined);
    findings.extend(control_plane(cluster).await);
    findings.extend(webhooks(cluster).await);
    if is_defined {
        findings.extend(resources(cluster).await);
    }
    findings.extend(namespaces(cluster).await);
    Ok(findings)
}

/// What was not looked at, because the user may not.
fn unseen(what: &str, error: &kube::Error) -> Finding {
    let hint = match error {
        kube::Error::Api(status) if status.code == 403 => {
            "ask for the right to list them, or have somebody run this who has it"
        }
        _ => "try again",
    };
    Finding::warning(format!("{what} could not be looked at: {error}"), hint)
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

async fn definitions(cluster: &Cluster) -> Finding {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let found = match api.list(&ListParams::default()).await {
        Ok(found) => found,
        Err(error) => return unseen("the custom resource definitions", &error),
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
        return Finding::ok(format!("definitions of {} kinds", CLUSTER_KINDS.len()));
    }
    Finding::problem(
        format!("the definitions of {} are missing", missing.join(", ")),
        "helm upgrade --install merlon-crds charts/merlon-crds",
    )
}

async fn control_plane(cluster: &Cluster) -> Vec<Finding> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let deployment = match deployments.get_opt("merlon-control-plane").await {
        Ok(Some(deployment)) => deployment,
        Ok(None) => {
            return vec![Finding::problem(
                format!(
                    "there is no control plane in the namespace `{}`",
                    cluster.namespace
                ),
                format!(
                    "helm install merlon charts/merlon -n {} --create-namespace -f values.yaml; \
                     another namespace is named by `--merlon-namespace`",
                    cluster.namespace
                ),
            )];
        }
        Err(error) => return vec![unseen("the control plane", &error)],
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
                "the control plane has one replica",
                "with two, new pods start while one of them is away: controlPlane.replicas=2",
            ));
        }
    }
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let all = ListParams::default().labels(CONTROL_PLANES);
    match pods.list(&all).await {
        Err(error) => findings.push(unseen("the control plane's pods", &error)),
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
                "what the pods say is above; kubectl logs -n {} deployment/merlon-control-plane",
                cluster.namespace
            ),
        ));
    }
    findings
}

/// What a replica says of itself, or what keeps it from saying anything.
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
                format!("the pod `{name}` does not run: {reason} {message}"),
                match reason {
                    "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" => {
                        "is the image where `images.registry` and `images.tag` say, and do `images.pullSecrets` open it?"
                    }
                    _ => "kubectl describe pod, kubectl logs --previous",
                },
            ));
        }
    }
    if status.phase.as_deref() != Some("Running") || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let path = format!(
        "/api/v1/namespaces/{}/pods/{name}:7567/proxy/ready",
        cluster.namespace
    );
    let request = http::Request::get(path).body(Vec::new()).ok()?;
    // The API server would wait for a pod that is going for longer than anybody waits for us.
    let asked = tokio::time::timeout(PATIENCE, cluster.client.request_text(request));
    let Ok(answer) = asked.await else {
        return Some(Finding::problem(
            format!("the pod `{name}` does not answer"),
            "kubectl describe pod tells whether it is ending, or its node is away",
        ));
    };
    match answer {
        Ok(text) if text.trim() == "ready" => None,
        // Ready, and something is the matter all the same.
        Ok(text) => Some(Finding::warning(
            format!("the pod `{name}` is {}", text.trim()),
            "it goes on with what it knows",
        )),
        Err(kube::Error::Api(answer)) if answer.code == 503 => Some(Finding::problem(
            format!("the pod `{name}` is {}", answer.message.trim()),
            "the values of the chart that name Vault and the trust domain are mended by `helm upgrade`; pods that run go on meanwhile",
        )),
        Err(error) => Some(unseen(
            &format!("whether the pod `{name}` is ready"),
            &error,
        )),
    }
}

/// Whether one control plane is ready, asked at its administration address.
pub(super) async fn ready_at(url: &url::Url) -> Finding {
    let failed = |why: String| {
        Finding::problem(
            format!("the control plane at {url} is not ready: {why}"),
            "kubectl logs deployment/merlon-control-plane in the namespace of Merlon",
        )
    };
    let Ok(page) = url.join("/ready") else {
        return failed("this is no address of a page".to_owned());
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
            "resources are judged at admission",
            validator,
        ),
    ] {
        findings.push(match found {
            Err(error) => unseen(&format!("the webhook `{name}`"), &error),
            Ok(None) => Finding::problem(
                format!("the webhook configuration `{name}` is missing: not all {what}"),
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
                        format!("the webhook configuration `{name}` has no `caBundle`"),
                        "the leading replica of the control plane writes it; its log says why it does not",
                    )
                }
            }
        });
    }
    findings
}

async fn resources(cluster: &Cluster) -> Vec<Finding> {
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
                findings.push(unseen(kind.plural, &error));
                continue;
            }
        };
        if kind.kind == "MeshConfig" && found.items.is_empty() {
            findings.push(Finding::problem(
                "there is no MeshConfig",
                "the chart makes it of `mesh.trustDomain`: helm upgrade merlon charts/merlon",
            ));
        }
        count += found.items.len();
        findings.extend(
            found
                .items
                .iter()
                .filter_map(|object| judged(kind.kind, object)),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(format!("{count} resources are accepted")));
    }
    findings
}

/// What the conditions of a resource tell, if that is not the usual.
fn judged(kind: &str, object: &DynamicObject) -> Option<Finding> {
    let name = format!(
        "{kind} {}/{}",
        object.namespace().unwrap_or_default(),
        object.name_any()
    );
    let conditions = object.data.pointer("/status/conditions");
    let conditions = conditions.and_then(Value::as_array);
    let Some(conditions) = conditions else {
        return Some(Finding::warning(
            format!("{name} was not judged yet"),
            "a replica of the control plane that leads does so within a second or two",
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
            "the chart's values `certificates` and `vault` name the issuer; pods that run go on until their certificates end",
        ));
    }
    match condition("Accepted") {
        Some(("False", "TargetNotFound", message)) => Some(Finding::warning(
            format!("{name}: {message}"),
            "it takes effect as soon as its target comes",
        )),
        Some(("False", _, message)) => Some(Finding::problem(
            format!("{name} is not accepted: {message}"),
            "what was right before stays in force until it is mended",
        )),
        Some((_, "AcceptedWithWarnings", message)) => Some(Finding::warning(
            format!("{name}: {message}"),
            "it is in force",
        )),
        _ => None,
    }
}

async fn namespaces(cluster: &Cluster) -> Vec<Finding> {
    let all: Api<Namespace> = Api::all(cluster.client.clone());
    let asked = ListParams::default().labels(&format!("{INJECT}=enabled"));
    let meshed = match all.list(&asked).await {
        Ok(found) => found,
        Err(error) => return vec![unseen("the namespaces", &error)],
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
                    "the namespace `{name}` enforces the Pod Security Standard `{level}`, which refuses the container `merlon-init`: it needs NET_ADMIN and NET_RAW"
                ),
                format!("kubectl label namespace {name} {POD_SECURITY}=privileged --overwrite, or exempt it in the API server's configuration"),
            ));
        }
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &name);
        match pods.list(&ListParams::default()).await {
            Ok(pods) => findings.push(pods_of(&name, &pods.items, settings.as_deref())),
            Err(error) => findings.push(unseen(&format!("the pods of `{name}`"), &error)),
        }
    }
    findings
}

/// The mark of the settings that a pod is injected by now.
async fn settings(cluster: &Cluster) -> Option<String> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let map = maps.get_opt("merlon-injection").await.ok()??;
    let text = map.data?.remove("injection.yaml")?;
    let settings = merlon_config::injection::InjectionSettings::parse("injection.yaml", &text);
    Some(merlon_inject::mark(&settings.ok()?))
}

fn pods_of(namespace: &str, pods: &[Pod], settings: Option<&str>) -> Finding {
    let lives = |pod: &&Pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let declined = pod
            .labels()
            .get(INJECT)
            .is_some_and(|said| said == "disabled");
        !declined
            && pod.metadata.deletion_timestamp.is_none()
            && !matches!(phase, Some("Succeeded" | "Failed"))
    };
    let living: Vec<&Pod> = pods.iter().filter(lives).collect();
    let has_proxy = |pod: &&&Pod| {
        let spec = pod.spec.as_ref();
        let mut containers = spec
            .into_iter()
            .flat_map(|spec| spec.init_containers.iter().flatten());
        containers.any(|container| container.name == PROXY_CONTAINER)
    };
    let restart =
        format!("kubectl rollout restart deployment,statefulset,daemonset -n {namespace}");
    let without: Vec<String> = living
        .iter()
        .filter(|pod| !has_proxy(pod))
        .map(|pod| pod.name_any())
        .collect();
    if !without.is_empty() {
        return Finding::problem(
            format!(
                "in the namespace `{namespace}` {} not in the mesh: {}",
                plural(without.len()),
                some_of(&without)
            ),
            format!("they were made before the namespace was labelled: {restart}"),
        );
    }
    let older: Vec<String> = living
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
                "in the namespace `{namespace}` {} not of the present settings or version: {}",
                plural(older.len()),
                some_of(&older)
            ),
            restart,
        );
    }
    Finding::ok(format!(
        "in the namespace `{namespace}` {} in the mesh",
        plural(living.len())
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
