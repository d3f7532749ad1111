//! Reads the tree of one document into a resource.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    name::{Namespace, ResourceName},
    nearest,
    node::{Mark, Node, Value, cut},
    read::{Mismatch, read},
    report::Report,
    resource::{KINDS, Spec},
    resources::Source,
};

/// One document, and the report that its problems are added to.
pub(super) struct DocumentReader<'a> {
    pub(super) source: &'a Source,
    pub(super) tree: &'a Node,
    pub(super) report: &'a mut Report,
}

/// `metadata`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: ResourceName,
    #[serde(default)]
    pub(super) namespace: Namespace,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
}

/// Fields that the API server adds to `metadata`. They are ignored, so that the output of `kubectl get` can be read.
const SERVER_FIELDS: [&str; 8] = [
    "creationTimestamp",
    "deletionTimestamp",
    "finalizers",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "uid",
];

impl DocumentReader<'_> {
    fn error(&mut self, mark: Mark, field: &str, message: &str, hint: Option<String>) {
        let problem = self.source.problem(mark, message);
        self.report.push(problem.field(field).maybe_hint(hint));
    }

    fn text(&mut self, name: &str, hint: &str) -> Option<(Mark, String)> {
        match self.tree.get(name) {
            Some((key, node)) => match node.text() {
                Some(text) => Some((node.at, text.to_owned())),
                None => {
                    let message = format!("expected a string, found {}", node.describe());
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

    pub(super) fn kind(&mut self) -> Option<&'static str> {
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
        let (at, kind) = self.text("kind", "set the kind, for example `kind: Service`")?;
        let Some((right_version, kind)) = KINDS.iter().find(|(_, known)| *known == kind) else {
            let message = format!("unknown kind `{}`", cut(&kind));
            let hint = nearest::hint(&kind, KINDS.iter().map(|(_, kind)| *kind));
            self.error(at, "kind", &message, hint);
            return None;
        };
        let (at, version) = version?;
        if version != *right_version {
            let message = format!("there is no kind `{kind}` in `{}`", cut(&version));
            let hint = format!("write `apiVersion: {right_version}`");
            self.error(at, "apiVersion", &message, Some(hint));
        }
        Some(kind)
    }

    pub(super) fn metadata(&mut self) -> Option<Metadata> {
        let Value::Map(_) = self.tree.value else {
            return None;
        };
        let Some((key, node)) = self.tree.get("metadata") else {
            let hint = "set a name, for example `metadata: { name: orders, namespace: shop }`";
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
            entries.retain(|(key, _)| !SERVER_FIELDS.contains(&key.text.as_str()));
        }
        self.read(&node, "metadata", at)
    }

    pub(super) fn unknown_fields(&mut self) {
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

    pub(super) fn spec(&mut self, kind: &str) -> Option<Spec> {
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
            // `KINDS` has no other kind: a test reads one document of each.
            _ => None,
        }
    }

    fn read<T: DeserializeOwned>(&mut self, node: &Node, path: &str, at: Mark) -> Option<T> {
        match read(node, path, at) {
            Ok(value) => Some(value),
            Err(mismatches) => {
                for Mismatch {
                    at,
                    path,
                    message,
                    hint,
                } in mismatches
                {
                    self.error(at, &path, &message, hint);
                }
                None
            }
        }
    }
}
