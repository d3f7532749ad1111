//! The trust bundle in every namespace. Pods mount it, and proxies authenticate the control plane with it.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, ResourceExt as _, runtime::reflector::ObjectRef};
use merlon_config::snapshot::TrustBundle;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::report::apply;
use crate::{
    cluster::{names, watch::Cluster},
    issuance::authority::Authority,
    limits::StatusLimits,
};

/// Keeps the trust bundles up to date. The leader does this.
pub(crate) struct TrustBundles {
    pub(crate) client: Client,
    pub(crate) cluster: Cluster,
    pub(crate) authority: Authority,
    pub(crate) leads: watch::Receiver<bool>,
    pub(crate) limits: StatusLimits,
}

impl TrustBundles {
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut changes = self.cluster.changes();
        let mut certified = self.authority.watch();
        let mut leads = self.leads.clone();
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                Ok(()) = certified.changed() => {}
                Ok(()) = leads.changed() => {}
                () = tokio::time::sleep(self.limits.bundle_retry) => {}
                () = shutdown.cancelled() => return,
            }
            tokio::time::sleep(self.limits.bundle_gather).await;
            changes.mark_unchanged();
            let bundle = certified
                .borrow_and_update()
                .as_ref()
                .map(|c| c.bundle().clone());
            if let Some(bundle) = bundle
                && *self.leads.borrow()
                && self.cluster.contact.outage().is_none()
            {
                self.write(&bundle).await;
            }
        }
    }

    async fn write(&self, bundle: &TrustBundle) {
        let roots: Vec<&str> = bundle.roots.iter().map(|root| root.trim_end()).collect();
        let roots = format!("{}\n", roots.join("\n"));
        let domain = bundle.trust_domain.as_str();
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": names::TRUST_BUNDLE,
                "labels": { "app.kubernetes.io/part-of": "merlon" },
            },
            "data": { "bundle.pem": roots, "trust-domain": domain },
        });
        for namespace in self.cluster.namespaces.state() {
            // Nothing can be created in a terminating namespace.
            if namespace.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let name = namespace.name_any();
            let has = ObjectRef::<ConfigMap>::new(names::TRUST_BUNDLE).within(&name);
            let has = self.cluster.bundles.get(&has);
            let has = has.as_ref().and_then(|map| map.data.as_ref());
            let up_to_date = has.is_some_and(|data| {
                data.get("bundle.pem") == Some(&roots)
                    && data.get("trust-domain").is_some_and(|has| has == domain)
            });
            if !up_to_date {
                let api = Api::namespaced(self.client.clone(), &name);
                let _ = apply(&api, names::TRUST_BUNDLE, &map, self.limits.timeout).await;
            }
        }
    }
}
