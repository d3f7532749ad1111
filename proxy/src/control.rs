//! The control thread: discovery, identity, JWKS, probes and administration. No request waits for it, except lookups.

pub(crate) mod admin;
pub(crate) mod assemble;
pub(crate) mod connection;
pub(crate) mod discovery;
pub(crate) mod dump;
pub(crate) mod identity;
pub(crate) mod inspect;
pub(crate) mod jwks;
pub(crate) mod probes;
pub(crate) mod required_certificates;
pub(crate) mod secret_folder;
pub(crate) mod snapshot_age;
pub(crate) mod standalone;
pub(crate) mod state_dir;

use std::{sync::Arc, time::Duration};

use merlon_certs::unix_now;
use tokio::{sync::mpsc, time};

use self::{
    discovery::DiscoveryClient,
    identity::{IdentityManager, publish},
    jwks::Fetcher,
    secret_folder::SecretFolder,
    snapshot_age::SnapshotAge,
    standalone::Standalone,
    state_dir::StateDir,
};
use crate::{
    config::{ProxyConfig, Source},
    state::{destinations::LookupRequest, jwks_cache::Refetch, shared::Shared},
    telemetry::{metrics::Metrics, spans::Exporter},
};

/// The input of the control thread.
pub(crate) struct Control {
    pub(crate) node_id: String,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: ProxyConfig,
    pub(crate) state_dir: Option<Arc<StateDir>>,
    pub(crate) secrets: Option<Arc<SecretFolder>>,
    pub(crate) standalone: Option<Standalone>,
    pub(crate) lookups: mpsc::Receiver<LookupRequest>,
    pub(crate) refetches: mpsc::Receiver<Refetch>,
    pub(crate) exporter: Exporter,
}

impl Control {
    /// Starts the tasks, which run until the runtime ends. Flush the returned exporter before that.
    pub(crate) fn start(self) -> Exporter {
        let Self {
            node_id,
            shared,
            metrics,
            config,
            state_dir,
            secrets,
            standalone,
            lookups,
            refetches,
            mut exporter,
        } = self;
        exporter.start(&metrics);
        let fetcher = Fetcher::new(
            shared.keys.clone(),
            refetches,
            Arc::clone(&metrics),
            shared.limits,
        );
        tokio::spawn(fetcher.run(shared.snapshot.clone()));
        if let Some(state_dir) = &state_dir {
            let path = state_dir.join("admin.sock");
            let (shared, metrics) = (Arc::clone(&shared), Arc::clone(&metrics));
            tokio::spawn(async move { admin::serve_socket(&path, shared, metrics).await });
        }
        let snapshot_age = match (standalone, config.source) {
            (Some(standalone), _) => {
                let snapshot_age = standalone.snapshot_age();
                tokio::spawn(standalone.run(lookups));
                snapshot_age
            }
            (
                None,
                Source::ControlPlane {
                    address,
                    root_namespace,
                    join_token,
                    pod_token,
                    trust_bundle,
                },
            ) => {
                let snapshot_age = SnapshotAge::default();
                let (identity, renew) = IdentityManager::new(
                    identity::issue::IdentityDeps {
                        node_id: node_id.clone(),
                        address: address.clone(),
                        root_namespace: root_namespace.clone(),
                        workload: config.subject.identity().clone(),
                        join_token,
                        pod_token,
                        trust_bundle,
                    },
                    state_dir.clone(),
                    Arc::clone(&shared),
                    Arc::clone(&metrics),
                );
                tokio::spawn(identity.run());
                let discovery = DiscoveryClient::new(discovery::DiscoveryDeps {
                    node_id,
                    address,
                    root_namespace,
                    subject: config.subject,
                    state_dir,
                    secrets,
                    renew,
                    snapshot_age: snapshot_age.clone(),
                    shared: Arc::clone(&shared),
                    metrics: Arc::clone(&metrics),
                });
                tokio::spawn(discovery.run(lookups));
                snapshot_age
            }
            // INVARIANT: `app::start` creates a `Standalone` if the source is a directory.
            (None, Source::Standalone { .. }) => SnapshotAge::default(),
        };
        tokio::spawn(tick(shared, metrics, snapshot_age));
        exporter
    }
}

/// Updates what depends on the clock only: age of the snapshot, validity of the certificate.
async fn tick(shared: Arc<Shared>, metrics: Arc<Metrics>, snapshot_age: SnapshotAge) {
    let mut second = time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        second.tick().await;
        publish::check_validity(&shared, unix_now());
        metrics
            .snapshot_age
            .set(i64::try_from(snapshot_age.age()).unwrap_or(i64::MAX));
        metrics.ready.set(i64::from(shared.readiness.is_ready()));
    }
}
