//! The current snapshot: the compiled mesh, the trust bundle, the certificates of gateways and the granted secrets.

use std::{collections::BTreeMap, sync::Arc};

use merlon_compile::{Granted, Mesh, StateResource};
use merlon_config::name::ServiceName;
use tokio::sync::watch;

/// Certificates of gateway listeners, by the Secret that holds them.
pub(crate) type Certificates = BTreeMap<ServiceName, Arc<StateResource>>;

/// Secrets, by their grant.
pub(crate) type Secrets = BTreeMap<Granted, Arc<StateResource>>;

/// One consistent state. Its parts change independently, and a push reads all of them at once.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) mesh: Arc<Mesh>,
    /// Absent until the certificate issuer has answered once.
    pub(crate) bundle: Option<Arc<StateResource>>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) secrets: Arc<Secrets>,
    /// Increases with each snapshot: a proxy that enforces one also enforces the changes of all earlier ones.
    pub(crate) number: u64,
}

/// Publishes snapshots. A slow receiver sees the newest one and skips the others.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots(Arc<watch::Sender<Snapshot>>);

impl Snapshots {
    pub(crate) fn new(mesh: Arc<Mesh>) -> Self {
        Self(Arc::new(watch::Sender::new(Snapshot {
            mesh,
            bundle: None,
            certificates: Arc::default(),
            secrets: Arc::default(),
            number: 1,
        })))
    }

    /// Returns the number of the snapshot that contains the mesh.
    pub(crate) fn publish_mesh(&self, mesh: Arc<Mesh>) -> u64 {
        let mut number = 0;
        self.0.send_modify(|snapshot| {
            snapshot.mesh = mesh;
            snapshot.number += 1;
            number = snapshot.number;
        });
        number
    }

    /// Call this before [`Self::publish_mesh`], so that the mesh's number covers the certificates of its gateways.
    pub(crate) fn publish_certificates(&self, certificates: &Arc<Certificates>) {
        self.0.send_if_modified(|snapshot| {
            let new = snapshot.certificates != *certificates;
            if new {
                snapshot.certificates = Arc::clone(certificates);
                snapshot.number += 1;
            }
            new
        });
    }

    pub(crate) fn publish_secrets(&self, secrets: &Arc<Secrets>) {
        self.0.send_if_modified(|snapshot| {
            let new = snapshot.secrets != *secrets;
            if new {
                snapshot.secrets = Arc::clone(secrets);
                snapshot.number += 1;
            }
            new
        });
    }

    pub(crate) fn publish_bundle(&self, bundle: StateResource) {
        self.0.send_if_modified(|snapshot| {
            let new = snapshot.bundle.as_deref() != Some(&bundle);
            if new {
                snapshot.bundle = Some(Arc::new(bundle));
                snapshot.number += 1;
            }
            new
        });
    }

    pub(crate) fn mesh(&self) -> Arc<Mesh> {
        Arc::clone(&self.0.borrow().mesh)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Snapshot> {
        self.0.subscribe()
    }
}
