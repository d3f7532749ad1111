//! The charts, checked with Helm and a real Kubernetes API.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use http::Method;
use merlon_config::{injection::InjectionSettings, resource::MeshConfigSpec};
use merlon_tests::{
    ApiServer, folder,
    process::{Output, Plan},
    tools,
};
use serde_json::{Value, json};

/// The smallest set of values.
const EMBEDDED: &str = "
mesh: { trustDomain: prod.example.org }
certificates: { issuer: embedded }
";

const VAULT: &str = "
mesh: { trustDomain: prod.example.org }
certificates: { issuer: vault }
vault:
  address: https://vault.example.org:8200
  caBundle: |
    -----BEGIN CERTIFICATE-----
    MIIB
    -----END CERTIFICATE-----
";

/// Added to one of those: everything that is off or empty by default.
const EVERYTHING: &str = r#"
mesh: { outbound: deny, permissiveNamespaces: [legacy] }
images:
  registry: registry.example.org/merlon/
  tag: "1.0"
  digests: { merlon-proxy: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" }
  pullPolicy: Always
  pullSecrets: [{ name: registry }]
controlPlane:
  replicas: 3
  logFilter: "info,merlon_control_plane=debug"
  podLabels: { team: platform }
  podAnnotations: { example.org/owner: platform }
  nodeSelector: { kubernetes.io/os: linux }
  tolerations: [{ key: infra, operator: Exists, effect: NoSchedule }]
  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms: [{ matchExpressions: [{ key: infra, operator: Exists }] }]
  priorityClassName: system-cluster-critical
  podDisruptionBudget: { minAvailable: 2 }
gateway:
  enabled: true
  replicas: 3
  listeners:
    - { name: http, port: 80, protocol: HTTP }
    - { name: shop, port: 443, protocol: HTTPS, hostname: shop.example.org, tls: { certificateRefs: [{ name: shop }] } }
    - { name: bank, port: 443, protocol: HTTPS, hostname: bank.example.org, tls: { certificateRefs: [{ name: bank }] } }
  service: { annotations: { example.org/balancer: internal }, loadBalancerClass: example.org/one, externalTrafficPolicy: Local }
  accessLog: refusals
  pauseBeforeEnd: 10
  podLabels: { team: edge }
  podDisruptionBudget: { minAvailable: 2 }
serviceAccount: { annotations: { example.org/role: mesh } }
injection:
  failurePolicy: Ignore
  proxy: { accessLog: "off", drainTimeout: 1m, logFilter: "info,merlon_proxy=debug" }
  excludeOutboundIPRanges: [169.254.169.254/32, "fd00:ec2::254/128"]
validation: { failurePolicy: Ignore }
networkPolicy:
  enabled: true
  metricsFrom: [{ namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: monitoring } } }]
monitoring:
  serviceMonitor: { enabled: true, labels: { release: prometheus } }
  podMonitor: { enabled: true }
"#;

fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts")
}

async fn helm(arguments: &[&str], values: &[&str]) -> Output {
    let work = folder::fresh();
    let mut plan = Plan::new("helm", tools::installed("helm"), work.path())
        .current_dir(&charts())
        .env("HELM_CACHE_HOME", work.path().join("cache"))
        .env("HELM_CONFIG_HOME", work.path().join("config"))
        .env("HELM_DATA_HOME", work.path().join("data"))
        .env("KUBECONFIG", work.path().join("none"))
        .args(arguments);
    for (number, text) in values.iter().enumerate() {
        let file = work.path().join(format!("{number}.yaml"));
        fs::write(&file, text).expect("a file");
        plan = plan.arg("--values").arg(file);
    }
    plan.run().await
}

async fn template(values: &[&str]) -> Output {
    let install = ["template", "merlon", "merlon", "-n", "merlon-system"];
    helm(&install, values).await
}

async fn rendered(values: &[&str]) -> String {
    let ended = template(values).await;
    assert_eq!(ended.code(), 0, "{}", ended.err);
    ended.out
}

fn parsed(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Each document with its text.
fn documents(text: &str) -> Vec<(Value, String)> {
    let parts = text
        .split("\n---\n")
        .map(|part| part.trim_start_matches("---\n"));
    let all = parts.map(|part| (parsed(part), part.trim().to_owned()));
    all.filter(|(value, _)| value.is_object()).collect()
}

fn find(text: &str, kind: &str, name: &str) -> Value {
    let mut all = documents(text).into_iter();
    let found = all.find(|(value, _)| value["kind"] == kind && value["metadata"]["name"] == name);
    found
        .unwrap_or_else(|| panic!("no {kind} `{name}` in\n{text}"))
        .0
}

fn settings(text: &str) -> InjectionSettings {
    let map = find(text, "ConfigMap", "merlon-injection");
    let file = map["data"]["injection.yaml"].as_str().expect("an entry");
    InjectionSettings::parse("injection.yaml", file).unwrap_or_else(|report| panic!("{report}"))
}

#[tokio::test]
async fn helm_lint_finds_no_problem() {
    for (chart, values) in [
        ("merlon-crds", &[][..]),
        ("merlon", &[EMBEDDED]),
        ("merlon", &[VAULT, EVERYTHING]),
    ] {
        let ended = helm(&["lint", "--strict", chart], values).await;
        assert_eq!(ended.code(), 0, "{}{}", ended.out, ended.err);
    }
}

#[tokio::test]
async fn the_control_plane_and_the_injector_can_read_every_configuration_that_is_rendered() {
    for values in [
        &[EMBEDDED][..],
        &[VAULT],
        &[EMBEDDED, EVERYTHING],
        &[VAULT, EVERYTHING],
    ] {
        let text = rendered(values).await;
        assert_eq!(text, rendered(values).await, "the second rendering differs");
        settings(&text);
        let mesh = find(&text, "MeshConfig", "mesh");
        let spec: MeshConfigSpec =
            serde_json::from_value(mesh["spec"].clone()).expect("a MeshConfig");
        assert_eq!(spec.root_namespace.as_str(), "merlon-system");
        assert_eq!(spec.trust_domain.as_str(), "prod.example.org");
    }
}

#[tokio::test]
async fn everything_switched_on_looks_like_this() {
    let text = rendered(&[VAULT, EVERYTHING]).await;
    let rights = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    let shown: Vec<_> = documents(&text)
        .into_iter()
        .filter(|(value, _)| !rights.iter().any(|kind| value["kind"] == *kind))
        .map(|(_, text)| text)
        .collect();
    insta::assert_snapshot!(shown.join("\n---\n"));
}

#[tokio::test]
async fn pods_and_policies_that_no_replica_reviews_are_refused_unless_a_value_says_otherwise() {
    let policy_of = |text: &str, kind: &str, name: &str, webhook: &str| {
        let configuration = find(text, kind, name);
        let webhooks = configuration["webhooks"].as_array().expect("webhooks");
        let mut found = webhooks.iter().filter(|it| it["name"] == webhook);
        let found = found.next().unwrap_or_else(|| panic!("no `{webhook}`"));
        found["failurePolicy"].clone()
    };
    for (value, pods, policies) in [
        ("{}", "Fail", "Fail"),
        ("injection: { failurePolicy: Ignore }", "Ignore", "Fail"),
        ("validation: { failurePolicy: Ignore }", "Fail", "Ignore"),
    ] {
        let text = rendered(&[EMBEDDED, value]).await;
        let injector = ("MutatingWebhookConfiguration", "merlon-injector");
        let validator = ("ValidatingWebhookConfiguration", "merlon-validator");
        let injection = policy_of(&text, injector.0, injector.1, "inject.merlon.io");
        let validation = policy_of(&text, validator.0, validator.1, "policies.merlon.io");
        assert_eq!(injection, pods, "{value}");
        assert_eq!(validation, policies, "{value}");
    }
}

#[tokio::test]
async fn only_values_that_are_read_at_startup_restart_the_control_plane() {
    let pods = async |values: &[&str]| {
        let text = rendered(values).await;
        find(&text, "Deployment", "merlon-control-plane")["spec"]["template"].clone()
    };
    let before = pods(&[VAULT]).await;
    for live in [
        "injection: { proxy: { drainTimeout: 1m } }",
        "mesh: { outbound: deny }",
        "certificates: { lifetime: 1h }",
        "vault: { role: another }",
    ] {
        assert_eq!(pods(&[VAULT, live]).await, before, "{live}");
    }
    let public = template(&[VAULT, "vault: { caBundle: '' }"]).await;
    assert_eq!(public.code(), 0, "{public:?}");
    assert!(!public.out.contains("caFile"), "{public:?}");
    assert!(!public.out.contains("merlon-vault"), "{public:?}");
    let other_roots = "vault: { caBundle: another }";
    assert_ne!(pods(&[VAULT, other_roots]).await, before);
}

#[tokio::test]
async fn wrong_values_are_refused_with_an_error_that_shows_the_right_form() {
    let mut reported = Vec::new();
    for (given, wrong) in [
        ("", ""),
        ("", "mesh: { trustDomain: prod.example.org }"),
        (
            "",
            "mesh: { trustDomain: prod.example.org }\ncertificates: { issuer: vault }",
        ),
        (VAULT, "vault: { address: 'http://vault.example.org:8200' }"),
        (EMBEDDED, "certificates: { issuer: acme }"),
        (EMBEDDED, "mesh: { trustDomain: 'spiffe://prod' }"),
        (EMBEDDED, "mesh: { trustDomains: prod.example.org }"),
        (EMBEDDED, "image: { tag: v1 }"),
        (EMBEDDED, "images: { digests: { merlon-proxy: latest } }"),
        (EMBEDDED, "controlPlane: { replicas: 0 }"),
        (
            EMBEDDED,
            "controlPlane: { replicas: 2, podDisruptionBudget: { minAvailable: 2 } }",
        ),
        (
            EMBEDDED,
            "controlPlane: { resources: { request: { cpu: 1 } } }",
        ),
        (EMBEDDED, "injection: { proxy: { accessLog: off } }"),
        (EMBEDDED, "injection: { proxy: { drainTimeout: 30 } }"),
        (
            EMBEDDED,
            "injection: { excludeOutboundIPRanges: [10.0.0.1] }",
        ),
        (EMBEDDED, "injection: { failurePolicy: Open }"),
    ] {
        let ended = template(&[given, wrong]).await;
        assert_ne!(ended.code(), 0, "accepted: {wrong}\n{}", ended.out);
        let about = ended
            .err
            .replace("\n\nUse --debug flag to render out invalid YAML", "");
        reported.push(format!("{wrong}\n\n{}", about.trim()));
    }
    insta::assert_snapshot!(reported.join("\n\n==========\n\n"));
}

/// A value of the chart: its path, default and description.
struct ChartValue {
    path: String,
    default: String,
    description: String,
}

/// Collects the values that the schema and `values.yaml` both list.
fn collect_values(
    schema: &Value,
    root: &Value,
    values: &Value,
    path: &str,
    found: &mut Vec<ChartValue>,
) {
    let target = schema["$ref"].as_str().map(|name| {
        let name = name.trim_start_matches('#');
        root.pointer(name).expect("a definition")
    });
    let described = target.unwrap_or(schema);
    let listed = described["properties"].as_object();
    let is_resources = path.ends_with(".resources");
    if let (Some(listed), false) = (listed, is_resources) {
        assert_eq!(described["additionalProperties"], false, "{path}");
        let given = values
            .as_object()
            .unwrap_or_else(|| panic!("{path} is not an object"));
        let names = |keys: Vec<&String>| -> BTreeSet<String> {
            keys.into_iter()
                .filter(|name| *name != "global")
                .cloned()
                .collect()
        };
        assert_eq!(
            names(listed.keys().collect()),
            names(given.keys().collect()),
            "schema and values differ below `{path}`"
        );
        for (name, value) in given {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            collect_values(&listed[name], root, value, &path, found);
        }
        return;
    }
    let description = schema["description"].as_str().unwrap_or_default();
    assert!(!description.is_empty(), "`{path}` is not described");
    found.push(ChartValue {
        path: path.to_owned(),
        default: values.to_string(),
        description: description.to_owned(),
    });
}

#[tokio::test]
async fn every_value_has_a_default_a_description_and_a_line_in_the_readme() {
    let chart = charts().join("merlon");
    let read = |name: &str| fs::read_to_string(chart.join(name)).expect("a file of the chart");
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let mut found = Vec::new();
    collect_values(
        &schema,
        &schema,
        &parsed(&read("values.yaml")),
        "",
        &mut found,
    );
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let mut table = "| value | default | |\n|---|---|---|\n".to_owned();
    for value in found {
        table += &format!(
            "| `{}` | `{}` | {} |\n",
            value.path, value.default, value.description
        );
    }

    const BEGIN: &str = "<!-- values -->\n";
    const END: &str = "<!-- end of values -->\n";
    let readme = read("README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("a mark");
    let (written, after) = rest.split_once(END).expect("a mark");
    if std::env::var_os("MERLON_BLESS").is_some() {
        let whole = format!("{before}{BEGIN}{table}{END}{after}");
        fs::write(chart.join("README.md"), whole).expect("a file");
        return;
    }
    assert_eq!(
        written, table,
        "charts/merlon/README.md differs from values and schema; run with MERLON_BLESS=1 to update it"
    );
}

#[tokio::test]
async fn the_list_of_images_names_every_image_that_runs() {
    let chart = fs::read_to_string(charts().join("merlon/Chart.yaml")).expect("a file");
    let chart = parsed(&chart);
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let list = chart["annotations"]["artifacthub.io/images"].as_str();
    let list = parsed(list.expect("a list"));
    let listed: BTreeSet<_> = list
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| entry["image"].as_str().expect("an image").to_owned())
        .collect();

    let text = rendered(&[EMBEDDED]).await;
    let settings = settings(&text);
    let mut running = BTreeSet::from([settings.proxy_image, settings.intercept_image]);
    for (document, _) in documents(&text) {
        for containers in [
            "/spec/template/spec/containers",
            "/spec/containers",
            "/spec/initContainers",
        ] {
            let containers = document.pointer(containers).and_then(Value::as_array);
            let images = containers.into_iter().flatten().map(|one| &one["image"]);
            running.extend(images.map(|image| image.as_str().expect("an image").to_owned()));
        }
    }
    assert_eq!(listed, running);
}

#[tokio::test]
async fn a_cluster_accepts_the_charts_also_with_restricted_pod_security() {
    let api = ApiServer::without_crds().await;
    let definitions = helm(&["template", "merlon-crds", "merlon-crds"], &[]).await;
    api.dry_run(&definitions.out)
        .await
        .expect("the definitions");
    api.install_crds().await;
    api.install_gateway_crds().await;

    // The service account of pods that name none: no controller creates it here.
    api.account("merlon-system", "default").await;
    let labels = json!({ "metadata": { "labels": {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/warn": "restricted",
    } } });
    api.call(
        Method::PATCH,
        "/api/v1/namespaces/merlon-system",
        Some(&labels),
    )
    .await;
    for values in [
        &[EMBEDDED][..],
        &[VAULT],
        &[EMBEDDED, EVERYTHING],
        &[VAULT, EVERYTHING],
    ] {
        let text = rendered(values).await;
        // The kinds of the Prometheus operator are not defined here.
        let ours: Vec<_> = documents(&text)
            .into_iter()
            .filter(|(value, _)| value["apiVersion"] != "monitoring.coreos.com/v1")
            .map(|(_, text)| text)
            .collect();
        let result = api.dry_run(&ours.join("\n---\n")).await;
        result.unwrap_or_else(|error| panic!("{values:?}\n{error}"));
    }

    // The same check finds mistakes.
    let text = rendered(&[EMBEDDED]).await;
    for (right, wrong, expected) in [
        ("runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
        ("policyTypes", "policyType", "policyType"),
    ] {
        let text = match right {
            "policyTypes" => rendered(&[EMBEDDED, EVERYTHING]).await,
            _ => text.clone(),
        };
        let result = api.dry_run(&text.replace(right, wrong)).await;
        let error = result.expect_err("the chart is wrong");
        assert!(error.contains(expected), "{error}");
    }
}
