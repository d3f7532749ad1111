//! Putting the sidecar into a pod, and taking it out.

use merlon_config::probe::{HookKey, Probes};
use serde_json::Value;

use crate::{
    containers::{self, Made},
    names::{INJECTED, INTERCEPT_CONTAINER, PROXY_CONTAINER},
    pod::{Pod, variable},
    probes,
    refused::Refused,
};

/// Takes out what an earlier injection put in, if there was one, and gives the key of its hooks.
pub(crate) fn remove(pod: &mut Pod) -> Result<Option<HookKey>, Refused> {
    // Without it what bears our names is the user's own, and is refused instead of thrown away.
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
            !name.is_some_and(|name| Made::VOLUMES.contains(&name))
        });
        if volumes.is_empty() {
            spec.remove("volumes");
        }
    }
    for container in pod.programs_mut() {
        probes::give_back(container, &known);
    }
    pod.containers_mut().for_each(containers::take_secrets);
    Ok(known.keys().find_map(|path| HookKey::of_path(path)))
}

/// Puts the sidecar in, before everything else.
pub(crate) fn insert(pod: &mut Pod, made: Made) -> Result<(), Refused> {
    let spec = pod.spec_mut()?;
    let mut containers = made.containers;
    if let Some(Value::Array(own)) = spec.remove("initContainers") {
        containers.extend(own);
    }
    spec.insert("initContainers".to_owned(), Value::Array(containers));
    let mut volumes = match spec.remove("volumes") {
        Some(Value::Array(own)) => own,
        _ => Vec::new(),
    };
    volumes.extend(made.volumes);
    spec.insert("volumes".to_owned(), Value::Array(volumes));
    Ok(())
}
