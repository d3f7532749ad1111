//! Resources from a Kubernetes cluster, and what Merlon writes to it: status, trust bundles, the leader's lease.
//!
//! The cluster is watched. While its API server is unavailable, the last known state stays in force.

mod acceptance;
mod bundles;
mod counts;
mod document;
mod dry_run;
pub(crate) mod gateway;
mod report;
mod retained;
mod share;
mod status;
mod status_store;
pub(crate) mod workloads;

use std::{collections::BTreeMap, sync::Arc};

use kube::Client;
use merlon_compile::Mesh;
use merlon_config::{
    bootstrap::PodAddressCheck,
    contain::{HINT, contain},
    report::{Problem, Report as Problems},
    resource::Resource,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::{
    acceptance::{Acceptance, Evaluation},
    bundles::TrustBundles,
    document::{Document, Key},
    gateway::{Attached, GatewayStatus},
    report::Reporter,
    status_store::StatusStore,
};
use crate::{
    cluster::{
        endpoints,
        lease::Candidate,
        names,
        token_review::Reviewer,
        watch::{Cluster, Contact},
    },
    config::KubernetesConfig,
    issuance::{authority::Authority, shared_ca::SharedCa},
    limits::Limits,
    push::Registry,
    secrets::Deliveries,
    source::{
        ended,
        status::{SharedStatus, SourceStatus},
    },
    state::snapshot::{Certificates, Snapshots},
    tasks::Tasks,
    telemetry::metrics::{LoadLabel, Metrics},
};

pub(crate) use dry_run::DryRun;

/// The parts of the control plane that the source needs.
#[derive(Debug, Clone)]
pub(crate) struct KubernetesDeps {
    pub(crate) registry: Registry,
    pub(crate) authority: Authority,
    pub(crate) metrics: Metrics,
    pub(crate) contact: Contact,
    pub(crate) deliveries: Deliveries,
    pub(crate) limits: Limits,
    pub(crate) tasks: Tasks,
    pub(crate) shutdown: CancellationToken,
}

/// The resources of users, and those derived from the cluster's own objects.
type Inputs = (BTreeMap<Key, Document>, Arc<[Resource]>);

/// What a panic while the objects are read is a problem of.
const OBJECTS: &str = "objects";

/// A cluster as the source of resources.
pub(crate) struct Kubernetes {
    client: Client,
    namespace: String,
    limits: Limits,
    pod_address_check: PodAddressCheck,
    cluster: Cluster,
    acceptance: Acceptance,
    dry_run: DryRun,
    statuses: StatusStore,
    leads: watch::Receiver<bool>,
    status: SharedStatus,
    metrics: Metrics,
    /// The input of the last evaluation.
    evaluated: Option<Inputs>,
    /// The certificates of gateways' listeners.
    certificates: Arc<Certificates>,
}

impl Kubernetes {
    /// Starts to watch the cluster, to compete for leadership, and to report.
    ///
    /// # Errors
    /// The cluster's address or credentials are missing or unusable.
    pub(crate) async fn connect(
        config: &KubernetesConfig,
        deps: KubernetesDeps,
    ) -> Result<Self, OpenError> {
        let limits = deps.limits;
        let mut place = kube::Config::infer().await.map_err(Box::new)?;
        place.connect_timeout = Some(limits.cluster.connect);
        let server = place.cluster_url.to_string();
        let client = Client::try_from(place).map_err(|error| OpenError::Client(Box::new(error)))?;
        let cluster = Cluster::watch(
            &client,
            (&config.namespace, config.gateways),
            deps.contact.clone(),
            &deps.tasks,
            &deps.shutdown,
        );
        let statuses = StatusStore::default();
        let (leading, leads) = watch::channel(false);
        let candidate = Candidate::new(
            client.clone(),
            &config.namespace,
            &config.replica,
            deps.contact.clone(),
            leading,
            limits.lease,
        );
        let tasks = &deps.tasks;
        tasks.spawn_lasting("leader election", candidate.run(deps.shutdown.clone()));
        let reporter = Reporter::new(
            client.clone(),
            config,
            cluster.clone(),
            statuses.clone(),
            deps.registry.clone(),
            (deps.authority.clone(), deps.deliveries.clone()),
            (leads.clone(), limits.status),
        );
        tasks.spawn_lasting("status", reporter.run(deps.shutdown.clone()));
        let bundles = TrustBundles {
            client: client.clone(),
            cluster: cluster.clone(),
            authority: deps.authority.clone(),
            leads: leads.clone(),
            limits: limits.status,
        };
        tasks.spawn_lasting("trust bundles", bundles.run(deps.shutdown.clone()));
        Ok(Self {
            client,
            namespace: config.namespace.clone(),
            limits,
            pod_address_check: config.pod_address_check,
            cluster,
            acceptance: Acceptance::new(&config.namespace),
            dry_run: DryRun::new(&config.namespace),
            statuses,
            leads,
            status: SourceStatus::of_cluster(&server),
            metrics: deps.metrics,
            evaluated: None,
            certificates: Arc::default(),
        })
    }

    /// Returns when there is a mesh. Until then `Contact::not_ready` returns the reason.
    ///
    /// # Errors
    /// `shutdown` came first.
    pub(crate) async fn first_mesh(
        self,
        shutdown: &CancellationToken,
    ) -> Result<(Self, Arc<Mesh>), OpenError> {
        let mut this = self;
        let contact = this.cluster.contact.clone();
        contact.set_waiting(Some("no mesh was compiled yet".to_owned()));
        let mut changes = this.cluster.changes();
        let mut logged = None;
        loop {
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| OpenError::Ended)?,
                () = shutdown.cancelled() => return Err(OpenError::Ended),
            }
            tokio::time::sleep(this.limits.cluster.gather).await;
            changes.mark_unchanged();
            if !contact.is_synced() {
                continue;
            }
            let done = tokio::task::spawn_blocking(move || {
                let evaluation = this.compile(None);
                (this, evaluation)
            });
            let (back, evaluation) = done.await?;
            this = back;
            let Some(evaluation) = evaluation else {
                continue;
            };
            if let Some(why) = this.waits_for_correction(&evaluation) {
                if logged.as_ref() != Some(&why) {
                    tracing::warn!(problem = why, "config.not_taken_over");
                }
                contact.set_waiting(Some(why.clone()));
                logged = Some(why);
                // The endpoints of the others do not count as a change.
                this.evaluated = None;
                continue;
            }
            if let Some(mesh) = this.apply(evaluation, 1) {
                contact.set_waiting(None);
                return Ok((this, mesh));
            }
            let why = this
                .status
                .lock()
                .problems
                .first()
                .map(|p| p.message.clone());
            contact.set_waiting(Some(why.unwrap_or_default()));
        }
    }

    /// Why this replica does not serve proxies, although it has a mesh: a resource was in force and cannot be, and replicas
    /// that still enforce it, such as those of the version before, are ready. So a rollout stops before anything is denied.
    fn waits_for_correction(&self, evaluation: &Evaluation) -> Option<String> {
        let (key, problem) = evaluation.denied.first_key_value()?;
        let slices = endpoints::slices_of(&self.cluster, &self.namespace, names::SERVICE);
        let others = slices
            .iter()
            .any(|slice| endpoints::has_ready_endpoint(slice));
        let more = match evaluation.denied.len() {
            1 => String::new(),
            count => format!(" (and {} more resources)", count - 1),
        };
        others.then(|| {
            format!(
                "`{key}`{more} was in force and cannot be: {problem}; this replica serves proxies once that is corrected, or when no other replica is ready"
            )
        })
    }

    /// The client of the cluster's API server.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What is watched.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The dry run for the validation webhook.
    pub(crate) fn dry_run(&self) -> &DryRun {
        &self.dry_run
    }

    /// Whether this replica leads.
    pub(crate) fn leads(&self) -> &watch::Receiver<bool> {
        &self.leads
    }

    /// The certificates that the mesh's gateways reference.
    pub(crate) fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    pub(crate) fn status(&self) -> SharedStatus {
        self.status.clone()
    }

    /// Authenticates pods' tokens.
    pub(crate) fn reviewer(&self) -> Reviewer {
        let contact = self.cluster.contact.clone();
        let pods = self.cluster.pods.clone();
        Reviewer::new(
            self.client.clone(),
            pods,
            contact,
            self.limits.token_review,
            self.pod_address_check,
        )
    }

    /// The embedded CA, which the replicas share.
    pub(crate) fn shared_ca(&self) -> SharedCa {
        SharedCa {
            client: self.client.clone(),
            namespace: self.namespace.clone(),
        }
    }

    /// Publishes every change until `shutdown`.
    pub(crate) async fn follow(mut self, snapshots: Snapshots, shutdown: CancellationToken) {
        let mut changes = self.cluster.changes();
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = shutdown.cancelled() => return,
            }
            tokio::time::sleep(self.limits.cluster.gather).await;
            changes.mark_unchanged();
            let running = snapshots.mesh();
            // Compiling a large mesh takes time and must not block the streams.
            let done = tokio::task::spawn_blocking(move || {
                let evaluation = self.compile(Some(&running));
                (self, evaluation)
            });
            let evaluation;
            (self, evaluation) = match done.await {
                Ok(done) => done,
                Err(error) => return ended(error),
            };
            // Before the mesh, whose gateways reference them.
            snapshots.publish_certificates(&self.certificates);
            let Some(evaluation) = evaluation else {
                continue;
            };
            let number = evaluation
                .mesh
                .as_ref()
                .map_or(0, |mesh| snapshots.publish_mesh(Arc::clone(mesh)));
            let _ = self.apply(evaluation, number);
        }
    }

    /// `None`: nothing relevant changed.
    fn compile(&mut self, running: Option<&Mesh>) -> Option<Evaluation> {
        let contact = &self.cluster.contact;
        let (documents, attached, found) = match contain(|| self.read()) {
            Ok(read) => {
                contact.set_problem(OBJECTS, None);
                read
            }
            Err(panic) => {
                let why = format!(
                    "the cluster's objects cannot be read, and the last state stays in force: {panic}; {HINT}"
                );
                contact.set_problem(OBJECTS, Some(why));
                return None;
            }
        };
        let found: Arc<[Resource]> = found.into();
        if *self.certificates != attached.certificates {
            self.certificates = Arc::new(attached.certificates);
        }
        if let Some((before, known)) = &self.evaluated
            && *known == found
            && same(before, &documents)
        {
            let left_out = self.statuses.left_out();
            self.statuses
                .set_gateway_statuses(with_compile_errors(attached.reports, &left_out));
            return None;
        }
        self.acceptance
            .set_retained(retained::read(&self.cluster.retained.state()));
        let evaluation = self.acceptance.evaluate(&documents, &found, running);
        let compilations = evaluation.compilations;
        tracing::debug!(compilations, "config.evaluated");
        let reports = with_compile_errors(attached.reports, &evaluation.left_out);
        self.statuses.set_gateway_statuses(reports);
        self.dry_run.update(
            (self.acceptance.in_force(), self.acceptance.shares()),
            Arc::clone(&found),
            evaluation.mesh.as_ref(),
        );
        self.evaluated = Some((documents, found));
        Some(evaluation)
    }

    /// What users wrote, what is attached to gateways, and everything that is derived from the cluster's objects.
    fn read(&self) -> (BTreeMap<Key, Document>, Attached, Vec<Resource>) {
        let kinds = self.cluster.kinds.iter();
        let documents = kinds.flat_map(|(kind, store)| {
            let objects = store.state();
            objects
                .into_iter()
                .filter_map(|object| Document::of(kind, &object))
                .collect::<Vec<_>>()
        });
        let documents = documents.map(|document| (document.key.clone(), document));
        let documents = documents.collect();
        let mut attached = self.attached();
        let mut found = workloads::found(&self.cluster);
        found.append(&mut attached.resources);
        (documents, attached, found)
    }

    /// The resources of Gateway API, if it is enabled.
    fn attached(&self) -> Attached {
        let Some(stores) = &self.cluster.gateways else {
            return Attached::default();
        };
        gateway::attach(&gateway::GatewayObjects {
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

    /// Reports the evaluation. `number` is the number of the snapshot that it produced.
    fn apply(&mut self, evaluation: Evaluation, number: u64) -> Option<Arc<Mesh>> {
        let result = if evaluation.mesh.is_some() {
            "accepted"
        } else {
            "refused"
        };
        let label = LoadLabel { result };
        self.metrics.config_loads.get_or_create(&label).inc();
        let refused = evaluation
            .verdicts
            .iter()
            .filter(|(_, verdict)| !verdict.accepted);
        let mut problems: Problems = refused
            .map(|(key, verdict)| Problem::error(key.to_string(), &verdict.message))
            .collect();
        problems.extend(evaluation.problems);
        let count = i64::try_from(problems.problems().len()).unwrap_or(i64::MAX);
        self.metrics.config_problems.set(count);
        self.status
            .lock()
            .evaluated(problems, evaluation.mesh.is_some());
        let documents = self
            .evaluated
            .as_ref()
            .map(|(documents, _)| documents.clone());
        self.statuses.set_retained(self.acceptance.retained());
        self.statuses.set_verdicts(
            documents.unwrap_or_default(),
            evaluation.verdicts,
            evaluation.left_out,
            evaluation
                .mesh
                .as_ref()
                .map(|mesh| (Arc::clone(mesh), number)),
        );
        evaluation.mesh
    }
}

/// Adds the problems that only the compilation found.
fn with_compile_errors(
    mut reports: Vec<GatewayStatus>,
    left_out: &BTreeMap<String, String>,
) -> Vec<GatewayStatus> {
    for report in &mut reports {
        if let Some(message) = left_out.get(&report.origin()) {
            report.set_compile_error(message);
        }
    }
    reports
}

/// Whether the specs are the same. Changes of `status` are the control plane's own writes.
fn same(before: &BTreeMap<Key, Document>, now: &BTreeMap<Key, Document>) -> bool {
    let part = |document: &Document| (document.uid.clone(), document.present.generation);
    before.len() == now.len()
        && before.iter().all(|(key, document)| {
            now.get(key).is_some_and(|other| {
                part(document) == part(other) && document.present == other.present
            })
        })
}

/// Why the cluster cannot be used as a source.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither a pod's service account nor a kubeconfig was found.
    #[error("no cluster configuration was found: {0}")]
    Where(#[from] Box<kube::config::InferConfigError>),
    /// Its address, certificates or credentials are not valid.
    #[error("the cluster configuration cannot be used: {0}")]
    Client(Box<kube::Error>),
    /// A panic while the first mesh was compiled.
    #[error("the first mesh cannot be compiled: {0}")]
    Compile(#[from] tokio::task::JoinError),
    /// It was shut down before it started.
    #[error("shut down while waiting for the cluster")]
    Ended,
}
