//! Adds Merlon's sidecar to a pod: a pure function, for the admission webhook and for `merlon inject`.
#![doc = include_str!("../README.md")]

mod admission;
mod annotations;
mod containers;
mod error;
mod hooks;
mod names;
mod pod;
mod probes;
mod sidecar;

use aws_lc_rs::digest::{SHA256, digest};
use merlon_config::{injection::InjectionSettings, probe::HookKey};
use serde_json::Value;

use self::{annotations::PodOptions, pod::Pod};
pub use self::{
    error::InjectError,
    hooks::{HookKeys, ShortSeed},
    names::{
        AUDIENCE, INJECT, INJECTED, INTERCEPT_CONTAINER, MESHED, PROXY_CONTAINER, TRUST_BUNDLE,
    },
};

/// The result of an injection.
#[derive(Debug, Clone, PartialEq)]
pub enum Injection {
    /// The pod stays as it is.
    Unchanged(SkipReason),
    /// The pod gets its sidecar.
    Changed {
        /// The whole object with its sidecar.
        object: Value,
        /// Warnings for the user who created the pod.
        warnings: Vec<String>,
    },
}

/// Why a pod stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// It has the label `merlon.io/inject: "disabled"`.
    Disabled,
    /// It already has its sidecar, by the same settings.
    UpToDate,
}

/// Adds the sidecar to a pod. `object` is a Pod or a pod template (`metadata` and `spec`) in `namespace`.
/// `fresh` is an unguessable key for its hooks ([`HookKeys`]).
///
/// An earlier injection is removed first, so the result does not depend on it. Only the key of the hooks is kept.
///
/// # Errors
/// The pod cannot be in the mesh, or its label or annotations are not valid.
pub fn inject(
    object: &Value,
    namespace: &str,
    settings: &InjectionSettings,
    fresh: &HookKey,
) -> Result<Injection, InjectError> {
    let mut pod = Pod::of(object)?;
    match pod.label(INJECT) {
        Some("disabled") => return Ok(Injection::Unchanged(SkipReason::Disabled)),
        None | Some("enabled") => {}
        Some(other) => return Err(InjectError::Label(other.to_owned())),
    }
    let known = sidecar::remove(&mut pod)?;
    admission::refuse(&pod)?;
    let warnings = admission::warnings(&pod);
    let options = PodOptions::of(&pod)?;
    let probes = probes::redirect(&mut pod, known.as_ref().unwrap_or(fresh))?;
    if options.secrets {
        pod.containers_mut().for_each(containers::mount_secrets);
    }
    let account = pod.service_account().to_owned();
    let sidecar = containers::sidecar_containers(namespace, &account, &probes, &options, settings)?;
    sidecar::insert(&mut pod, sidecar)?;
    pod.mark(MESHED, INJECTED, &settings_hash(settings))?;
    let object_after = pod.into_object();
    if object_after == *object {
        return Ok(Injection::Unchanged(SkipReason::UpToDate));
    }
    Ok(Injection::Changed {
        object: object_after,
        warnings,
    })
}

/// A hash of the settings that a pod was injected with. Pods with different hashes have different sidecars.
pub fn settings_hash(settings: &InjectionSettings) -> String {
    // Serializing the settings cannot fail; an empty text would still give a hash.
    let text = serde_json::to_string(settings).unwrap_or_default();
    let text = format!("{} {text}", env!("CARGO_PKG_VERSION"));
    let hash = digest(&SHA256, text.as_bytes());
    let bytes = hash.as_ref().iter().take(6);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
