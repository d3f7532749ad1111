//! Resources from a directory of files. The directory is applied as a whole, and read again after every change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use merlon_compile::{Compiler, Mesh};
use merlon_config::{
    clock,
    load::read_dir,
    report::{Problem, Report, Severity},
    watch::watch_dir,
};
use tokio_util::sync::CancellationToken;

use super::{
    ended,
    status::{SharedStatus, SourceStatus},
};
use crate::{
    state::snapshot::Snapshots,
    telemetry::metrics::{LoadLabel, Metrics},
};

/// Maximum number of problems that are logged. The status has all of them.
const LOGGED: usize = 50;

/// A directory as the source of resources.
#[derive(Debug)]
pub(crate) struct Files {
    directory: PathBuf,
    compiler: Compiler,
    status: SharedStatus,
    metrics: Metrics,
    refused: Option<Report>,
}

impl Files {
    /// Reads the directory for the first time.
    ///
    /// # Errors
    /// All problems in it.
    pub(crate) fn open(directory: &Path, metrics: Metrics) -> Result<(Self, Arc<Mesh>), Report> {
        let mut compiler = Compiler::new();
        let (mesh, warnings) = read(directory, &mut compiler)?;
        log_warnings(&warnings);
        metrics
            .config_loads
            .get_or_create(&LoadLabel { result: "accepted" })
            .inc();
        let status = SourceStatus {
            directory: Some(directory.to_owned()),
            cluster: None,
            accepted_at: clock::now(),
            refused_at: None,
            problems: Vec::new(),
            warnings,
        };
        let files = Self {
            directory: directory.to_owned(),
            compiler,
            status: status.into(),
            metrics,
            refused: None,
        };
        Ok((files, mesh))
    }

    pub(crate) fn status(&self) -> SharedStatus {
        self.status.clone()
    }

    /// Publishes every valid change until `shutdown`.
    pub(crate) async fn follow(mut self, snapshots: Snapshots, shutdown: CancellationToken) {
        let mut changes = watch_dir(&self.directory);
        loop {
            tokio::select! {
                () = changes.next() => {}
                () = shutdown.cancelled() => return,
            }
            let running = snapshots.mesh();
            // Reading and compiling a large mesh takes time and must not block the streams.
            let done = tokio::task::spawn_blocking(move || {
                let found = self.read_again(&running);
                (self, found)
            });
            let mesh;
            (self, mesh) = match done.await {
                Ok(done) => done,
                Err(error) => return ended(error),
            };
            if let Some(mesh) = mesh {
                let _ = snapshots.publish_mesh(mesh);
            }
        }
    }

    fn read_again(&mut self, running: &Mesh) -> Option<Arc<Mesh>> {
        let place = self.directory.display().to_string();
        let found = read(&self.directory, &mut self.compiler).and_then(|(mesh, warnings)| {
            same_mesh(running, &mesh, &place).map(|()| (mesh, warnings))
        });
        let result = if found.is_ok() { "accepted" } else { "refused" };
        self.metrics
            .config_loads
            .get_or_create(&LoadLabel { result })
            .inc();
        match found {
            Ok((mesh, warnings)) => {
                self.accepted(&mesh, warnings);
                Some(mesh)
            }
            Err(report) => {
                self.refuse(report);
                None
            }
        }
    }

    fn accepted(&mut self, mesh: &Mesh, warnings: Vec<Problem>) {
        self.refused = None;
        self.metrics.config_problems.set(0);
        let mut status = self.status.lock();
        if status.warnings != warnings {
            log_warnings(&warnings);
        }
        status.accepted_at = clock::now();
        status.refused_at = None;
        status.problems.clear();
        status.warnings = warnings;
        tracing::info!(
            services = mesh.destination_names().count(),
            proxies = mesh.proxies().count(),
            "config.accepted"
        );
    }

    fn refuse(&mut self, report: Report) {
        let errors = report.count(Severity::Error);
        self.metrics
            .config_problems
            .set(i64::try_from(errors).unwrap_or(i64::MAX));
        // An unchanged report is logged once, because editors may save a file twice.
        if self.refused.as_ref() != Some(&report) {
            tracing::error!(
                directory = %self.directory.display(),
                problems = errors,
                "config.refused"
            );
            for problem in report.problems().iter().take(LOGGED) {
                log_problem(problem);
            }
        }
        let mut status = self.status.lock();
        status.refused_at = Some(clock::now());
        status.problems = report.problems().to_vec();
        drop(status);
        self.refused = Some(report);
    }
}

fn read(directory: &Path, compiler: &mut Compiler) -> Result<(Arc<Mesh>, Vec<Problem>), Report> {
    let (resources, mesh) = compiler.compile_loaded(read_dir(directory))?;
    Ok((mesh, resources.warnings.problems().to_vec()))
}

/// Refuses a change of trust domain or root namespace. Every identity contains them, so proxies could no longer
/// authenticate the control plane.
pub(crate) fn same_mesh(running: &Mesh, new: &Mesh, place: &str) -> Result<(), Report> {
    let (old, new) = (running.state(), new.state());
    let mut report = Report::new();
    let mut changed = |field: &str, old: &str, new: &str| {
        if old != new {
            let message = format!(
                "`{field}` cannot change from `{old}` to `{new}` while the mesh is running"
            );
            let problem = Problem::error(place, message).field(field);
            report.push(
                problem
                    .hint("a new mesh requires a new control plane with its own state directory"),
            );
        }
    };
    changed(
        "spec.trustDomain",
        old.trust_domain.as_str(),
        new.trust_domain.as_str(),
    );
    changed(
        "spec.rootNamespace",
        old.root_namespace.as_str(),
        new.root_namespace.as_str(),
    );
    if report.is_empty() {
        Ok(())
    } else {
        Err(report)
    }
}

fn log_problem(problem: &Problem) {
    tracing::error!(
        file = problem.file,
        line = problem.line,
        column = problem.column,
        field = problem.field,
        problem = problem.message,
        hint = problem.hint,
        "config.problem"
    );
}

fn log_warnings(warnings: &[Problem]) {
    for warning in warnings.iter().take(LOGGED) {
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
}
