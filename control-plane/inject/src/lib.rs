//! Puts Merlon's sidecar into a pod: a pure function, for the admission webhook and for `merlon inject`.
#![doc = include_str!("../README.md")]

mod admission;
mod annotations;
mod containers;
mod hooks;
mod names;
mod pod;
mod probes;
mod refused;

mod sidecar;

use aws_lc_rs::digest::{SHA256, digest};
use merlon_config::{injection::InjectionSettings, probe::HookKey};
use serde_json::Value;

use self::{annotations::Wishes, pod::Pod};
pub use self::{
    hooks::{HookKeys, ShortSeed},
    names::{
        AUDIENCE, INJECT, INJECTED, INTERCEPT_CONTAINER, MESHED, PROXY_CONTAINER, TRUST_BUNDLE,
    },
    refused::Refused,
};

/// What became of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Injection {
    /// It stays as it is.
    Unchanged(Why),
    /// It has its sidecar.
    Changed {
        /// The whole object as it is to be.
        object: Value,
        /// What is unusual in it, for whoever made it.
        warnings: Vec<String>,
    },
}

/// Why a pod stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It bears the label `merlon.io/inject: "disabled"`.
    Declined,
    /// It has its sidecar, by the very same settings.
    Injected,
}

/// Gives a pod its sidecar. `object` is a Pod or a pod's template (`metadata` and `spec`), which is to be in `namespace`.
/// `fresh` is a key that nobody guesses, for its hooks ([`HookKeys`]).
///
/// What was injected before is taken out and put in anew, so that the result does not depend on it; but for the key of
/// its hooks, which stays.
///
/// # Errors
/// The pod cannot have one, or asks for something that is not known.
pub fn inject(
    object: &Value,
    namespace: &str,
    settings: &InjectionSettings,
    fresh: &HookKey,
) -> Result<Injection, Refused> {
    let mut pod = Pod::of(object)?;
    match pod.label(INJECT) {
        Some("disabled") => return Ok(Injection::Unchanged(Why::Declined)),
        None | Some("enabled") => {}
        Some(other) => return Err(Refused::Label(other.to_owned())),
    }
    let known = sidecar::remove(&mut pod)?;
    admission::refuse(&pod)?;
    let warnings = admission::warnings(&pod);
    let wishes = Wishes::of(&pod)?;
    let probes = probes::take_over(&mut pod, known.as_ref().unwrap_or(fresh))?;
    if wishes.secrets {
        pod.containers_mut().for_each(containers::give_secrets);
    }
    let account = pod.service_account().to_owned();
    let made = containers::both(namespace, &account, &probes, &wishes, settings)?;
    sidecar::insert(&mut pod, made)?;
    pod.mark(MESHED, INJECTED, &mark(settings))?;
    let object_after = pod.into_object();
    if object_after == *object {
        return Ok(Injection::Unchanged(Why::Injected));
    }
    Ok(Injection::Changed {
        object: object_after,
        warnings,
    })
}

/// Names the settings that a pod was injected by: two pods that differ in it differ in their sidecars.
pub fn mark(settings: &InjectionSettings) -> String {
    // Values without names that could fail to be written; a text all the same if one did.
    let text = serde_json::to_string(settings).unwrap_or_default();
    let text = format!("{} {text}", env!("CARGO_PKG_VERSION"));
    let hash = digest(&SHA256, text.as_bytes());
    let bytes = hash.as_ref().iter().take(6);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
