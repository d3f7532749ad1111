//! State from resource files, without a control plane.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use merlon_certs::unix_now;
use merlon_compile::{Compiler, Mesh, Proxy, StateResource, Wanted};
use merlon_config::{
    contain::{self, contain},
    load::read_dir,
    report::{Problem, Report},
    snapshot::{Destination, ResourceKind, Version},
    watch::watch_dir,
};
use tokio::{sync::mpsc, task, time};

use super::{
    assemble::{AssembleError, Assembler, HeldResource, Resources},
    identity::{files, publish},
    required_certificates::{report_permissive, report_standalone},
    snapshot_age::SnapshotAge,
};
use crate::{
    config::{IdentityFiles, Subject},
    state::{
        destinations::{LookupError, LookupRequest},
        readiness::Unready,
        shared::Shared,
        snapshot::Snapshot,
    },
    telemetry::metrics::{Metrics, Update},
};

/// How often the files of the identity are read.
const POLL: Duration = Duration::from_secs(2);

/// Watches a directory of resource files.
#[derive(Debug)]
pub(crate) struct Standalone {
    loader: Option<Loader>,
    directory: PathBuf,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    snapshot_age: SnapshotAge,
}

/// Reads and compiles files. It is expensive, so it moves to a blocking thread and back.
#[derive(Debug)]
struct Loader {
    directory: PathBuf,
    files: Option<IdentityFiles>,
    subject: Subject,
    compiler: Compiler,
    assembler: Option<Assembler>,
}

impl Standalone {
    /// Loads the directory and puts its state in force.
    ///
    /// # Errors
    /// All problems of the files.
    pub(crate) fn new(
        directory: &Path,
        files: Option<IdentityFiles>,
        subject: &Subject,
        shared: &Arc<Shared>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, Report> {
        let mut loader = Loader {
            directory: directory.to_owned(),
            files,
            subject: subject.clone(),
            compiler: Compiler::new(),
            assembler: None,
        };
        let snapshot = loader.load(None)?;
        let mut this = Self {
            directory: directory.to_owned(),
            loader: None,
            shared: Arc::clone(shared),
            metrics: Arc::clone(metrics),
            snapshot_age: SnapshotAge::default(),
        };
        if let Some(files) = &loader.files {
            let tls = files::load(files, snapshot.identity(), &snapshot.mesh.trust_domain);
            let tls =
                tls.map_err(|error| Report::from_iter([Problem::error("", error.to_string())]))?;
            publish::publish(&this.shared, &this.metrics, tls, unix_now());
        } else {
            report_standalone();
        }
        this.loader = Some(loader);
        this.publish(snapshot);
        Ok(this)
    }

    /// The age of the state.
    pub(crate) fn snapshot_age(&self) -> SnapshotAge {
        self.snapshot_age.clone()
    }

    /// Watches the directory and the files of the identity, and answers lookups, until the process ends.
    pub(crate) async fn run(mut self, mut lookups: mpsc::Receiver<LookupRequest>) {
        let mut changes = watch_dir(&self.directory);
        let mut poll = time::interval(POLL);
        loop {
            tokio::select! {
                () = changes.next() => self.reload().await,
                Some(request) = lookups.recv() => self.answer(request),
                _ = poll.tick() => self.reload_identity().await,
            }
        }
    }

    async fn reload(&mut self) {
        let Some(mut loader) = self.loader.take() else {
            return;
        };
        let before = self.shared.snapshot.load_full();
        let loaded = task::spawn_blocking(move || {
            let before = before.as_ref().as_ref();
            let loaded = contain(|| loader.load(before.map(Arc::as_ref)));
            let loaded = loaded.unwrap_or_else(|panic| {
                // A panic may leave a part of a state in it.
                loader.assembler = None;
                let problem = contain::problem("", "loading the directory", &panic);
                Err(Report::from_iter([problem]))
            });
            (loader, loaded)
        });
        // Only the end of the process cancels it.
        let Ok((loader, loaded)) = loaded.await else {
            return;
        };
        self.loader = Some(loader);
        match loaded {
            Ok(snapshot) => self.publish(snapshot),
            Err(report) => {
                self.metrics.snapshots.inc(Update::Refused);
                self.snapshot_age.stale();
                tracing::error!(
                    directory = %self.directory.display(),
                    problems = %report,
                    "config.refused"
                );
            }
        }
    }

    fn publish(&self, snapshot: Snapshot) {
        self.snapshot_age.confirmed();
        let before = self.shared.snapshot.load_full();
        if before
            .as_ref()
            .as_ref()
            .is_some_and(|before| before.version == snapshot.version)
        {
            return;
        }
        tracing::info!(
            version = snapshot.version.short(),
            resources = snapshot.resources.len(),
            "snapshot.accepted"
        );
        report_permissive(&self.shared, &snapshot);
        self.metrics
            .resources
            .set(i64::try_from(snapshot.resources.len()).unwrap_or(i64::MAX));
        self.metrics.snapshots.inc(Update::Accepted);
        self.shared.snapshot.publish(Some(Arc::new(snapshot)));
        self.shared.readiness.remove_reason(Unready::NoSnapshot);
    }

    /// The snapshot contains all destinations.
    fn answer(&self, request: LookupRequest) {
        let snapshot = self.shared.snapshot.load_full();
        let snapshot = snapshot.as_ref().as_ref();
        let found = snapshot.and_then(|snapshot| request.key.find(snapshot));
        // Fails if the request has timed out.
        let _ = request.reply.send(found.ok_or(LookupError::Unknown));
    }

    async fn reload_identity(&self) {
        let files = self.loader.as_ref().and_then(|loader| loader.files.clone());
        let snapshot = self.shared.snapshot.load_full();
        let (Some(files), Some(snapshot)) = (files, snapshot.as_ref().clone()) else {
            return;
        };
        let loaded = task::spawn_blocking(move || {
            files::load(&files, snapshot.identity(), &snapshot.mesh.trust_domain)
        });
        let Ok(loaded) = loaded.await else { return };
        match loaded {
            Ok(tls) => publish::publish(&self.shared, &self.metrics, tls, unix_now()),
            Err(error) => {
                tracing::error!(%error, "identity.rejected");
                publish::check_validity(&self.shared, unix_now());
            }
        }
    }
}

impl Loader {
    fn load(&mut self, before: Option<&Snapshot>) -> Result<Snapshot, Report> {
        let loaded = read_dir(&self.directory);
        let (resources, mesh) = self.compiler.compile_loaded(loaded)?;
        for warning in resources.warnings.problems() {
            tracing::warn!(
                file = warning.file,
                line = warning.line,
                column = warning.column,
                field = warning.field,
                problem = warning.message,
                hint = warning.hint,
                "config.warning"
            );
        }
        let proxy = self.proxy(&mesh)?;
        let everything = Wanted {
            services: mesh.destination_names().cloned().collect(),
            ..Wanted::default()
        };
        let mut state = mesh.proxy_state(&proxy, &everything);
        if let Some(files) = &self.files {
            let bundle = files::bundle(files, &mesh.state().trust_domain);
            let bundle = bundle
                .map_err(|error| Report::from_iter([Problem::error("", error.to_string())]))?;
            state.insert(Arc::new(StateResource::trust_bundle(&bundle)));
        }
        let version = state.manifest(proxy.identity()).version().clone();
        let plain = self.files.is_none();
        let resources: Resources = state
            .iter()
            .map(|resource| (resource.key().clone(), held(resource, plain)))
            .collect();
        let assembler = self
            .assembler
            .get_or_insert_with(|| Assembler::new(proxy.identity().clone()));
        assembler
            .assemble(version, &resources, before)
            .map_err(|error| report(&error))
    }

    fn proxy(&self, mesh: &Mesh) -> Result<Arc<Proxy>, Report> {
        let identity = mesh.state().trust_domain.spiffe_id(self.subject.identity());
        let workload = match &self.subject {
            Subject::Sidecar { workload, .. } => workload.clone(),
            Subject::Gateway { name, .. } => Some(name.name.to_string()),
        };
        let found = mesh.proxy(&identity, workload.as_deref());
        found.cloned().map_err(|error| {
            let directory = self.directory.display().to_string();
            let known: Vec<String> = mesh
                .proxies()
                .take(16)
                .map(|proxy| format!("`{}`", proxy.identity().workload()))
                .collect();
            let problem = Problem::error(directory, error.to_string());
            let hint = match known.as_slice() {
                [] => "the files contain no Workload and no Gateway".to_owned(),
                known => format!("the files contain {}", known.join(", ")),
            };
            Report::from_iter([problem.hint(hint)])
        })
    }
}

/// Converts a resource. Without identities, endpoints of the mesh are reached by plain connections.
fn held(resource: &StateResource, plain: bool) -> HeldResource {
    let as_is = || HeldResource {
        version: resource.version().clone(),
        json: Bytes::copy_from_slice(resource.json()),
    };
    if !plain || resource.key().kind != ResourceKind::Destination {
        return as_is();
    }
    let Ok(mut destination) = serde_json::from_slice::<Destination>(resource.json()) else {
        return as_is();
    };
    for endpoint in &mut destination.endpoints {
        endpoint.identity = None;
    }
    serde_json::to_vec(&destination).map_or_else(
        |_| as_is(),
        |json| HeldResource {
            version: Version::of(&json),
            json: json.into(),
        },
    )
}

fn report(error: &AssembleError) -> Report {
    Report::from_iter([Problem::error("", error.to_string())])
}
