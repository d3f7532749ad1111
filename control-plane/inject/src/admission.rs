//! Pods that cannot be in the mesh, and settings that let a program bypass its sidecar.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{
    containers::{PROXY_USER, Sidecar},
    error::InjectError,
    pod::{self, Pod},
};

/// Refuses a pod that cannot be in the mesh.
pub(crate) fn refuse(pod: &Pod) -> Result<(), InjectError> {
    let spec = pod.spec();
    let is = |field: &str| spec.and_then(|spec| spec.get(field)) == Some(&Value::Bool(true));
    if is("hostNetwork") {
        return Err(InjectError::HostNetwork);
    }
    let system = spec.and_then(|spec| spec.get("os")?.get("name")?.as_str());
    let selected =
        spec.and_then(|spec| spec.get("nodeSelector")?.get("kubernetes.io/os")?.as_str());
    let mut systems = system.into_iter().chain(selected);
    if systems.any(|name| name.eq_ignore_ascii_case("windows")) {
        return Err(InjectError::Windows);
    }
    if user(spec) == Some(PROXY_USER) {
        let who = "the pod".to_owned();
        return Err(InjectError::User { who });
    }
    for container in pod.containers() {
        let name = pod::name(container);
        if name.starts_with("merlon-") {
            return Err(InjectError::Reserved {
                what: "container",
                name: name.to_owned(),
            });
        }
        if user(Some(container)) == Some(PROXY_USER) {
            return Err(InjectError::User {
                who: format!("the container `{name}`"),
            });
        }
        let ports = container.get("ports").and_then(Value::as_array);
        let numbers = ports
            .into_iter()
            .flatten()
            .filter_map(|port| port.get("containerPort")?.as_u64());
        for number in numbers {
            if let Some(port) = u16::try_from(number)
                .ok()
                .filter(|p| PROXY_PORTS.contains(p))
            {
                return Err(InjectError::Port {
                    container: name.to_owned(),
                    port,
                });
            }
        }
        let mounts = container.get("volumeMounts").and_then(Value::as_array);
        let mut mounted = mounts.into_iter().flatten().filter_map(named);
        if let Some(volume) = mounted.find(|volume| Sidecar::VOLUMES.contains(volume)) {
            return Err(reserved(volume));
        }
    }
    let mut volumes = pod.volumes().filter_map(named);
    match volumes.find(|volume| Sidecar::VOLUMES.contains(volume)) {
        Some(volume) => Err(reserved(volume)),
        None => Ok(()),
    }
}

/// The proxy's ports.
pub(crate) const PROXY_PORTS: std::ops::RangeInclusive<u16> = 7560..=7563;

fn named(value: &Value) -> Option<&str> {
    value.get("name")?.as_str()
}

fn reserved(name: &str) -> InjectError {
    InjectError::Reserved {
        what: "volume",
        name: name.to_owned(),
    }
}

fn user(of: Option<&Map<String, Value>>) -> Option<u64> {
    of?.get("securityContext")?.get("runAsUser")?.as_u64()
}

/// Maximum number of warnings for one pod. Further ones are counted.
const WARNINGS: usize = 20;

/// Warnings about settings that let a program of the pod bypass its sidecar.
pub(crate) fn warnings(pod: &Pod) -> Vec<String> {
    let whole = ["hostPID", "shareProcessNamespace"]
        .into_iter()
        .filter(|field| pod.spec().and_then(|spec| spec.get(*field)) == Some(&Value::Bool(true)));
    let whole = whole.map(|field| {
        format!("merlon: with `{field}: true` the pod's programs can see and kill the sidecar")
    });
    let each = pod
        .containers()
        .flat_map(|container| container_warnings(pod.spec(), container));
    let mut all: Vec<String> = whole.chain(each).collect();
    // The most severe warnings come first, because only the first ones are shown.
    all.sort_by_key(|warning| !warning.contains(REMOVE_RULES));
    if all.len() > WARNINGS {
        let more = all.split_off(WARNINGS).len();
        all.push(format!("merlon: {more} more warnings"));
    }
    all
}

fn container_warnings(
    pod: Option<&Map<String, Value>>,
    container: &Map<String, Value>,
) -> Vec<String> {
    let name: String = pod::name(container).chars().take(63).collect();
    let context = container.get("securityContext");
    if context.and_then(|context| context.get("privileged")) == Some(&Value::Bool(true)) {
        return vec![format!(
            "merlon: the privileged container `{name}` can {REMOVE_RULES}"
        )];
    }
    let added: BTreeSet<String> = capabilities(container, "add").collect();
    let known = [
        ("ALL", REMOVE_RULES),
        ("NET_ADMIN", REMOVE_RULES),
        ("SYS_ADMIN", REMOVE_RULES),
        (
            "SETUID",
            "become the sidecar's user, whose connections the rules do not redirect",
        ),
        (
            "NET_RAW",
            "send packets that bypass the rules and the sidecar",
        ),
    ];
    let added = known.into_iter().filter(|(name, _)| added.contains(*name));
    let added = added.map(|(capability, can)| {
        format!("merlon: with the capability {capability} the container `{name}` can {can}")
    });
    let drops_all = capabilities(container, "drop").any(|one| one == "ALL");
    let as_root = (may_be_root(pod, container) && !drops_all).then(|| {
        format!(
            "merlon: as root with the runtime's default capabilities, the container `{name}` can bypass the sidecar; set `runAsNonRoot: true` and `allowPrivilegeEscalation: false`"
        )
    });
    added.chain(as_root).collect()
}

const REMOVE_RULES: &str = "remove the rules that redirect its connections to the sidecar";

/// The capabilities that a container adds or drops, in upper case and without the prefix `CAP_`: runtimes ignore case.
fn capabilities(container: &Map<String, Value>, field: &str) -> impl Iterator<Item = String> {
    let context = container.get("securityContext");
    let list = context.and_then(|context| context.get("capabilities")?.get(field)?.as_array());
    let names = list.into_iter().flatten().filter_map(Value::as_str);
    names.map(|name| {
        let name = name.to_ascii_uppercase();
        name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
    })
}

/// Whether the pod's spec lets the container run as root. The image's own user is not known here.
fn may_be_root(pod: Option<&Map<String, Value>>, container: &Map<String, Value>) -> bool {
    let setting = |field: &str| {
        let of = |owner: Option<&'_ Map<String, Value>>| {
            owner?.get("securityContext")?.get(field).cloned()
        };
        of(Some(container)).or_else(|| of(pod))
    };
    match setting("runAsUser") {
        Some(user) => user == 0,
        None => setting("runAsNonRoot") != Some(Value::Bool(true)),
    }
}
