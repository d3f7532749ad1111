//! Work that whoever reaches the port may cause, a bounded amount of it at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Places for work that blocks a thread, and takes memory for what it reads. What is large has one place for itself, whoever
/// does it, and takes none of the others.
#[derive(Debug, Clone)]
pub(super) struct WorkPool {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl WorkPool {
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            small: Arc::new(Semaphore::new(at_once)),
            large: Arc::new(Semaphore::new(1)),
        }
    }

    /// Other places for what is small, and the same one for what is large.
    pub(super) fn sharing_large(&self, at_once: usize) -> Self {
        Self {
            small: Arc::new(Semaphore::new(at_once)),
            large: Arc::clone(&self.large),
        }
    }

    /// Waits for a place and does it there; `None`: it panicked. The place is the work's and not that of who waits for it:
    /// work cannot be stopped, and who asks and goes away again and again would have it pile up.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        large: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let places = match large {
            true => &self.large,
            false => &self.small,
        };
        let place = Arc::clone(places).acquire_owned().await.ok()?;
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

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn who_goes_away_leaves_the_place_to_the_work_until_that_is_done() {
        let judging = WorkPool::new(1);
        let sharing_large = judging.sharing_large(1);
        for large in [false, true] {
            let (finish, may_finish) = mpsc::channel::<()>();
            let (began, has_begun) = tokio::sync::oneshot::channel();
            let mut first = Box::pin(judging.run(large, move || {
                began.send(()).unwrap();
                may_finish.recv().unwrap();
            }));
            assert!(poll!(&mut first).is_pending());
            has_begun.await.unwrap();
            drop(first);
            let mut second = Box::pin(judging.run(large, || 2));
            assert!(poll!(&mut second).is_pending());
            let mut other = Box::pin(sharing_large.run(large, || 3));
            if large {
                assert!(poll!(&mut other).is_pending());
            } else {
                assert_eq!(other.as_mut().await, Some(3));
            }
            // What is of the other size has its own.
            assert_eq!(judging.run(!large, || 4).await, Some(4));
            finish.send(()).unwrap();
            assert_eq!(second.await, Some(2));
        }
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_place_back() {
        let judging = WorkPool::new(1);
        let panics = || -> u8 { std::panic::panic_any("on purpose") };
        assert_eq!(judging.run(false, panics).await, None);
        assert_eq!(judging.run(false, || 2).await, Some(2));
    }
}
