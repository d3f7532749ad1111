//! Work that whoever reaches the port may cause, a bounded amount of it at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Places for work that blocks a thread, and takes memory for what it reads.
#[derive(Debug)]
pub(super) struct Judging {
    places: Arc<Semaphore>,
    all: u32,
}

/// How much of it one piece of work needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    One,
    /// Nothing else is done meanwhile.
    All,
}

impl Judging {
    pub(super) fn new(at_once: u32) -> Self {
        Self {
            places: Arc::new(Semaphore::new(at_once as usize)),
            all: at_once,
        }
    }

    /// Waits for a place and does it there; `None`: it panicked. The place is the work's and not that of who waits for it:
    /// work cannot be stopped, and who asks and goes away again and again would have it pile up.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        needs: Needs,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let places = match needs {
            Needs::One => 1,
            Needs::All => self.all,
        };
        let place = Arc::clone(&self.places).acquire_many_owned(places);
        let place = place.await.ok()?;
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
        let judging = Judging::new(2);
        let (finish, may_finish) = mpsc::channel::<()>();
        let (began, has_begun) = tokio::sync::oneshot::channel();
        let mut first = Box::pin(judging.run(Needs::All, move || {
            began.send(()).unwrap();
            may_finish.recv().unwrap();
        }));
        assert!(poll!(&mut first).is_pending());
        has_begun.await.unwrap();
        drop(first);
        let mut second = Box::pin(judging.run(Needs::One, || 2));
        assert!(poll!(&mut second).is_pending());
        assert_eq!(judging.places.available_permits(), 0);
        finish.send(()).unwrap();
        assert_eq!(second.await, Some(2));
    }

    #[tokio::test]
    async fn work_that_panics_gives_its_place_back() {
        let judging = Judging::new(1);
        let panics = || -> u8 { std::panic::panic_any("on purpose") };
        assert_eq!(judging.run(Needs::One, panics).await, None);
        assert_eq!(judging.run(Needs::All, || 2).await, Some(2));
    }
}
