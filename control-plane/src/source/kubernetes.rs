//! Resources from a Kubernetes cluster, and what Merlon tells the cluster: status, trust bundles, who leads.
//!
//! The cluster is watched, not asked: when its API server is away, what was read last stays in force.

mod acceptance;
mod bundles;
mod counts;
mod document;
mod dry_run;
mod gateway;
mod report;
mod status;
mod status_store;
mod workloads;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::Client;
use merlon_compile::Mesh;
use merlon_config::{
    report::{Problem, Report as Problems},
    resource::Resource,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    acceptance::{Acceptor, Judged},
    bundles::Bundles,
    document::{Document, Key},
    gateway::{Attached, Report},
    report::Reporter,
    status_store::Board,
};
use crate::{
    cluster::{
        lease::Candidate,
        token_review::Reviewer,
        watch::{Cluster, Contact},
    },
    config::KubernetesConfig,
    issuance::{authority::Authority, shared_ca::SharedCa},
    push::Registry,
    secrets::Deliveries,
    source::{SharedStatus, SourceStatus},
    state::snapshot::{Certificates, Worlds},
    telemetry::metrics::{LoadLabel, Metrics},
};

pub(crate) use dry_run::Judge;

/// Changes of one moment (a `kubectl apply` of a folder, a rolling update) are judged as one.
const GATHER: Duration = Duration::from_millis(50);

/// What the rest of a control plane lends.
#[derive(Debug, Clone)]
pub(crate) struct Lent {
    pub(crate) registry: Registry,
    pub(crate) authority: Authority,
    pub(crate) metrics: Metrics,
    pub(crate) contact: Contact,
    pub(crate) deliveries: Deliveries,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// What people wrote, and what the cluster itself knows.
type Seen = (BTreeMap<Key, Document>, Arc<[Resource]>);

/// A cluster that is followed.
pub(crate) struct Kubernetes {
    client: Client,
    namespace: String,
    cluster: Cluster,
    acceptor: Acceptor,
    judge: Judge,
    board: Board,
    leads: watch::Receiver<bool>,
    status: SharedStatus,
    metrics: Metrics,
    /// What was judged last.
    judged: Option<Seen>,
    /// Of gateways' listeners, as they were then.
    certificates: Arc<Certificates>,
}

impl Kubernetes {
    /// Begins to watch the cluster, to compete for leadership, and to report.
    ///
    /// # Errors
    /// The cluster's address or credentials are missing or unusable.
    pub(crate) async fn connect(config: &KubernetesConfig, lent: Lent) -> Result<Self, OpenError> {
        let mut place = kube::Config::infer().await.map_err(Box::new)?;
        place.connect_timeout = Some(Duration::from_secs(3));
        let server = place.cluster_url.to_string();
        let client = Client::try_from(place).map_err(|error| OpenError::Client(Box::new(error)))?;
        let cluster = Cluster::watch(
            &client,
            (&config.namespace, config.gateways),
            lent.contact.clone(),
            &lent.tasks,
            &lent.shutdown,
        );
        let board = Board::default();
        let (leading, leads) = watch::channel(false);
        let candidate = Candidate::new(
            client.clone(),
            &config.namespace,
            &config.replica,
            lent.contact.clone(),
            leading,
        );
        lent.tasks.spawn(candidate.run(lent.shutdown.clone()));
        let reporter = Reporter::new(
            client.clone(),
            config,
            cluster.clone(),
            board.clone(),
            lent.registry.clone(),
            (lent.authority.clone(), lent.deliveries.clone()),
            leads.clone(),
        );
        lent.tasks.spawn(reporter.run(lent.shutdown.clone()));
        let bundles = Bundles {
            client: client.clone(),
            cluster: cluster.clone(),
            authority: lent.authority.clone(),
            leads: leads.clone(),
        };
        lent.tasks.spawn(bundles.run(lent.shutdown.clone()));
        Ok(Self {
            client,
            namespace: config.namespace.clone(),
            cluster,
            acceptor: Acceptor::new(&config.namespace),
            judge: Judge::new(&config.namespace),
            board,
            leads,
            status: SourceStatus::of_cluster(&server),
            metrics: lent.metrics,
            judged: None,
            certificates: Arc::default(),
        })
    }

    /// Returns when there is a mesh. Until then `Contact::not_ready` says why there is none.
    ///
    /// # Errors
    /// `shutdown` came first.
    pub(crate) async fn first_mesh(
        self,
        shutdown: &CancellationToken,
    ) -> Result<(Self, Arc<Mesh>), OpenError> {
        let mut this = self;
        let contact = this.cluster.contact.clone();
        contact.wait_because(Some("nothing was compiled yet".to_owned()));
        let mut changes = this.cluster.changes();
        loop {
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| OpenError::Ended)?,
                () = shutdown.cancelled() => return Err(OpenError::Ended),
            }
            tokio::time::sleep(GATHER).await;
            changes.mark_unchanged();
            if !contact.has_all() {
                continue;
            }
            let done = tokio::task::spawn_blocking(move || {
                let judged = this.compile(None);
                (this, judged)
            });
            let (back, judged) = done.await.map_err(|_| OpenError::Ended)?;
            this = back;
            let Some(judged) = judged else { continue };
            if let Some(mesh) = this.take(judged, 1) {
                contact.wait_because(None);
                return Ok((this, mesh));
            }
            let why = this
                .status
                .lock()
                .problems
                .first()
                .map(|p| p.message.clone());
            contact.wait_because(Some(why.unwrap_or_default()));
        }
    }

    /// The client of the cluster's API server.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What admission asks about a resource.
    pub(crate) fn judge(&self) -> &Judge {
        &self.judge
    }

    /// Whether this replica leads.
    pub(crate) fn leads(&self) -> &watch::Receiver<bool> {
        &self.leads
    }

    /// Those that the mesh's gateways name.
    pub(crate) fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    pub(crate) fn status(&self) -> SharedStatus {
        self.status.clone()
    }

    /// Who tells whose a pod's token is.
    pub(crate) fn reviewer(&self) -> Reviewer {
        let contact = self.cluster.contact.clone();
        Reviewer::new(self.client.clone(), self.cluster.pods.clone(), contact)
    }

    /// Where replicas share the embedded CA.
    pub(crate) fn shared_ca(&self) -> SharedCa {
        SharedCa {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
        }
    }

    /// Publishes every change until `shutdown`.
    pub(crate) async fn follow(mut self, worlds: Worlds, shutdown: CancellationToken) {
        let mut changes = self.cluster.changes();
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = shutdown.cancelled() => return,
            }
            tokio::time::sleep(GATHER).await;
            changes.mark_unchanged();
            let running = worlds.mesh();
            // Compiling a large mesh takes a while; streams go on meanwhile.
            let done = tokio::task::spawn_blocking(move || {
                let judged = self.compile(Some(&running));
                (self, judged)
            });
            let Ok((this, judged)) = done.await else {
                return;
            };
            self = this;
            // Before the mesh whose gateways name them.
            worlds.publish_certificates(&self.certificates);
            let Some(judged) = judged else { continue };
            let number = judged
                .mesh
                .as_ref()
                .map_or(0, |mesh| worlds.publish_mesh(Arc::clone(mesh)));
            let _ = self.take(judged, number);
        }
    }

    /// `None`: nothing changed that matters.
    fn compile(&mut self, running: Option<&Mesh>) -> Option<Judged> {
        let kinds = self.cluster.kinds.iter();
        let documents: BTreeMap<Key, Document> = kinds
            .flat_map(|(kind, store)| {
                let objects = store.state();
                objects
                    .into_iter()
                    .filter_map(|object| Document::of(kind, &object))
                    .collect::<Vec<_>>()
            })
            .map(|document| (document.key.clone(), document))
            .collect();
        let mut attached = self.attached();
        let mut found = workloads::found(&self.cluster);
        found.append(&mut attached.resources);
        let found: Arc<[Resource]> = found.into();
        if *self.certificates != attached.certificates {
            self.certificates = Arc::new(attached.certificates);
        }
        if let Some((before, known)) = &self.judged
            && *known == found
            && same(before, &documents)
        {
            let left_out = self.board.left_out();
            self.board.attached(blamed(attached.reports, &left_out));
            return None;
        }
        let judged = self.acceptor.judge(&documents, &found, running);
        let reports = blamed(attached.reports, &judged.left_out);
        self.board.attached(reports);
        self.judge.learn(
            self.acceptor.good(),
            Arc::clone(&found),
            judged.mesh.as_ref(),
        );
        self.judged = Some((documents, found));
        Some(judged)
    }

    /// What Gateway API says, if it is looked at.
    fn attached(&self) -> Attached {
        let Some(stores) = &self.cluster.gateways else {
            return Attached::default();
        };
        gateway::attach(&gateway::Seen {
            namespace: stores.namespace.clone(),
            classes: stores.classes.state(),
            gateways: stores.gateways.state(),
            routes: stores.routes.state(),
            grants: stores.grants.state(),
            namespaces: self.cluster.namespaces.state(),
            services: self.cluster.services.state(),
            secrets: stores.secrets.state(),
        })
    }

    /// Tells of what was judged. `number` is the world's that came of it.
    fn take(&mut self, judged: Judged, number: u64) -> Option<Arc<Mesh>> {
        let result = if judged.mesh.is_some() {
            "accepted"
        } else {
            "refused"
        };
        let label = LoadLabel { result };
        self.metrics.config_loads.get_or_create(&label).inc();
        let refused = judged
            .verdicts
            .iter()
            .filter(|(_, verdict)| !verdict.accepted);
        let mut problems: Problems = refused
            .map(|(key, verdict)| Problem::error(key.to_string(), &verdict.message))
            .collect();
        problems.extend(judged.problems);
        let count = i64::try_from(problems.problems().len()).unwrap_or(i64::MAX);
        self.metrics.config_problems.set(count);
        self.status.lock().judged(problems, judged.mesh.is_some());
        let documents = self.judged.as_ref().map(|(documents, _)| documents.clone());
        self.board.judged(
            documents.unwrap_or_default(),
            judged.verdicts,
            judged.left_out,
            judged.mesh.as_ref().map(|mesh| (Arc::clone(mesh), number)),
        );
        judged.mesh
    }
}

/// With what was found wrong only when all was compiled.
fn blamed(mut reports: Vec<Report>, left_out: &BTreeMap<String, String>) -> Vec<Report> {
    for report in &mut reports {
        if let Some(message) = left_out.get(&report.origin()) {
            report.blame(message);
        }
    }
    reports
}

/// Whether people wrote the same. What we write into `status` is our own echo.
fn same(before: &BTreeMap<Key, Document>, now: &BTreeMap<Key, Document>) -> bool {
    let part = |document: &Document| (document.uid.clone(), document.present.generation);
    before.len() == now.len()
        && before.iter().all(|(key, document)| {
            now.get(key).is_some_and(|other| {
                part(document) == part(other) && document.present == other.present
            })
        })
}

/// Why a cluster is not followed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither within a pod nor by a kubeconfig.
    #[error("it is not known where the cluster is: {0}")]
    Where(#[from] Box<kube::config::InferConfigError>),
    /// Its address, certificates or credentials cannot be used.
    #[error("the cluster cannot be spoken to: {0}")]
    Client(Box<kube::Error>),
    /// It was asked to end before it began.
    #[error("it was asked to end while it waited for the cluster")]
    Ended,
}
