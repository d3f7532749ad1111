//! The clock of a mesh's processes. That of the test, and of other servers, is the machine's.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::running::Mesh;
use crate::wait;

/// The clock of all processes of a mesh that was built with `MeshBuilder::clock`. A process that starts later has it too.
#[derive(Debug, Clone, Copy)]
pub struct Clock<'m>(&'m Mesh);

impl Mesh {
    /// The clock, to set it.
    pub fn clock(&self) -> Clock<'_> {
        Clock(self)
    }
}

impl Clock<'_> {
    /// Sets it forward, and waits until all running processes have the new time.
    pub async fn forward(self, by: Duration) {
        self.add(seconds(by)).await;
    }

    /// Sets it back, and waits until all running processes have the new time.
    pub async fn backward(self, by: Duration) {
        self.add(-seconds(by)).await;
    }

    async fn add(self, seconds: i64) {
        let file = file(self.0.folder());
        let before = std::fs::read_to_string(&file).expect("a mesh with `MeshBuilder::clock`");
        let before: i64 = before.parse().expect("a number");
        set(&file, before + seconds);
        let what = format!("all processes have a clock that is off by {before} + {seconds} s");
        wait::until(what, async || {
            let sidecars = self.0.sidecars().filter_map(|(_, sidecar)| sidecar.pid());
            let mut all = sidecars.chain(self.0.control_plane().pid());
            all.all(|pid| in_force(&file, pid) == Some(before + seconds))
        })
        .await;
    }
}

/// The file of `--test-clock`.
pub(super) fn file(folder: &Path) -> PathBuf {
    folder.join("clock")
}

/// Writes the file of `--test-clock` in one step, because processes read it at any time.
pub(super) fn set(file: &Path, offset: i64) {
    let new = file.with_extension("new");
    std::fs::write(&new, offset.to_string()).expect("a file");
    std::fs::rename(&new, file).expect("a file");
}

/// The offset that a process has in force.
fn in_force(file: &Path, pid: u32) -> Option<i64> {
    let text = std::fs::read_to_string(file.with_extension(pid.to_string())).ok()?;
    text.parse().ok()
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).expect("a number of seconds")
}
