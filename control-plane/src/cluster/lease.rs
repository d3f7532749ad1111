//! Leader election by a Lease. The leader writes what must have one writer: status and trust bundles.

use std::time::Instant;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use merlon_config::clock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    names,
    watch::{Contact, is_refusal},
};
use crate::limits::LeaseLimits;

/// Competes for leadership until `shutdown`, and then releases the lease at once.
pub(crate) struct Candidate {
    pub(crate) api: Api<Lease>,
    pub(crate) name: String,
    pub(crate) contact: Contact,
    pub(crate) leading: watch::Sender<bool>,
    limits: LeaseLimits,
    /// The resource version of the lease when it last changed, and when that was seen.
    seen: Option<(String, Instant)>,
    renewed: Option<Instant>,
}

impl Candidate {
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        name: &str,
        contact: Contact,
        leading: watch::Sender<bool>,
        limits: LeaseLimits,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            contact,
            leading,
            limits,
            seen: None,
            renewed: None,
        }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let tried = tokio::time::timeout(self.limits.timeout, self.attempt()).await;
            match tried {
                Ok(Ok(leads)) => {
                    self.contact.answered();
                    self.contact.set_problem("leases", None);
                    self.renewed = leads.then(Instant::now);
                    self.set_leading(leads);
                }
                // A refusal is an answer: the cluster is reachable, and only a permission is missing.
                Ok(Err(kube::Error::Api(status))) if is_refusal(&status) => {
                    self.contact.answered();
                    self.contact.set_problem_of("leases", "renewed", &status);
                    self.step_down_if_expired();
                }
                Ok(Err(error)) => self.failed(&error.to_string()),
                Err(_) => self.failed("no response in time"),
            }
            tokio::select! {
                () = tokio::time::sleep(self.limits.retry) => {}
                () = shutdown.cancelled() => break,
            }
        }
        if *self.leading.borrow() {
            self.set_leading(false);
            let _ = tokio::time::timeout(self.limits.timeout, self.release()).await;
        }
    }

    fn failed(&mut self, why: &str) {
        self.contact.unreachable(&format!("the lease: {why}"));
        self.step_down_if_expired();
    }

    /// Steps down before the other replicas consider the lease expired.
    fn step_down_if_expired(&self) {
        if self
            .renewed
            .is_none_or(|renewed| renewed.elapsed() > self.limits.renew_deadline)
        {
            self.set_leading(false);
        }
    }

    fn set_leading(&self, leads: bool) {
        let changed = self.leading.send_if_modified(|leading| {
            let changed = *leading != leads;
            *leading = leads;
            changed
        });
        if changed {
            tracing::info!(replica = self.name, leads, "leader.changed");
        }
    }

    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(names::LEASE).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(names::LEASE.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            return acquired(self.api.create(&PostParams::default(), &lease).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => Instant::now(),
        };
        self.seen = Some((version, since));
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        // By the local clock: the clocks of two machines differ.
        let free =
            holder.is_empty() || holder == self.name || since.elapsed() > self.limits.duration;
        if !free {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&spec)));
        // With the resource version that was read: of two concurrent writes, one fails.
        let parameters = PostParams::default();
        acquired(self.api.replace(names::LEASE, &parameters, &lease).await)
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(clock::now());
        let own = before.filter(|spec| spec.holder_identity.as_deref() == Some(&self.name));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: i32::try_from(self.limits.duration.as_secs()).ok(),
            acquire_time: own
                .and_then(|spec| spec.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if own.is_some() || before.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        }
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(names::LEASE).await?;
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.name)
        {
            spec.holder_identity = Some(String::new());
            self.api
                .replace(names::LEASE, &PostParams::default(), &lease)
                .await?;
        }
        Ok(())
    }
}

/// A conflict means that another replica was faster, which is no failure.
fn acquired<T>(answer: Result<T, kube::Error>) -> Result<bool, kube::Error> {
    match answer {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
