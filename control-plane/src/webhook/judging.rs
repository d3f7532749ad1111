//! Work that whoever reaches the port may cause, a bounded amount of it at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Places for work that blocks a thread.
#[derive(Debug)]
pub(super) struct Judging(Arc<Semaphore>);

impl Judging {
    pub(super) fn new(at_once: usize) -> Self {
        Self(Arc::new(Semaphore::new(at_once)))
    }

    /// Waits for a place and does it there; `None`: it panicked. The place is the work's and not that of who waits for it:
    /// work cannot be stopped, and who asks and goes away again and again would have it pile up.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let place = Arc::clone(&self.0).acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::{FutureExt as _, poll};

    use super::*;

    #[tokio::test]
    async fn who_goes_away_leaves_the_place_to_the_work_until_that_is_done() {
        let judging = Judging::new(1);
        let (finish, may_finish) = mpsc::channel::<()>();
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let mut first = Box::pin(judging.run(move || {
            began.send(()).unwrap();
            may_finish.recv().unwrap();
        }));
        assert!(poll!(&mut first).is_pending());
        has_begun.await.unwrap();
        drop(first);
        let mut second = Box::pin(judging.run(|| 2));
        assert!(poll!(&mut second).is_pending());
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(judging.0.available_permits(), 0);
        finish.send(()).unwrap();
        assert_eq!(second.await, Some(2));
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_place_back() {
        let judging = Judging::new(1);
        let panics = || -> u8 { std::panic::panic_any("on purpose") };
        assert_eq!(judging.run(panics).await, None);
        assert_eq!(judging.run(|| 2).await, Some(2));
    }
}
