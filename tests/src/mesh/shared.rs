//! A mesh that several tests share.

use std::{future::Future, ops::Deref};

use tokio::sync::OnceCell;

use super::running::Mesh;

/// A mesh that the first test that needs it starts.
#[derive(Debug)]
pub struct Shared(OnceCell<Mesh>);

/// A test's handle of the mesh. Prints the output of its processes if the test fails.
#[derive(Debug)]
pub struct Guard(&'static Mesh);

impl Shared {
    /// A mesh that is not started yet.
    pub const fn new() -> Self {
        Self(OnceCell::const_new())
    }

    /// The mesh. Calls `start` if it is not started yet.
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
