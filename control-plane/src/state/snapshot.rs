//! What is pushed at this moment: the compiled mesh, the trust bundle and the gateways' certificates, swapped whole.

use std::{collections::BTreeMap, sync::Arc};

use merlon_compile::{Granted, Mesh, StateResource};
use merlon_config::name::ServiceName;
use tokio::sync::watch;

/// Certificates of gateways' listeners, by the Secret that they are read from.
pub(crate) type Certificates = BTreeMap<ServiceName, Arc<StateResource>>;

/// Secrets, by the grant that they were read for.
pub(crate) type Secrets = BTreeMap<Granted, Arc<StateResource>>;

/// One moment's truth. Its parts change on their own; whoever pushes takes all at once.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) mesh: Arc<Mesh>,
    /// Absent until the certificate issuer has answered once.
    pub(crate) bundle: Option<Arc<StateResource>>,
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) secrets: Arc<Secrets>,
    /// Counts the snapshots, so that who enforces a later one is known to enforce what an earlier one brought.
    pub(crate) number: u64,
}

/// Where the moment's truth is published. A watcher that is slow sees the newest, not each.
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

    /// Gives the number of the snapshot that it is in.
    pub(crate) fn publish_mesh(&self, mesh: Arc<Mesh>) -> u64 {
        let mut number = 0;
        self.0.send_modify(|snapshot| {
            snapshot.mesh = mesh;
            snapshot.number += 1;
            number = snapshot.number;
        });
        number
    }

    /// The numbers of mesh and certificates are one: call this first, for what the mesh's gateways name.
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
