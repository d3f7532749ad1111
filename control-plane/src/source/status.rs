//! The status of the source of resources.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use merlon_config::clock;
use merlon_config::report::{Problem, Report};
use serde::Serialize;

/// The source's status, as in `GET /v1/status`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SourceStatus {
    /// The directory of the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) directory: Option<PathBuf>,
    /// The API server of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<String>,
    /// When the resources in force were read.
    pub(crate) accepted_at: Timestamp,
    /// When resources were last refused. Absent if the last ones were accepted.
    pub(crate) refused_at: Option<Timestamp>,
    /// All problems of the refused resources.
    pub(crate) problems: Vec<Problem>,
    /// Warnings about the resources in force.
    pub(crate) warnings: Vec<Problem>,
}

impl SourceStatus {
    /// The status of a cluster that has not been read yet.
    pub(crate) fn of_cluster(server: &str) -> SharedStatus {
        Self {
            directory: None,
            cluster: Some(server.to_owned()),
            accepted_at: clock::now(),
            refused_at: None,
            problems: Vec::new(),
            warnings: Vec::new(),
        }
        .into()
    }

    /// Records the result for a cluster's resources.
    pub(crate) fn evaluated(&mut self, problems: Report, accepted: bool) {
        let now = clock::now();
        if accepted {
            self.accepted_at = now;
        }
        self.refused_at = problems.has_errors().then_some(now);
        self.problems = problems.into_iter().collect();
    }
}

/// The status, shared by the source and the admin API.
#[derive(Debug, Clone)]
pub(crate) struct SharedStatus(Arc<Mutex<SourceStatus>>);

impl SharedStatus {
    pub(crate) fn lock(&self) -> MutexGuard<'_, SourceStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<SourceStatus> for SharedStatus {
    fn from(status: SourceStatus) -> Self {
        Self(Arc::new(Mutex::new(status)))
    }
}
