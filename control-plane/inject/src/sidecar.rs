//! Inserting the sidecar into a pod, and removing it.

use merlon_config::probe::{HookKey, Probes};
use serde_json::Value;

use crate::{
    containers::{self, Sidecar},
    error::InjectError,
    names::{INJECTED, INTERCEPT_CONTAINER, PROXY_CONTAINER},
    pod::{Pod, variable},
    probes,
};

/// Removes an earlier injection, if there was one, and returns the key of its hooks.
pub(crate) fn remove(pod: &mut Pod) -> Result<Option<HookKey>, InjectError> {
    // Without the annotation, a container with a reserved name is the user's own: it is refused and not removed.
    if pod.annotations().all(|(name, _)| name != INJECTED) {
        return Ok(None);
    }
    let mut known = Probes::new();
    let spec = pod.spec_mut()?;
    let is_named = |container: &Value, name| container.get("name").is_some_and(|n| n == name);
    let Some(list) = spec.get_mut("initContainers").and_then(Value::as_array_mut) else {
        return Ok(None);
    };
    let Some(proxy) = list.iter().find(|one| is_named(one, PROXY_CONTAINER)) else {
        return Ok(None);
    };
    if let Some(text) = variable(proxy, "MERLON_PROBES") {
        known = serde_json::from_str(&text.replace("$$", "$")).unwrap_or_default();
    }
    list.retain(|one| !is_named(one, PROXY_CONTAINER) && !is_named(one, INTERCEPT_CONTAINER));
    if list.is_empty() {
        spec.remove("initContainers");
    }
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|volume| {
            let name = volume.get("name").and_then(Value::as_str);
            !name.is_some_and(|name| Sidecar::VOLUMES.contains(&name))
        });
        if volumes.is_empty() {
            spec.remove("volumes");
        }
    }
    for container in pod.programs_mut() {
        probes::restore(container, &known);
    }
    pod.containers_mut().for_each(containers::unmount_secrets);
    Ok(known.keys().find_map(|path| HookKey::from_path(path)))
}

/// Inserts the sidecar before all other containers.
pub(crate) fn insert(pod: &mut Pod, sidecar: Sidecar) -> Result<(), InjectError> {
    let spec = pod.spec_mut()?;
    let mut containers = sidecar.containers;
    if let Some(Value::Array(own)) = spec.remove("initContainers") {
        containers.extend(own);
    }
    spec.insert("initContainers".to_owned(), Value::Array(containers));
    let mut volumes = match spec.remove("volumes") {
        Some(Value::Array(own)) => own,
        _ => Vec::new(),
    };
    volumes.extend(sidecar.volumes);
    spec.insert("volumes".to_owned(), Value::Array(volumes));
    Ok(())
}
