//! Sources of resources.

mod files;
pub(crate) mod kubernetes;
mod status;

use tokio::task::JoinError;

pub(crate) use files::Files;
pub(crate) use status::SharedStatus;

/// Continues the panic of a task that followed its source, so that the process ends. Otherwise the last state would be served
/// forever.
fn ended(error: JoinError) {
    if let Ok(panic) = error.try_into_panic() {
        std::panic::resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use merlon_config::contain::contain;

    use super::*;

    #[tokio::test]
    async fn a_panic_of_a_follower_continues_in_its_task() {
        let error = tokio::spawn(async { panic!("on purpose") })
            .await
            .unwrap_err();
        assert_eq!(contain(|| ended(error)), Err("on purpose".to_owned()));
    }

    #[tokio::test]
    async fn the_end_of_the_runtime_is_no_panic() {
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        ended(task.await.unwrap_err());
    }
}
