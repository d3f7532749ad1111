//! The signal that ends open requests, streams and tunnels.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll, Waker},
};

/// Ends the requests, streams and tunnels that depend on it, once it is pulled.
#[derive(Debug, Default)]
pub(crate) struct Revocation {
    pulled: Cell<bool>,
    /// The waiting tasks: at most the response's, the request body's and the tunnel's at a time.
    waiting: RefCell<[Option<Waker>; 3]>,
    next: Cell<usize>,
}

impl Revocation {
    pub(crate) fn pull(&self) {
        self.pulled.set(true);
        for waker in self.waiting.take().into_iter().flatten() {
            waker.wake();
        }
    }

    /// Whether it was pulled.
    pub(crate) fn is_pulled(&self) -> bool {
        self.pulled.get()
    }

    /// Wakes the task of `cx` when it is pulled.
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

    /// Resolves when it is pulled.
    pub(crate) async fn pulled(&self) {
        std::future::poll_fn(|cx| {
            if self.is_pulled() {
                return Poll::Ready(());
            }
            self.wake(cx);
            Poll::Pending
        })
        .await;
    }
}
