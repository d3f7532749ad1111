//! Asking for a destination that the snapshot does not have.

use std::{sync::Arc, time::Duration};

use merlon_config::{name::ServiceName, snapshot::Destination};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

/// The workers' end: ask, and wait a bounded time.
#[derive(Debug, Clone)]
pub struct Destinations {
    asks: mpsc::Sender<Ask>,
}

/// One question on its way to the control thread.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) name: ServiceName,
    pub(crate) answer: oneshot::Sender<Answer>,
}

pub(crate) type Answer = Result<Arc<Destination>, AskError>;

/// Why there is no destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The mesh has no such service: 404 (`outbound.unknown`).
    #[error("the mesh has no such service")]
    Unknown,
    /// Nobody could tell in time: the control plane is away, or too much is asked at once. 503 (`config.unavailable`).
    #[error("the control plane did not say in time whether there is such a service")]
    Unavailable,
}

/// How long a caller waits for a destination that is asked for the first time.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Questions that may wait at once; more are answered [`AskError::Unavailable`] at once.
const WAITING: usize = 1_024;

impl Destinations {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, questions) = mpsc::channel(WAITING);
        (Self { asks }, questions)
    }

    /// Subscribes to `name` and resolves once the state that contains it is in force, at the latest after
    /// [`PATIENCE`]. Look into the snapshot first; concurrent questions for one name are one subscription.
    ///
    /// # Errors
    /// [`AskError::Unknown`] when there is no such service, [`AskError::Unavailable`] when nobody could tell.
    pub async fn ask(&self, name: ServiceName) -> Result<Arc<Destination>, AskError> {
        let (answer, reply) = oneshot::channel();
        let asked = self.asks.try_send(Ask { name, answer });
        asked.map_err(|_| AskError::Unavailable)?;
        match time::timeout(PATIENCE, reply).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(AskError::Unavailable),
        }
    }
}
