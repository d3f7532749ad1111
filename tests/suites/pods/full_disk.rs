//! A state directory on a file system without free space.

use std::{
    ffi::OsStr,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use http::StatusCode;
use merlon_tests::{Mesh, rights, until};

/// A small file system of its own for a directory, whose files it takes over.
struct SmallDisk {
    directory: PathBuf,
}

impl SmallDisk {
    fn of(directory: PathBuf) -> Self {
        let files: Vec<_> = fs::read_dir(&directory)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            // The socket of the proxy's administration is there too.
            .filter(|path| path.is_file())
            .map(|path| (path.clone(), fs::read(path).expect("a file")))
            .collect();
        let options = ["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"].map(OsStr::new);
        run(Command::new("mount").args(options).arg(&directory));
        let disk = Self { directory };
        for (path, content) in files {
            fs::write(path, content).expect("space for it");
        }
        disk
    }

    fn filler(&self) -> PathBuf {
        self.directory.join("filler")
    }

    /// Uses all the space that is left.
    fn fill(&self) {
        let error =
            fs::write(self.filler(), vec![0; 2 << 20]).expect_err("it is larger than the disk");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    }

    fn free(&self) {
        fs::remove_file(self.filler()).expect("the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The proxy may still have a file of it open.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.directory)
            .status();
    }
}

fn run(command: &mut Command) {
    let ended = command.output().expect("it starts");
    assert!(ended.status.success(), "{command:?}: {ended:?}");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    entries
        .map(|entry| name(entry).to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn on_a_full_disk_a_proxy_enforces_changes_and_reports_that_it_cannot_save_them() {
    if !rights::has_root("those of a full disk", "a file system") {
        return;
    }
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/first/**")
        .start()
        .await;
    let (web, orders) = (mesh.as_workload("web"), mesh.sidecar("orders"));
    web.get("orders", "/first/1").await.is_ok();
    // A write that has started would end on the file system below.
    let directory = mesh.folder().join("orders");
    until("the first state is saved", async || {
        let names = names(&directory);
        names.iter().any(|name| name == "snapshot.json")
            && !names.iter().any(|name| name.ends_with(".next"))
    })
    .await;
    let disk = SmallDisk::of(directory);
    let failed = mesh
        .metric(
            "orders",
            "merlon_state_writes_total",
            &[("result", "failed")],
        )
        .await;

    let permit_instead = async |from: &str, to: &str| {
        mesh.edit("orders-policy.yaml", from, to);
        until("the change is enforced", async || {
            web.get("orders", &format!("{to}1")).await.status == StatusCode::OK
        })
        .await;
    };

    disk.fill();
    permit_instead("/first/", "/second/").await;
    web.get("orders", "/first/2")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    failed.grew_by(1).await;
    let log = orders.process_log();
    let line = log
        .lines()
        .find(|line| line.contains("\"snapshot.not_saved\""));
    assert!(
        line.is_some_and(|line| line.contains("No space left on device")),
        "{log}"
    );
    // No partial file remains, and the previous state is whole.
    let unfinished = names(&disk.directory)
        .into_iter()
        .find(|name| name.ends_with(".next"));
    assert_eq!(unfinished, None);

    // The next change is saved: a restart without the control plane enforces it.
    let saved = mesh
        .metric("orders", "merlon_state_writes_total", &[("result", "ok")])
        .await;
    disk.free();
    permit_instead("/second/", "/third/").await;
    saved.grew_by(1).await;
    mesh.control_plane().kill9();
    orders.kill9();
    orders.start().await;
    web.get("orders", "/third/2").await.is_ok();
    web.get("orders", "/second/2")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(mesh.seen_at("orders", "/first/2").len(), 0);
    assert_eq!(mesh.seen_at("orders", "/second/2").len(), 0);
}
