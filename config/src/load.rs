//! Loads files into resources: either all of them, or a report of every problem in any file.

mod reader;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use self::reader::DocumentReader;
use crate::{
    check::{self, Checked, Declaration},
    contain::{self, contain},
    document::{self, MAX_BYTES},
    name::{Namespace, ResourceName},
    report::{Problem, Report},
    resource::{AuthorizationPolicySpec, KINDS, Resource, Spec},
    resources::{File, Resources, Source},
};

/// Reads every `.yaml`, `.yml` and `.cedar` file below a directory, in order of path.
///
/// Names that begin with a dot are ignored: Kubernetes keeps the real files of a mounted ConfigMap there, and the visible
/// names are links to them. A `.cedar` file is one `AuthorizationPolicy`: the name of its folder is the namespace
/// (`default` for files directly in the directory), and its own name without the extension is the policy's name. It has no
/// `targetRefs`, so it applies to its namespace.
///
/// # Errors
/// All problems in all files.
pub fn load_dir(directory: &Path) -> Result<Resources, Report> {
    read_dir(directory).into_result()
}

/// Like [`load_dir`], but also returns the resources of a load with errors, so that the caller can find more problems.
pub fn read_dir(directory: &Path) -> Loaded {
    let mut report = Report::new();
    let mut files = Vec::new();
    let mut folders = vec![(directory.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        if let Err(error) = list(&folder, depth, &mut folders, &mut files) {
            let message = format!("this directory cannot be read: {error}");
            report.push(Problem::error(folder.display().to_string(), message));
        }
    }
    files.sort();
    let mut texts = Vec::new();
    for path in files {
        let name = path.strip_prefix(directory).unwrap_or(&path);
        let name = name.display().to_string();
        match text_of(&path) {
            Ok(text) => texts.push((name, text)),
            Err(message) => report.push(Problem::error(name, message)),
        }
    }
    let input = Input {
        texts,
        ..Input::default()
    };
    load(&directory.display().to_string(), input, report)
}

/// Loads files in memory, each with its name.
///
/// # Errors
/// All problems in all files.
pub fn load_texts<N: Into<String>, T: Into<String>>(
    texts: impl IntoIterator<Item = (N, T)>,
) -> Result<Resources, Report> {
    read_texts(texts).into_result()
}

/// Like [`load_texts`], but also returns the resources of a load with errors, so that the caller can find more problems.
pub fn read_texts<N: Into<String>, T: Into<String>>(
    texts: impl IntoIterator<Item = (N, T)>,
) -> Loaded {
    let texts = texts
        .into_iter()
        .map(|(name, text)| (name.into(), text.into()))
        .collect();
    let input = Input {
        texts,
        ..Input::default()
    };
    load("resources", input, Report::new())
}

/// Reads the resources of a cluster: the documents that users wrote, and the Workloads and Services that are derived from
/// the cluster's pods and Services.
///
/// The target of a policy may be created later or may have been deleted, so a missing target is a warning, not an error.
pub fn read_cluster<N: Into<String>, T: Into<String>>(
    texts: impl IntoIterator<Item = (N, T)>,
    derived: Vec<Resource>,
) -> Loaded {
    let texts = texts.into_iter();
    let input = Input {
        texts: texts
            .map(|(name, text)| (name.into(), text.into()))
            .collect(),
        derived,
        allow_missing_targets: true,
    };
    load("the cluster", input, Report::new())
}

/// What is loaded.
#[derive(Default)]
struct Input {
    /// The content of each file, with its name.
    texts: Vec<(String, String)>,
    /// Resources that are not written in files.
    derived: Vec<Resource>,
    allow_missing_targets: bool,
}

/// Maximum nesting of folders, so that a link to a parent folder does not cause an endless loop.
const MAX_FOLDER_DEPTH: usize = 16;

/// Maximum size of a file, in bytes. A file may hold several documents.
const MAX_FILE_BYTES: u64 = 16 << 20;

fn list(
    folder: &Path,
    depth: usize,
    folders: &mut Vec<(PathBuf, usize)>,
    files: &mut Vec<PathBuf>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or(".");
        if name.starts_with('.') {
            continue;
        }
        // Follows links. A file that is removed after the directory was listed is ignored.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() && depth < MAX_FOLDER_DEPTH {
            folders.push((path, depth + 1));
        // Reading a pipe or a device could block forever.
        } else if kind_of_file(&path).is_some() && metadata.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

enum FileKind {
    Yaml,
    Cedar,
}

fn kind_of_file(path: &Path) -> Option<FileKind> {
    match path.extension()?.to_str()? {
        "yaml" | "yml" => Some(FileKind::Yaml),
        "cedar" => Some(FileKind::Cedar),
        _ => None,
    }
}

pub(crate) fn text_of(path: &Path) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("this file cannot be read: {error}");
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!(
            "this file has {size} bytes; the maximum is {MAX_FILE_BYTES} (16MiB)"
        ));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error
            .as_bytes()
            .iter()
            .take(error.utf8_error().valid_up_to());
        let line = good.filter(|byte| **byte == b'\n').count() + 1;
        format!("this file is not UTF-8 text: see line {line}")
    })
}

/// What could be read, and all problems.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Every document that could be read. They must not be used if the report has errors.
    pub resources: Resources,
    /// Errors and warnings.
    pub report: Report,
    /// Kinds of which a document could not be read. `None` if there is a document whose kind is unknown.
    unread: Option<Vec<&'static str>>,
}

impl Loaded {
    /// The resources with their warnings.
    ///
    /// # Errors
    /// The report, if it has errors.
    pub fn into_result(self) -> Result<Resources, Report> {
        if self.report.has_errors() {
            return Err(self.report);
        }
        Ok(Resources {
            warnings: self.report,
            ..self.resources
        })
    }

    /// Whether every document of these kinds could be read, so that their declarations are complete.
    pub fn all_read(&self, kinds: &[&str]) -> bool {
        let unread = self.unread.as_ref();
        unread.is_some_and(|unread| !unread.iter().any(|kind| kinds.contains(kind)))
    }
}

fn load(place: &str, input: Input, mut report: Report) -> Loaded {
    let mut loader = Loader {
        // A file that cannot be read may declare resources that others refer to.
        complete: !report.has_errors(),
        ..Loader::default()
    };
    for resource in input.derived {
        loader.declared.push(Declaration {
            kind: resource.spec.kind(),
            namespace: resource.namespace.clone(),
            name: resource.name.clone(),
            origin: resource.origin.clone(),
        });
        loader.resources.list.push(resource);
    }
    for (name, text) in input.texts {
        let file = Arc::new(File::new(name, text));
        let read = contain(|| match kind_of_file(Path::new(&file.name)) {
            Some(FileKind::Cedar) => loader.cedar(&file, &mut report),
            _ => loader.yaml(&file, &mut report),
        });
        if let Err(panic) = read {
            loader.complete = false;
            report.push(contain::problem(&file.name, "reading it", &panic));
        }
    }
    let checked = Checked {
        resources: &loader.resources,
        declared: &loader.declared,
        complete: loader.complete,
        allow_missing_targets: input.allow_missing_targets,
        place,
    };
    if let Err(panic) = contain(|| check::check(&checked, &mut report)) {
        report.push(contain::problem(place, "checking the resources", &panic));
    }
    let unread = KINDS.iter().map(|(_, kind)| *kind);
    let unread = unread.filter(|kind| !checked.all_read(kind)).collect();
    Loaded {
        unread: loader.complete.then_some(unread),
        resources: loader.resources,
        report,
    }
}

#[derive(Default)]
struct Loader {
    resources: Resources,
    /// All declared resources, including those with errors, so that references to them are not reported as well.
    declared: Vec<Declaration>,
    /// Whether the kind and name of every document could be read.
    complete: bool,
}

impl Loader {
    fn yaml(&mut self, file: &Arc<File>, report: &mut Report) {
        let before = report.problems().len();
        let trees = document::documents(file, report);
        self.complete &= report.problems().len() == before;
        for tree in trees {
            let source = Source {
                file: Arc::clone(file),
                tree: Some(Arc::new(tree)),
            };
            self.document(source, report);
        }
    }

    fn document(&mut self, source: Source, report: &mut Report) {
        let Some(tree) = source.tree.clone() else {
            return;
        };
        let mut reader = DocumentReader {
            source: &source,
            tree: &tree,
            report,
        };
        let kind = reader.kind();
        let metadata = reader.metadata();
        reader.unknown_fields();
        let spec = kind.and_then(|kind| reader.spec(kind));
        let origin = format!("{}:{}:{}", source.file.name, tree.at.line, tree.at.column);
        let (Some(kind), Some(metadata)) = (kind, metadata) else {
            self.complete = false;
            return;
        };
        self.declared.push(Declaration {
            kind,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            origin: origin.clone(),
        });
        self.resources.sources.insert(origin.clone(), source);
        if let Some(spec) = spec {
            self.resources.list.push(Resource {
                namespace: metadata.namespace,
                name: metadata.name,
                labels: metadata.labels,
                created: None,
                spec,
                origin,
            });
        }
    }

    fn cedar(&mut self, file: &Arc<File>, report: &mut Report) {
        let mut reject = |message: String| {
            report.push(Problem::error(&file.name, message));
        };
        if file.text.len() > MAX_BYTES {
            return reject(format!(
                "this file has {} bytes; the maximum is {MAX_BYTES} (1MiB)",
                file.text.len()
            ));
        }
        let path = Path::new(&file.name);
        let folder = path.parent().and_then(Path::file_name);
        let namespace = match folder.and_then(|name| name.to_str()) {
            Some(name) => name.parse(),
            None => Ok(Namespace::default()),
        };
        let stem = path
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let (namespace, name) = match (namespace, stem.parse::<ResourceName>()) {
            (Ok(namespace), Ok(name)) => (namespace, name),
            (Err(error), _) => {
                return reject(format!("the folder's name must be a namespace: {error}"));
            }
            (_, Err(error)) => {
                return reject(format!("the file's name must be a policy name: {error}"));
            }
        };
        let origin = format!("{}:1:1", file.name);
        self.declared.push(Declaration {
            kind: "AuthorizationPolicy",
            namespace: namespace.clone(),
            name: name.clone(),
            origin: origin.clone(),
        });
        let source = Source {
            file: Arc::clone(file),
            tree: None,
        };
        self.resources.sources.insert(origin.clone(), source);
        self.resources.list.push(Resource {
            namespace,
            name,
            labels: BTreeMap::new(),
            created: None,
            spec: Spec::AuthorizationPolicy(AuthorizationPolicySpec {
                target_refs: Vec::new(),
                policies: file.text.clone(),
            }),
            origin,
        });
    }
}

#[cfg(test)]
mod tests;
