//! The signal that ends open requests, streams and tunnels.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll, Waker},
};

/// Ends the requests, streams and tunnels that depend on it, once it is revoked.
#[derive(Debug, Default)]
pub(crate) struct Revocation {
    revoked: Cell<bool>,
    /// The waiting tasks: at most the response's, the request body's and the tunnel's at a time.
    waiting: RefCell<[Option<Waker>; 3]>,
    next: Cell<usize>,
}

impl Revocation {
    pub(crate) fn revoke(&self) {
        self.revoked.set(true);
        for waker in self.waiting.take().into_iter().flatten() {
            waker.wake();
        }
    }

    /// Whether it was revoked.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.get()
    }

    /// Wakes the task of `cx` when it is revoked.
    pub(crate) fn wake(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        let known = |waker: &Waker| waker.will_wake(cx.waker());
        if waiting.iter().flatten().any(known) {
            return;
        }
        let next = self.next.get();
        if let Some(slot) = waiting.get_mut(next) {
            *slot = Some(cx.waker().clone());
        }
        self.next.set((next + 1) % waiting.len());
    }

    /// Resolves when it is revoked.
    pub(crate) async fn revoked(&self) {
        std::future::poll_fn(|cx| {
            if self.is_revoked() {
                return Poll::Ready(());
            }
            self.wake(cx);
            Poll::Pending
        })
        .await;
    }
}
