//! The open requests of one HTTP/2 connection. hyper closes idle HTTP/1 connections itself, but not these.

use std::{cell::Cell, rc::Rc, time::Duration};

use tokio::time::{Instant, sleep_until};

/// Counts the open requests, WebSockets included.
#[derive(Debug)]
pub(crate) struct OpenRequests {
    open: Cell<usize>,
    /// When the last one ended, or the connection was opened.
    idle_since: Cell<Instant>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenRequest(Rc<OpenRequests>);

impl OpenRequests {
    /// Of a new connection.
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            open: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
        })
    }

    /// Counts a request.
    pub(crate) fn begin(self: &Rc<Self>) -> OpenRequest {
        self.open.set(self.open.get() + 1);
        OpenRequest(Rc::clone(self))
    }

    /// Resolves when no request was open for this time, from now on. A request costs no timer: the count is looked at
    /// when the time may have passed.
    pub(crate) async fn idle_for(&self, time: Duration) {
        let start = Instant::now();
        loop {
            let since = match self.open.get() {
                0 => self.idle_since.get().max(start),
                _ => Instant::now(),
            };
            let due = since + time;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let OpenRequests { open, idle_since } = &*self.0;
        open.set(open.get().saturating_sub(1));
        if open.get() == 0 {
            idle_since.set(Instant::now());
        }
    }
}
