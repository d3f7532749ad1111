//! Pods that are part of the mesh.

use k8s_openapi::api::core::v1::Pod;

use super::names;

/// Whether a pod has a proxy, as a regular container or as a native sidecar.
pub(crate) fn meshed(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    containers.any(|container| container.name == names::PROXY_CONTAINER)
}
