//! Images of static programs, built without a container engine.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

/// An image of one layer.
#[derive(Debug)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    files: Vec<(PathBuf, PathBuf)>,
    applets: bool,
}

// The commands that tests use in a busybox container.
const APPLETS: [&str; 12] = [
    "sh", "wget", "httpd", "nslookup", "sleep", "cat", "nc", "id", "ls", "touch", "test", "true",
];

impl Image {
    /// An image with `program`, a static binary of this machine, at `path` and as its entrypoint.
    pub fn new(name: &str, program: &Path, path: &str) -> Self {
        Self {
            name: name.to_owned(),
            entrypoint: vec![path.to_owned()],
            files: Vec::new(),
            applets: false,
        }
        .file(program, path)
    }

    /// Adds a program of this machine and its shared libraries, at the same paths.
    ///
    /// # Panics
    /// If it does not exist.
    #[must_use]
    pub fn program(self, program: &Path) -> Self {
        let program = program.canonicalize().expect("a program");
        let listed = Command::new("ldd").arg(&program).output();
        let listed = listed.expect("`ldd` runs").stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let words = listed.split_whitespace();
        let libraries = words.filter(|word| word.starts_with('/')).map(Path::new);
        let all = libraries.chain([program.as_path()]);
        all.fold(self, |image, file| {
            image.file(file, &file.display().to_string())
        })
    }

    /// Adds a folder with its content.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn folder(mut self, from: &Path, path: &str) -> Self {
        let entries = fs::read_dir(from);
        let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        for entry in entries {
            let from = entry.expect("an entry").path();
            let name = from.file_name().expect("a name").to_string_lossy();
            let path = format!("{path}/{name}");
            self = match from.is_dir() {
                true => self.folder(&from, &path),
                false => self.file(&from, &path),
            };
        }
        self
    }

    /// Adds arguments to the entrypoint.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.entrypoint
            .extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, from: &Path, path: &str) -> Self {
        self.files
            .push((from.to_owned(), path.trim_start_matches('/').into()));
        self
    }

    /// Adds links to busybox for its commands, and removes the entrypoint.
    #[must_use]
    pub fn with_applets(mut self) -> Self {
        self.applets = true;
        self.entrypoint.clear();
        self
    }

    /// Writes it as an archive that containerd imports.
    ///
    /// # Panics
    /// When a file cannot be read or written.
    pub(super) fn write(&self, folder: &Path) -> PathBuf {
        let work = tempfile::tempdir_in(folder).expect("a folder");
        let tree = work.path().join("tree");
        for (from, path) in &self.files {
            let to = tree.join(path);
            fs::create_dir_all(to.parent().expect("a path inside the image")).expect("a folder");
            fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).expect("a file's mode");
        }
        let scratch = tree.join("tmp");
        fs::create_dir_all(&scratch).expect("a folder");
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o1777)).expect("a folder's mode");
        if self.applets {
            for applet in APPLETS {
                symlink("busybox", tree.join("bin").join(applet)).expect("a link");
            }
        }

        let layer = work.path().join("layer.tar");
        pack(&tree, &layer, &["."]);
        let identity = sha256(&fs::read(&layer).expect("the layer"));
        let settings = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": self.entrypoint, "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{identity}")] },
        })
        .to_string();
        let settings_name = format!("{}.json", sha256(settings.as_bytes()));
        fs::write(work.path().join(&settings_name), settings).expect("a file");
        let manifest = json!([{
            "Config": settings_name, "RepoTags": [self.name], "Layers": ["layer.tar"],
        }]);
        fs::write(work.path().join("manifest.json"), manifest.to_string()).expect("a file");
        let archive = folder.join(format!("{identity}.tar"));
        pack(
            work.path(),
            &archive,
            &["manifest.json", &settings_name, "layer.tar"],
        );
        archive
    }
}

fn pack(folder: &Path, archive: &Path, names: &[&str]) {
    let status = Command::new("tar")
        .args(["--numeric-owner", "--owner=0", "--group=0", "-cf"])
        .arg(archive)
        .arg("-C")
        .arg(folder)
        .args(names)
        .status()
        .expect("`tar` runs");
    assert!(status.success(), "tar {}: {status}", archive.display());
}

fn sha256(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

// The architecture's name in images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
