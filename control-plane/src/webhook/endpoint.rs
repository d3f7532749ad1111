//! The Service's endpoint of a replica while no replica is ready.
//!
//! Kubernetes lists ready replicas only, so a starting or broken one gets no request. But what keeps every replica from
//! being ready may need the webhooks to be fixed: a policy, or the pod of the certificate issuer. So while none is ready, each
//! replica that serves the webhooks adds its own EndpointSlice to the Service.
//!
//! A replica that shuts down serves the webhooks until Kubernetes lists it no longer.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::{core::v1::Pod, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use rustls::ServerConfig;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificate::SERVICE;
use crate::{
    cluster::{
        endpoints::{self, has_ready_endpoint, is_ready},
        names::{self, SERVICE_LABEL},
        watch::Cluster,
    },
    limits::WebhookLimits,
};

const MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// The name of the Service's port, by which the node's proxy finds the port in a slice.
const PORT: &str = "webhook";

/// Keeps the EndpointSlice of this replica.
pub(crate) struct OwnEndpoint {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    /// The name of this replica, which is the name of its pod.
    pub(crate) replica: String,
    /// The port of the webhooks' second listener. Kubernetes lists the pod's address with the first one as not ready, and of two
    /// endpoints with the same address and port, the node's proxy uses any.
    pub(crate) port: u16,
    pub(crate) cluster: Cluster,
    pub(crate) tls_config: watch::Receiver<Option<Arc<ServerConfig>>>,
    pub(crate) limits: WebhookLimits,
    /// The pod of this replica, once it was read.
    pub(crate) pod: Option<Pod>,
    /// Whether its slice may be there.
    pub(crate) added: bool,
    /// Cancelled after the shutdown, when Kubernetes no longer lists this replica.
    pub(crate) unlisted: CancellationToken,
}

/// Why the slice cannot be written.
#[derive(Debug, thiserror::Error)]
enum EndpointError {
    #[error("{0}")]
    Cluster(#[from] kube::Error),
    #[error("no answer in time")]
    Timeout(#[from] tokio::time::error::Elapsed),
}

impl OwnEndpoint {
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = self.follow() => {}
            () = shutdown.cancelled() => {}
        }
        let unlisted = self.unlisted.clone().drop_guard();
        let limit = self.limits.max_linger;
        let _ = tokio::time::timeout(limit, self.until_unlisted()).await;
        drop(unlisted);
    }

    /// Waits until nodes send no requests to this replica, as far as the API server says. The watches have ended.
    async fn until_unlisted(&mut self) {
        if self.added {
            let _ = self.remove(&self.name()).await;
        }
        loop {
            if self.pod.is_none() {
                self.pod = self.read_pod().await.unwrap_or_default();
            }
            // A process outside the cluster has no pod.
            let Some(address) = self.pod.as_ref().and_then(address) else {
                return;
            };
            let only = ListParams::default().labels(&format!("{SERVICE_LABEL}={SERVICE}"));
            let api = self.api();
            let slices = tokio::time::timeout(self.limits.bundle_timeout, api.list(&only));
            if let Ok(Ok(slices)) = slices.await {
                let mut endpoints = slices.items.iter().flat_map(|slice| &slice.endpoints);
                if !endpoints.any(|one| is_ready(one) && one.addresses.contains(address)) {
                    return;
                }
            }
            tokio::time::sleep(self.limits.endpoint_poll).await;
        }
    }

    async fn follow(&mut self) {
        if self.tls_config.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let mut changes = self.cluster.changes();
        let mut logged = None;
        loop {
            // The others may be missing: admission must work while users fix the reason.
            if self.cluster.contact.is_listed("endpointslices") {
                let done = self.update().await.map_err(|error| error.to_string());
                if let Err(error) = &done
                    && logged.as_ref() != Some(error)
                    // An unavailable API server is logged elsewhere.
                    && self.cluster.contact.outage().is_none()
                {
                    tracing::warn!(%error, "webhook.endpoint_failed");
                }
                logged = done.err();
            }
            // Not at each change after an error, and at times without one: another replica may have been killed.
            let pause = if logged.is_some() {
                self.limits.endpoint_retry
            } else {
                self.limits.endpoint_gather
            };
            tokio::time::sleep(pause).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(self.limits.endpoint_retry) => {}
            }
            changes.mark_unchanged();
        }
    }

    /// Adds the slice of this replica while no replica is ready. Otherwise removes those of all replicas, because one that was
    /// killed did not remove its own.
    async fn update(&mut self) -> Result<(), EndpointError> {
        let slices = endpoints::slices_of(&self.cluster, &self.namespace, SERVICE);
        let (own, others): (Vec<_>, Vec<_>) = slices.iter().partition(|slice| is_own(slice));
        if others.iter().any(|slice| has_ready_endpoint(slice)) {
            for slice in own {
                self.remove(&slice.name_any()).await?;
            }
            return Ok(());
        }
        for slice in own.iter().filter(|slice| slice.name_any() != self.name()) {
            if !self.is_running(slice).await? {
                self.remove(&slice.name_any()).await?;
            }
        }
        if self.pod.is_none() {
            self.pod = self.read_pod().await?;
        }
        let Some(wanted) = self.pod.as_ref().and_then(|pod| self.slice(pod)) else {
            return Ok(());
        };
        // One of a former process of this pod may have another address.
        let known = own.iter().find(|slice| slice.name_any() == self.name());
        if known.is_some_and(|known| {
            (&known.endpoints, &known.ports) == (&wanted.endpoints, &wanted.ports)
        }) {
            return Ok(());
        }
        let parameters = PatchParams::apply(names::FIELD_MANAGER).force();
        let name = self.name();
        let (api, patch) = (self.api(), Patch::Apply(&wanted));
        self.added = true;
        let written = api.patch(&name, &parameters, &patch);
        tokio::time::timeout(self.limits.bundle_timeout, written).await??;
        tracing::info!(slice = name, "webhook.endpoint_added");
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), EndpointError> {
        let (api, parameters) = (self.api(), DeleteParams::default());
        let deleted = api.delete(name, &parameters);
        match tokio::time::timeout(self.limits.bundle_timeout, deleted).await? {
            Ok(_) => tracing::info!(slice = name, "webhook.endpoint_removed"),
            // Another replica was faster.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether the process of the replica that added a slice runs, as far as its node says.
    async fn is_running(&self, slice: &EndpointSlice) -> Result<bool, EndpointError> {
        let name = slice.name_any();
        let replica = name
            .strip_prefix(&format!("{SERVICE}-"))
            .unwrap_or_default();
        let pod = self.pod_of(replica).await?;
        let status = pod.and_then(|pod| pod.status);
        let containers = status.and_then(|status| status.container_statuses);
        let mut states = containers.into_iter().flatten().filter_map(|one| one.state);
        Ok(states.any(|state| state.running.is_some()))
    }

    /// The pod of this replica, if it has an address.
    async fn read_pod(&self) -> Result<Option<Pod>, EndpointError> {
        let pod = self.pod_of(&self.replica).await?;
        Ok(pod.filter(|pod| address(pod).is_some()))
    }

    async fn pod_of(&self, replica: &str) -> Result<Option<Pod>, EndpointError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = pods.get_opt(replica);
        Ok(tokio::time::timeout(self.limits.bundle_timeout, pod).await??)
    }

    /// The slice of this replica, with the address of its pod.
    fn slice(&self, pod: &Pod) -> Option<EndpointSlice> {
        let address = address(pod)?;
        let family = match address.parse().ok()? {
            IpAddr::V4(_) => "IPv4",
            IpAddr::V6(_) => "IPv6",
        };
        let slice = json!({
            "metadata": {
                "name": self.name(),
                "labels": { SERVICE_LABEL: SERVICE, MANAGER_LABEL: names::FIELD_MANAGER },
                // Kubernetes deletes the slice with the pod.
                "ownerReferences": [{
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": self.replica,
                    "uid": pod.metadata.uid.as_ref()?,
                }],
            },
            "addressType": family,
            "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
            "ports": [{ "name": PORT, "port": self.port, "protocol": "TCP" }],
        });
        serde_json::from_value(slice).ok()
    }

    fn name(&self) -> String {
        format!("{SERVICE}-{}", self.replica)
    }

    fn api(&self) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

fn address(pod: &Pod) -> Option<&String> {
    pod.status.as_ref()?.pod_ip.as_ref()
}

/// Whether a replica added the slice, and not Kubernetes.
fn is_own(slice: &EndpointSlice) -> bool {
    let manager = slice.labels().get(MANAGER_LABEL);
    manager.is_some_and(|by| by == names::FIELD_MANAGER)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn slice(manager: &str, endpoints: &Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": { "name": "a", "labels": { MANAGER_LABEL: manager } },
            "addressType": "IPv4",
            "endpoints": endpoints,
        }))
        .unwrap()
    }

    #[test]
    fn a_slice_is_known_by_who_manages_it() {
        assert!(is_own(&slice("merlon-control-plane", &json!([]))));
        assert!(!is_own(&slice(
            "endpointslice-controller.k8s.io",
            &json!([])
        )));
    }
}
