//! Bounds the work that clients of the port can cause at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Slots for work that blocks a thread and takes memory. All large work shares one slot of its own and uses none of the
/// others.
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

    /// A pool with its own slots for small work, which shares the slot for large work.
    pub(super) fn sharing_large(&self, at_once: usize) -> Self {
        Self {
            small: Arc::new(Semaphore::new(at_once)),
            large: Arc::clone(&self.large),
        }
    }

    /// Waits for a slot and runs the work; `None`: it panicked. The work holds the slot until it ends, even if the
    /// caller gives up: work cannot be cancelled, so a client that reconnects repeatedly would otherwise start more and
    /// more.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        large: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let slots = match large {
            true => &self.large,
            false => &self.small,
        };
        let slot = Arc::clone(slots).acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let _slot = slot;
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
    async fn work_keeps_its_slot_until_it_ends_although_the_caller_gives_up() {
        let pool = WorkPool::new(1);
        let sharing_large = pool.sharing_large(1);
        for large in [false, true] {
            let (finish, may_finish) = mpsc::channel::<()>();
            let (started, has_started) = tokio::sync::oneshot::channel();
            let mut first = Box::pin(pool.run(large, move || {
                started.send(()).unwrap();
                may_finish.recv().unwrap();
            }));
            assert!(poll!(&mut first).is_pending());
            has_started.await.unwrap();
            drop(first);
            let mut second = Box::pin(pool.run(large, || 2));
            assert!(poll!(&mut second).is_pending());
            let mut other = Box::pin(sharing_large.run(large, || 3));
            if large {
                assert!(poll!(&mut other).is_pending());
            } else {
                assert_eq!(other.as_mut().await, Some(3));
            }
            // Work of the other size has its own slots.
            assert_eq!(pool.run(!large, || 4).await, Some(4));
            finish.send(()).unwrap();
            assert_eq!(second.await, Some(2));
        }
    }

    #[tokio::test]
    async fn work_that_panics_releases_its_slot() {
        let pool = WorkPool::new(1);
        let panics = || -> u8 { std::panic::panic_any("on purpose") };
        assert_eq!(pool.run(false, panics).await, None);
        assert_eq!(pool.run(false, || 2).await, Some(2));
    }
}
