//! From files to resources: all of them or, if anything is wrong anywhere, a report of everything that is.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    check::{self, Checked, Claim},
    document::{self, MOST_BYTES},
    name::{Namespace, ResourceName},
    nearest,
    node::{Mark, Node, Value, cut},
    read::{Misfit, read},
    report::{Problem, Report},
    resource::{AuthorizationPolicySpec, KINDS, Resource, Spec},
    resources::{File, Resources, Source},
};

/// Reads every `.yaml`, `.yml` and `.cedar` file below a directory, in order of path.
///
/// Names that begin with a dot are passed over: Kubernetes keeps the real files of a mounted ConfigMap there, and the
/// visible names are links to them. A `.cedar` file is one `AuthorizationPolicy`: its folder names the namespace
/// (`default` directly in the directory) and its name without the ending the policy. It has no `targetRefs`, so it
/// reaches its namespace.
///
/// # Errors
/// Everything that is wrong in any file. Nothing of what was read is then to be used.
pub fn load_dir(directory: &Path) -> Result<Resources, Report> {
    read_dir(directory).into_result()
}

/// As [`load_dir`], for those who look for more that is wrong.
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
    let given = Given {
        texts,
        ..Given::default()
    };
    load(&directory.display().to_string(), given, report)
}

/// The same from texts in memory, each with its file's name.
///
/// # Errors
/// Everything that is wrong in any text.
pub fn load_texts<N: Into<String>, T: Into<String>>(
    texts: impl IntoIterator<Item = (N, T)>,
) -> Result<Resources, Report> {
    read_texts(texts).into_result()
}

/// As [`load_texts`], for those who look for more that is wrong.
pub fn read_texts<N: Into<String>, T: Into<String>>(
    texts: impl IntoIterator<Item = (N, T)>,
) -> Loaded {
    let texts = texts
        .into_iter()
        .map(|(name, text)| (name.into(), text.into()))
        .collect();
    let given = Given {
        texts,
        ..Given::default()
    };
    load("resources", given, Report::new())
}

/// The same in a cluster: texts that people wrote, and the Workloads and Services that the cluster knows by itself.
///
/// What a policy is attached to may come later or be gone: that is a warning here, and not an error.
pub fn read_cluster<N: Into<String>, T: Into<String>>(
    texts: impl IntoIterator<Item = (N, T)>,
    found: Vec<Resource>,
) -> Loaded {
    let texts = texts.into_iter();
    let given = Given {
        texts: texts
            .map(|(name, text)| (name.into(), text.into()))
            .collect(),
        found,
        targets_may_come_later: true,
    };
    load("the cluster", given, Report::new())
}

/// What is loaded.
#[derive(Default)]
struct Given {
    /// Each with its file's name.
    texts: Vec<(String, String)>,
    /// What no file holds.
    found: Vec<Resource>,
    targets_may_come_later: bool,
}

/// How deep folders may stand in each other, so that a link to a folder above does not lead in circles.
const MOST_FOLDERS: usize = 16;

/// The largest file, in bytes: it may hold several documents.
const MOST_FILE_BYTES: u64 = 16 << 20;

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
        // Follows links. A file that vanishes between the two looks is not there.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() && depth < MOST_FOLDERS {
            folders.push((path, depth + 1));
        } else if kind_of_file(&path).is_some() && is_text(&metadata) {
            files.push(path);
        }
    }
    Ok(())
}

/// A pipe or a device would keep the reader waiting for ever.
fn is_text(metadata: &fs::Metadata) -> bool {
    metadata.is_file()
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
    if size > MOST_FILE_BYTES {
        return Err(format!(
            "this file has {size} bytes; at most {MOST_FILE_BYTES} (16MiB) are read"
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

/// What could be read, and everything that is wrong.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Every document that could be read. For use only when the report has no error.
    pub resources: Resources,
    /// Errors and warnings.
    pub report: Report,
    /// Kinds of which not every document could be read; none when not even the kinds of all are known.
    unread: Option<Vec<&'static str>>,
}

impl Loaded {
    /// The resources with their warnings, where nothing is wrong.
    ///
    /// # Errors
    /// What is.
    pub fn into_result(self) -> Result<Resources, Report> {
        if self.report.has_errors() {
            return Err(self.report);
        }
        Ok(Resources {
            warnings: self.report,
            ..self.resources
        })
    }

    /// Whether every document of these kinds was read, so that what none of them declares is declared nowhere.
    pub fn all_read(&self, kinds: &[&str]) -> bool {
        let unread = self.unread.as_ref();
        unread.is_some_and(|unread| !unread.iter().any(|kind| kinds.contains(kind)))
    }
}

fn load(place: &str, given: Given, mut report: Report) -> Loaded {
    let mut loader = Loader {
        // A file that cannot be read may hold what others refer to.
        complete: !report.has_errors(),
        ..Loader::default()
    };
    for resource in given.found {
        loader.claims.push(Claim {
            kind: resource.spec.kind(),
            namespace: resource.namespace.clone(),
            name: resource.name.clone(),
            origin: resource.origin.clone(),
        });
        loader.resources.list.push(resource);
    }
    for (name, text) in given.texts {
        let file = Arc::new(File::new(name, text));
        match kind_of_file(Path::new(&file.name)) {
            Some(FileKind::Cedar) => loader.cedar(&file, &mut report),
            _ => loader.yaml(&file, &mut report),
        }
    }
    let checked = Checked {
        resources: &loader.resources,
        claims: &loader.claims,
        complete: loader.complete,
        targets_may_come_later: given.targets_may_come_later,
        place,
    };
    check::check(&checked, &mut report);
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
    /// What is named anywhere, also where the rest of it is wrong, so that who refers to it is not blamed.
    claims: Vec<Claim>,
    /// Whether every document could be read so far that it is known what it names.
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
        let mut reading = Reading {
            source: &source,
            tree: &tree,
            report,
        };
        let kind = reading.kind();
        let metadata = reading.metadata();
        reading.other_fields();
        let spec = match kind {
            Some(kind) => reading.spec(kind),
            None => None,
        };
        let origin = format!("{}:{}:{}", source.file.name, tree.at.line, tree.at.column);
        let (Some(kind), Some(metadata)) = (kind, metadata) else {
            self.complete = false;
            return;
        };
        self.claims.push(Claim {
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
        let mut refuse = |message: String| {
            report.push(Problem::error(&file.name, message));
        };
        if file.text.len() > MOST_BYTES {
            return refuse(format!(
                "this file has {} bytes; at most {MOST_BYTES} (1MiB) are read",
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
                return refuse(format!("its folder's name must be a namespace: {error}"));
            }
            (_, Err(error)) => {
                return refuse(format!("its own name must be the policy's: {error}"));
            }
        };
        let origin = format!("{}:1:1", file.name);
        self.claims.push(Claim {
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

/// One document on its way from tree to resource.
struct Reading<'a> {
    source: &'a Source,
    tree: &'a Node,
    report: &'a mut Report,
}

/// `metadata`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: ResourceName,
    #[serde(default)]
    namespace: Namespace,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
}

/// What a cluster adds to `metadata`: passed over, so that what it returned can be read again.
const OF_THE_CLUSTER: [&str; 8] = [
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "uid",
];

impl Reading<'_> {
    fn error(&mut self, mark: Mark, field: &str, message: &str, hint: Option<String>) {
        let problem = self.source.problem(mark, message);
        self.report.push(problem.field(field).maybe_hint(hint));
    }

    fn text(&mut self, name: &str, hint: &str) -> Option<(Mark, String)> {
        match self.tree.get(name) {
            Some((key, node)) => match node.text() {
                Some(text) => Some((node.at, text.to_owned())),
                None => {
                    let message = format!("expected a text, found {}", node.describe());
                    self.error(node.mark_under(key), name, &message, Some(hint.to_owned()));
                    None
                }
            },
            None => {
                let message = format!("`{name}` is missing");
                self.error(self.tree.at, name, &message, Some(hint.to_owned()));
                None
            }
        }
    }

    fn kind(&mut self) -> Option<&'static str> {
        let Value::Map(_) = self.tree.value else {
            let message = format!("expected a resource, found {}", self.tree.describe());
            let hint = "a resource is a map with `apiVersion`, `kind`, `metadata` and `spec`";
            self.error(self.tree.at, "", &message, Some(hint.to_owned()));
            return None;
        };
        let version = self.text(
            "apiVersion",
            "Merlon's own kinds have `apiVersion: merlon.io/v1alpha1`",
        );
        let (at, kind) = self.text("kind", "say what this is, as `kind: Service`")?;
        let Some((right_version, kind)) = KINDS.iter().find(|(_, known)| *known == kind) else {
            let message = format!("unknown kind `{}`", cut(&kind));
            let hint = nearest::hint(&kind, KINDS.iter().map(|(_, kind)| *kind));
            self.error(at, "kind", &message, hint);
            return None;
        };
        let (at, version) = version?;
        if version != *right_version {
            let message = format!("there is no `{kind}` in `{}`", cut(&version));
            let hint = format!("write `apiVersion: {right_version}`");
            self.error(at, "apiVersion", &message, Some(hint));
        }
        Some(kind)
    }

    fn metadata(&mut self) -> Option<Metadata> {
        let Value::Map(_) = self.tree.value else {
            return None;
        };
        let Some((key, node)) = self.tree.get("metadata") else {
            let hint = "give it a name: `metadata: { name: orders, namespace: shop }`";
            self.error(
                self.tree.at,
                "metadata",
                "`metadata` is missing",
                Some(hint.to_owned()),
            );
            return None;
        };
        let mut node = node.clone();
        let at = node.mark_under(key);
        if let Value::Map(entries) = &mut node.value {
            entries.retain(|(key, _)| !OF_THE_CLUSTER.contains(&key.text.as_str()));
        }
        self.read(&node, "metadata", at)
    }

    fn other_fields(&mut self) {
        const FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
        let Value::Map(entries) = &self.tree.value else {
            return;
        };
        for (key, _) in entries {
            if !FIELDS.contains(&key.text.as_str()) {
                let message = format!("unknown field `{}`", cut(&key.text));
                let hint = nearest::hint(&key.text, FIELDS);
                self.error(key.at, &key.text, &message, hint);
            }
        }
    }

    fn spec(&mut self, kind: &str) -> Option<Spec> {
        let Some((key, node)) = self.tree.get("spec") else {
            self.error(self.tree.at, "spec", "`spec` is missing", None);
            return None;
        };
        let at = node.mark_under(key);
        match kind {
            "MeshConfig" => self.read(node, "spec", at).map(Spec::MeshConfig),
            "Workload" => self.read(node, "spec", at).map(Spec::Workload),
            "Service" => self.read(node, "spec", at).map(Spec::Service),
            "AuthorizationPolicy" => self.read(node, "spec", at).map(Spec::AuthorizationPolicy),
            "RequestAuthentication" => self.read(node, "spec", at).map(Spec::RequestAuthentication),
            "RateLimit" => self.read(node, "spec", at).map(Spec::RateLimit),
            "RequestValidation" => self.read(node, "spec", at).map(Spec::RequestValidation),
            "SecretGrant" => self.read(node, "spec", at).map(Spec::SecretGrant),
            "Gateway" => self.read(node, "spec", at).map(Spec::Gateway),
            "HTTPRoute" => self.read(node, "spec", at).map(Spec::HttpRoute),
            // `KINDS` has no other: a test reads one of each.
            _ => None,
        }
    }

    fn read<T: DeserializeOwned>(&mut self, node: &Node, path: &str, at: Mark) -> Option<T> {
        match read(node, path, at) {
            Ok(value) => Some(value),
            Err(misfits) => {
                for Misfit {
                    at,
                    path,
                    message,
                    hint,
                } in misfits
                {
                    self.error(at, &path, &message, hint);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
