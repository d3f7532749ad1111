//! How the source of resources is.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use merlon_config::report::{Problem, Report};
use serde::Serialize;

/// How the source is, as `GET /v1/status` tells.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SourceStatus {
    /// Where the files are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) directory: Option<PathBuf>,
    /// The API server of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<String>,
    /// When what is in force was read.
    pub(crate) accepted_at: Timestamp,
    /// When something was read that was refused; absent when the last reading was good.
    pub(crate) refused_at: Option<Timestamp>,
    /// Everything that is wrong in what was refused.
    pub(crate) problems: Vec<Problem>,
    /// What probably is not meant in what is in force.
    pub(crate) warnings: Vec<Problem>,
}

impl SourceStatus {
    /// Of a cluster of which nothing was read yet.
    pub(crate) fn of_cluster(server: &str) -> SharedStatus {
        Self {
            directory: None,
            cluster: Some(server.to_owned()),
            accepted_at: Timestamp::now(),
            refused_at: None,
            problems: Vec::new(),
            warnings: Vec::new(),
        }
        .into()
    }

    /// What a cluster's resources were found to be.
    pub(crate) fn evaluated(&mut self, problems: Report, taken: bool) {
        let now = Timestamp::now();
        if taken {
            self.accepted_at = now;
        }
        self.refused_at = problems.has_errors().then_some(now);
        self.problems = problems.into_iter().collect();
    }
}

/// The same, shared by who changes it and who tells it.
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
