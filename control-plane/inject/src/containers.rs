//! The two containers and their volumes.

use merlon_config::{injection::InjectionSettings, probe::Probes};
use serde_json::{Map, Value, json};

use crate::{
    annotations::Wishes,
    names::{AUDIENCE, INTERCEPT_CONTAINER, PROXY_CONTAINER, TRUST_BUNDLE},
    refused::Refused,
};

/// The user that the proxy runs as, whose connections the rules leave alone.
pub(crate) const PROXY_USER: u64 = 7565;

/// What is put into a pod.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) containers: Vec<Value>,
    pub(crate) volumes: Vec<Value>,
}

const TOKEN: &str = "merlon-token";
const TRUST: &str = "merlon-trust";
const STATE: &str = "merlon-state";
const NOTHING: &str = "merlon-nothing";
const SECRETS: &str = "merlon-secrets";

/// Where programs find the secrets that they were granted.
const SECRETS_FOLDER: &str = "/var/run/secrets/merlon.io";

impl Made {
    /// The names of the volumes.
    pub(crate) const VOLUMES: [&'static str; 5] = [TOKEN, TRUST, STATE, NOTHING, SECRETS];
}

/// First what lays down the rules, then the proxy, so that nothing of the pod's own runs between them: it would have no
/// network.
pub(crate) fn both(
    namespace: &str,
    account: &str,
    probes: &Probes,
    wishes: &Wishes,
    settings: &InjectionSettings,
) -> Result<Made, Refused> {
    let shape = |what: &str| Refused::Shape(what.to_owned());
    let control_plane = settings.control_plane.as_ref();
    let control_plane = control_plane.ok_or_else(|| shape("controlPlane of the settings"))?;
    let root_namespace = settings.root_namespace.as_ref();
    let mut proxy_env = vec![
        variable("MERLON_IDENTITY", &format!("{namespace}/{account}")),
        json!({
            "name": "MERLON_WORKLOAD",
            "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } },
        }),
        // Of a URL without a path the slash is only the form.
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
        // Below the volume, whose own folder belongs to the node.
        variable("MERLON_STATE_DIR", "/var/lib/merlon/state"),
    ];
    if !probes.is_empty() {
        let text = serde_json::to_string(probes).map_err(|error| shape(&error.to_string()))?;
        proxy_env.push(variable("MERLON_PROBES_ADDRESS", "0.0.0.0:7563"));
        // The node would expand `$(NAME)` in it.
        proxy_env.push(variable("MERLON_PROBES", &text.replace('$', "$$")));
    }
    if wishes.secrets {
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
    let page = |path: &str, period: u32, failures: u32| {
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
        // What makes it a native sidecar: up before the programs, gone after them, and no hindrance to a job's end.
        "restartPolicy": "Always",
        "env": proxy_env,
        "ports": [{ "name": "merlon-admin", "containerPort": 7562 }],
        "startupProbe": page("/ready", 1, 120),
        "readinessProbe": page("/ready", 5, 3),
        "livenessProbe": page("/live", 10, 3),
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
            nothing(),
        ],
    });
    let mut intercept = json!({
        "name": INTERCEPT_CONTAINER,
        "image": settings.intercept_image,
        "args": ["apply"],
        "env": intercept_env(wishes, settings),
        "volumeMounts": [nothing()],
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
    if wishes.secrets
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
    if wishes.secrets {
        let memory = json!({ "medium": "Memory", "sizeLimit": "8Mi" });
        volumes.push(json!({ "name": SECRETS, "emptyDir": memory }));
    }
    Ok(Made {
        containers: vec![intercept, proxy],
        volumes,
    })
}

/// Stands where Kubernetes would mount the program's token for the API server, which is nothing for us to have: it mounts
/// none where something is.
fn nothing() -> Value {
    json!({
        "name": NOTHING,
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        "readOnly": true,
    })
}

/// Lets one of the pod's own containers read its secrets, unless it has something of its own there.
pub(crate) fn give_secrets(container: &mut Map<String, Value>) {
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

/// Takes that back.
pub(crate) fn take_secrets(container: &mut Map<String, Value>) {
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

fn intercept_env(wishes: &Wishes, settings: &InjectionSettings) -> Vec<Value> {
    let mut env = vec![
        variable("MERLON_PROXY_UID", &PROXY_USER.to_string()),
        variable("MERLON_OUTBOUND_PORT", "7560"),
        variable("MERLON_INBOUND_PORT", "7561"),
        variable("MERLON_PROXY_PORTS", "7562,7563"),
    ];
    let ranges = settings.exclude_outbound_ip_ranges.iter();
    let ranges: Vec<String> = ranges
        .chain(&wishes.outbound_ranges)
        .map(ToString::to_string)
        .collect();
    for (name, value) in [
        ("MERLON_EXCLUDE_INBOUND_PORTS", &wishes.inbound_ports),
        ("MERLON_EXCLUDE_OUTBOUND_PORTS", &wishes.outbound_ports),
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
