//! The requests that programs have received.

use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderMap, Method, Version};

/// A request as a program received it.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The HTTP version.
    pub version: Version,
    /// The headers.
    pub headers: HeaderMap,
}

/// The requests that a program has received.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestLog(Arc<Mutex<Vec<Request>>>);

impl RequestLog {
    pub(super) fn add(&self, request: Request) {
        self.lock().push(request);
    }

    /// All requests.
    pub(super) fn all(&self) -> Vec<Request> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
