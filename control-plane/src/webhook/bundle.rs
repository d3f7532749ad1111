//! The `caBundle` of the webhook configurations, which the leader writes. All other fields belong to the chart. The
//! field has its own field manager, so neither overwrites the other.

use std::{fmt::Debug, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{names::FIELD_MANAGER, watch::Contact},
    limits::WebhookLimits,
};

/// The configuration of the injector.
const INJECTOR: &str = "merlon-injector";
/// The configuration of the validator.
const VALIDATOR: &str = "merlon-validator";

/// Keeps `caBundle` up to date.
pub(crate) struct CaBundles {
    pub(crate) client: Client,
    pub(crate) leads: watch::Receiver<bool>,
    pub(crate) trusted: watch::Receiver<String>,
    pub(crate) contact: Contact,
    pub(crate) limits: WebhookLimits,
}

impl CaBundles {
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let injector: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let validator: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let mut changes = stream::select(
            changed(injector.clone(), INJECTOR),
            changed(validator.clone(), VALIDATOR),
        )
        .boxed();
        // A failed write is retried without a change.
        let mut pending = false;
        loop {
            let retry = async {
                if pending {
                    tokio::time::sleep(self.limits.bundle_retry).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                changed = changes.next() => if changed.is_none() { return },
                Ok(()) = self.leads.changed() => {}
                Ok(()) = self.trusted.changed() => {}
                () = retry => {}
                () = shutdown.cancelled() => return,
            }
            let trusted = self.trusted.borrow_and_update().clone();
            if trusted.is_empty() || !*self.leads.borrow_and_update() {
                continue;
            }
            let timeout = self.limits.bundle_timeout;
            let injector = write_bundle(&injector, INJECTOR, &trusted, timeout).await;
            let validator = write_bundle(&validator, VALIDATOR, &trusted, timeout).await;
            pending = false;
            for (name, done) in [(INJECTOR, injector), (VALIDATOR, validator)] {
                if let Err(error) = done {
                    pending = true;
                    if self.contact.outage().is_none() {
                        tracing::warn!(configuration = name, %error, "webhook.bundle_failed");
                    }
                }
            }
        }
    }
}

/// Yields when the configuration may have changed.
fn changed<K>(api: Api<K>, name: &str) -> impl futures_util::Stream<Item = ()> + Send + use<K>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + Debug
        + Send
        + serde::de::DeserializeOwned
        + 'static,
{
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watcher(api, only)
        .default_backoff()
        .filter_map(async |event| event.ok().map(|_| ()))
}

/// Sets `caBundle` in every webhook of a configuration that lacks it.
async fn write_bundle<K>(
    api: &Api<K>,
    name: &str,
    trusted: &str,
    timeout: Duration,
) -> Result<(), String>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let found = tokio::time::timeout(timeout, api.get_opt(name)).await;
    let found = found
        .map_err(|_| "no answer".to_owned())?
        .map_err(|error| error.to_string())?;
    // Not installed yet. Its creation is a change.
    let Some(found) = found else { return Ok(()) };
    let found = serde_json::to_value(&found).map_err(|error| error.to_string())?;
    let wanted = Value::String(STANDARD.encode(trusted));
    let webhooks = found.get("webhooks").and_then(Value::as_array);
    let mut up_to_date = true;
    let mut entries = Vec::new();
    for webhook in webhooks.into_iter().flatten() {
        up_to_date &= webhook.pointer("/clientConfig/caBundle") == Some(&wanted);
        entries.push(json!({
            "name": webhook.get("name"), "clientConfig": { "caBundle": wanted },
        }));
    }
    if up_to_date {
        return Ok(());
    }
    let kind = K::kind(&()).into_owned();
    let patch = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": { "name": name },
        "webhooks": entries,
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&patch);
    let patched = tokio::time::timeout(timeout, api.patch(name, &parameters, &patch)).await;
    match patched {
        Ok(Ok(_)) => {
            tracing::info!(configuration = name, "webhook.bundle_written");
            Ok(())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}
