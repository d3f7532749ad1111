//! A mesh that several tests use.

use std::{future::Future, ops::Deref};

use tokio::sync::OnceCell;

use super::Mesh;

/// A mesh that is started by the first test that needs it.
#[derive(Debug)]
pub struct Shared(OnceCell<Mesh>);

/// The mesh, for one test: shows what its processes said when that test fails.
#[derive(Debug)]
pub struct Guard(&'static Mesh);

impl Shared {
    /// Not started.
    pub const fn new() -> Self {
        Self(OnceCell::const_new())
    }

    /// The mesh, which `start` makes if nobody did before.
    pub async fn get<F: Future<Output = Mesh>>(&'static self, start: impl FnOnce() -> F) -> Guard {
        Guard(self.0.get_or_init(start).await)
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Guard {
    type Target = Mesh;

    fn deref(&self) -> &Mesh {
        self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?}", self.0);
        }
    }
}
