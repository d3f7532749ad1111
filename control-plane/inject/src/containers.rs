//! The sidecar's two containers and their volumes.

use merlon_config::{injection::InjectionSettings, probe::Probes};
use serde_json::{Map, Value, json};

use crate::{
    annotations::PodOptions,
    error::InjectError,
    names::{AUDIENCE, INTERCEPT_CONTAINER, PROXY_CONTAINER, TRUST_BUNDLE},
};

/// The user that the proxy runs as. The interception rules do not redirect its connections.
pub(crate) const PROXY_USER: u64 = 7565;

/// The containers and volumes that are added to a pod.
#[derive(Debug)]
pub(crate) struct Sidecar {
    pub(crate) containers: Vec<Value>,
    pub(crate) volumes: Vec<Value>,
}

const TOKEN: &str = "merlon-token";
const TRUST: &str = "merlon-trust";
const STATE: &str = "merlon-state";
const NOTHING: &str = "merlon-nothing";
const SECRETS: &str = "merlon-secrets";

/// Where programs find their granted secrets.
const SECRETS_FOLDER: &str = "/var/run/secrets/merlon.io";

impl Sidecar {
    /// Names of the volumes.
    pub(crate) const VOLUMES: [&'static str; 5] = [TOKEN, TRUST, STATE, NOTHING, SECRETS];
}

/// The interception container comes first and the proxy second. A container of the pod between them would have no
/// network.
pub(crate) fn sidecar_containers(
    namespace: &str,
    account: &str,
    probes: &Probes,
    options: &PodOptions,
    settings: &InjectionSettings,
) -> Result<Sidecar, InjectError> {
    let shape = |what: &str| InjectError::Shape(what.to_owned());
    let control_plane = settings.control_plane.as_ref();
    let control_plane = control_plane.ok_or_else(|| shape("controlPlane of the settings"))?;
    let root_namespace = settings.root_namespace.as_ref();
    let mut proxy_env = vec![
        variable("MERLON_IDENTITY", &format!("{namespace}/{account}")),
        json!({
            "name": "MERLON_WORKLOAD",
            "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } },
        }),
        // A URL without a path is printed with a slash.
        variable(
            "MERLON_CONTROL_PLANE",
            control_plane.as_str().trim_end_matches('/'),
        ),
        variable(
            "MERLON_ROOT_NAMESPACE",
            root_namespace.map_or("merlon-system", |name| name.as_str()),
        ),
        variable("MERLON_INTERCEPTION", "true"),
        variable("MERLON_ADMIN", "0.0.0.0:7562"),
        variable("MERLON_TOKEN_FILE", "/var/run/secrets/merlon/token"),
        variable("MERLON_TRUST_BUNDLE", "/etc/merlon/trust/bundle.pem"),
        // A directory inside the volume, because the volume's root belongs to the node.
        variable("MERLON_STATE_DIR", "/var/lib/merlon/state"),
    ];
    if !probes.is_empty() {
        let text = serde_json::to_string(probes).map_err(|error| shape(&error.to_string()))?;
        proxy_env.push(variable("MERLON_PROBES_ADDRESS", "0.0.0.0:7563"));
        // Escaped, because the kubelet expands `$(NAME)`.
        proxy_env.push(variable("MERLON_PROBES", &text.replace('$', "$$")));
    }
    if options.secrets {
        proxy_env.push(variable("MERLON_SECRETS_DIR", SECRETS_FOLDER));
    }
    if let Some(mode) = settings.access_log {
        proxy_env.push(json!({ "name": "MERLON_ACCESS_LOG", "value": mode }));
    }
    if let Some(span) = settings.drain_timeout {
        proxy_env.push(variable("MERLON_DRAIN_TIMEOUT", &span.to_string()));
    }
    if let Some(filter) = &settings.log_filter {
        proxy_env.push(variable("RUST_LOG", filter));
    }
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": { "path": path, "port": 7562 },
            "periodSeconds": period,
            "failureThreshold": failures,
            "timeoutSeconds": 2,
        })
    };
    let mut proxy = json!({
        "name": PROXY_CONTAINER,
        "image": settings.proxy_image,
        // Makes it a native sidecar: it starts before the programs, ends after them, and lets a Job complete.
        "restartPolicy": "Always",
        "env": proxy_env,
        "ports": [{ "name": "merlon-admin", "containerPort": 7562 }],
        "startupProbe": probe("/ready", 1, 120),
        "readinessProbe": probe("/ready", 5, 3),
        "livenessProbe": probe("/live", 10, 3),
        "securityContext": {
            "runAsUser": PROXY_USER,
            "runAsGroup": PROXY_USER,
            "runAsNonRoot": true,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": TOKEN, "mountPath": "/var/run/secrets/merlon", "readOnly": true },
            { "name": TRUST, "mountPath": "/etc/merlon/trust", "readOnly": true },
            { "name": STATE, "mountPath": "/var/lib/merlon" },
            no_api_token(),
        ],
    });
    let mut intercept = json!({
        "name": INTERCEPT_CONTAINER,
        "image": settings.intercept_image,
        "args": ["apply"],
        "env": intercept_env(options, settings),
        "volumeMounts": [no_api_token()],
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
    });
    if options.secrets
        && let Some(mounts) = proxy.get_mut("volumeMounts").and_then(Value::as_array_mut)
    {
        mounts.push(json!({ "name": SECRETS, "mountPath": SECRETS_FOLDER }));
    }
    for (container, resources) in [
        (&mut proxy, &settings.proxy_resources),
        (&mut intercept, &settings.intercept_resources),
    ] {
        let Value::Object(container) = container else {
            continue;
        };
        if !resources.is_empty() {
            let resources = Value::Object(resources.clone());
            container.insert("resources".to_owned(), resources);
        }
        if let Some(policy) = settings.image_pull_policy {
            container.insert("imagePullPolicy".to_owned(), json!(policy));
        }
    }
    let mut volumes = vec![
        json!({
            "name": TOKEN,
            "projected": { "sources": [{ "serviceAccountToken": {
                "audience": AUDIENCE, "expirationSeconds": 3600, "path": "token",
            } }] },
        }),
        json!({ "name": TRUST, "configMap": { "name": TRUST_BUNDLE } }),
        json!({ "name": STATE, "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } }),
        json!({ "name": NOTHING, "emptyDir": { "sizeLimit": "1Mi" } }),
    ];
    if options.secrets {
        let memory = json!({ "medium": "Memory", "sizeLimit": "8Mi" });
        volumes.push(json!({ "name": SECRETS, "emptyDir": memory }));
    }
    Ok(Sidecar {
        containers: vec![intercept, proxy],
        volumes,
    })
}

/// Keeps the program's API server token out of the sidecar's containers: Kubernetes does not mount the token where
/// another volume is mounted.
fn no_api_token() -> Value {
    json!({
        "name": NOTHING,
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        "readOnly": true,
    })
}

/// Mounts the secrets in one of the pod's own containers, unless another volume is mounted there.
pub(crate) fn mount_secrets(container: &mut Map<String, Value>) {
    let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
    if mounts.is_null() {
        *mounts = json!([]);
    }
    let Some(mounts) = mounts.as_array_mut() else {
        return;
    };
    let taken = |mount: &Value| {
        mount
            .get("mountPath")
            .is_some_and(|path| path == SECRETS_FOLDER)
    };
    if !mounts.iter().any(taken) {
        let mount = json!({ "name": SECRETS, "mountPath": SECRETS_FOLDER, "readOnly": true });
        mounts.push(mount);
    }
}

/// Undoes [`mount_secrets`].
pub(crate) fn unmount_secrets(container: &mut Map<String, Value>) {
    let Some(mounts) = container
        .get_mut("volumeMounts")
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    mounts.retain(|mount| mount.get("name").is_none_or(|name| name != SECRETS));
    if mounts.is_empty() {
        container.remove("volumeMounts");
    }
}

fn intercept_env(options: &PodOptions, settings: &InjectionSettings) -> Vec<Value> {
    let mut env = vec![
        variable("MERLON_PROXY_UID", &PROXY_USER.to_string()),
        variable("MERLON_OUTBOUND_PORT", "7560"),
        variable("MERLON_INBOUND_PORT", "7561"),
        variable("MERLON_PROXY_PORTS", "7562,7563"),
    ];
    let ranges = settings.exclude_outbound_ip_ranges.iter();
    let ranges: Vec<String> = ranges
        .chain(&options.outbound_ranges)
        .map(ToString::to_string)
        .collect();
    for (name, value) in [
        ("MERLON_EXCLUDE_INBOUND_PORTS", &options.inbound_ports),
        ("MERLON_EXCLUDE_OUTBOUND_PORTS", &options.outbound_ports),
        ("MERLON_EXCLUDE_OUTBOUND_IP_RANGES", &ranges.join(",")),
    ] {
        if !value.is_empty() {
            env.push(variable(name, value));
        }
    }
    env
}

fn variable(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}
