//! The tasks of the process.

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Starts tasks that the shutdown waits for. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    all: TaskTracker,
    shutdown: CancellationToken,
    ended: watch::Sender<Option<String>>,
}

impl Tasks {
    pub(crate) fn new(shutdown: CancellationToken) -> Self {
        Self {
            all: TaskTracker::new(),
            shutdown,
            ended: watch::Sender::new(None),
        }
    }

    /// Starts a task that may end at any time.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.all.spawn(task);
    }

    /// Starts a task that runs until the shutdown. `doing` is what it does: without it, the process would serve an old state
    /// forever.
    pub(crate) fn spawn_lasting(
        &self,
        doing: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let (ended, shutdown) = (self.ended.clone(), self.shutdown.clone());
        let task = tokio::spawn(self.all.track_future(task));
        self.all.spawn(async move {
            let why = match task.await {
                Ok(()) => "it returned".to_owned(),
                Err(error) => error.to_string(),
            };
            // During the shutdown all of them end.
            if !shutdown.is_cancelled() {
                ended.send_replace(Some(format!("{doing}: {why}")));
            }
        });
    }

    /// Waits until a lasting task ends before the shutdown. Returns which one, and why.
    pub(crate) async fn first_end(&self) -> String {
        let mut ended = self.ended.subscribe();
        // This holds a sender, so there is no error.
        let ended = ended.wait_for(Option::is_some).await;
        ended.map_or_else(|_| String::new(), |ended| ended.clone().unwrap_or_default())
    }

    /// Waits until all tasks have ended.
    pub(crate) async fn finished(&self) {
        self.all.close();
        self.all.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lasting_task_that_ends_before_the_shutdown_is_named_with_the_reason() {
        let tasks = Tasks::new(CancellationToken::new());
        tasks.spawn(async {});
        tasks.spawn_lasting("waiting", std::future::pending());
        tasks.spawn_lasting("following", async { panic!("on purpose") });
        let ended = tasks.first_end().await;
        assert!(ended.starts_with("following: "), "{ended}");
        assert!(ended.contains("on purpose"), "{ended}");

        let tasks = Tasks::new(CancellationToken::new());
        tasks.spawn_lasting("following", async {});
        assert_eq!(tasks.first_end().await, "following: it returned");
    }

    #[tokio::test]
    async fn the_end_of_a_task_during_the_shutdown_is_no_failure() {
        let shutdown = CancellationToken::new();
        let tasks = Tasks::new(shutdown.clone());
        tasks.spawn_lasting("following", shutdown.clone().cancelled_owned());
        shutdown.cancel();
        tasks.finished().await;
        assert_eq!(*tasks.ended.borrow(), None);
    }
}
