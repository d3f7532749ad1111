//! Stub.
use crate::state::Worker;
/// Stub.
pub async fn run(worker: Worker) {
    worker.shutdown.drain.cancelled().await
}
