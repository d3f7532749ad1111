//! All loaded resources, with the position of each of their fields.

use std::{collections::HashMap, sync::Arc};

use crate::{
    name::{Namespace, ResourceName},
    node::{Mark, Node, Value},
    report::{Position, Problem, Report},
    resource::{MeshConfigSpec, Resource, Spec},
};

/// All loaded resources, checked.
#[derive(Debug, Clone, Default)]
pub struct Resources {
    /// In the order of files and documents.
    pub list: Vec<Resource>,
    /// Probable mistakes.
    pub warnings: Report,
    pub(crate) sources: HashMap<String, Source>,
}

/// The source of a resource.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) file: Arc<File>,
    /// `None` if the whole file is Cedar text.
    pub(crate) tree: Option<Arc<Node>>,
}

/// A file's text with the offsets of its lines, so that quoting a line takes constant time.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) text: String,
    line_offsets: Vec<usize>,
}

impl File {
    pub(crate) fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let ends = text.match_indices('\n').map(|(end, _)| end + 1);
        let line_offsets = std::iter::once(0).chain(ends).collect();
        Self {
            name: name.into(),
            text,
            line_offsets,
        }
    }

    /// A line by its number, without its end.
    fn line(&self, number: u32) -> Option<&str> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        let from_here = self.text.get(*self.line_offsets.get(index)?..)?;
        from_here.lines().next()
    }

    /// An error at a place, with its line.
    pub(crate) fn problem(&self, mark: Mark, message: impl AsRef<str>) -> Problem {
        let mut problem =
            Problem::error(&self.name, message).at(mark.line, mark.column, mark.width);
        problem.source = self.line(mark.line).map(str::to_owned);
        problem
    }
}

impl Resources {
    /// The MeshConfig with its resource. Checked resources always have one.
    pub fn mesh(&self) -> Option<(&Resource, &MeshConfigSpec)> {
        self.list.iter().find_map(|resource| match &resource.spec {
            Spec::MeshConfig(spec) => Some((resource, spec)),
            _ => None,
        })
    }

    /// Finds the resource of a kind, for example `Service`, by name.
    pub fn find(
        &self,
        kind: &str,
        namespace: &Namespace,
        name: &ResourceName,
    ) -> Option<&Resource> {
        self.list.iter().find(|resource| {
            resource.spec.kind() == kind
                && resource.namespace == *namespace
                && resource.name == *name
        })
    }

    /// The position of a field, for example `spec.limits[0].rate.requests`, or of its nearest existing parent. `None` for
    /// resources that are not from a file.
    pub fn locate(&self, resource: &Resource, field: &str) -> Option<Position> {
        let source = self.sources.get(&resource.origin)?;
        let mark = source.mark(field);
        Some(Position {
            file: source.file.name.clone(),
            line: mark.line,
            column: mark.column,
        })
    }

    /// The position in the file of a line and column (both from 1) within a string field, such as Cedar text in
    /// `spec.policies`.
    pub fn locate_in_text(
        &self,
        resource: &Resource,
        field: &str,
        line: u32,
        column: u32,
    ) -> Option<Position> {
        let source = self.sources.get(&resource.origin)?;
        let mark = source.mark_in_text(field, line, column);
        Some(Position {
            file: source.file.name.clone(),
            line: mark.line,
            column: mark.column,
        })
    }

    /// A problem with a field of a resource, at the field's position.
    pub fn problem(&self, resource: &Resource, field: &str, message: impl AsRef<str>) -> Problem {
        self.problem_at(&resource.origin, field, message)
    }

    pub(crate) fn problem_at(
        &self,
        origin: &str,
        field: &str,
        message: impl AsRef<str>,
    ) -> Problem {
        let Some(source) = self.sources.get(origin) else {
            return Problem::error(origin, message).field(field);
        };
        let mark = source.mark(field);
        source.problem(mark, message).field(field)
    }

    /// A problem at a line and column (both from 1) within a string field of a resource.
    pub fn problem_in_text(
        &self,
        resource: &Resource,
        field: &str,
        (line, column, width): (u32, u32, u32),
        message: impl AsRef<str>,
    ) -> Problem {
        let Some(source) = self.sources.get(&resource.origin) else {
            return Problem::error(&resource.origin, message).field(field);
        };
        let mark = source.mark_in_text(field, line, column);
        source.problem(Mark { width, ..mark }, message).field(field)
    }
}

impl FromIterator<Resource> for Resources {
    /// Resources that are not from files, unchecked.
    fn from_iter<I: IntoIterator<Item = Resource>>(list: I) -> Self {
        Self {
            list: list.into_iter().collect(),
            ..Self::default()
        }
    }
}

impl Source {
    pub(crate) fn problem(&self, mark: Mark, message: impl AsRef<str>) -> Problem {
        self.file.problem(mark, message)
    }

    pub(crate) fn mark(&self, field: &str) -> Mark {
        match &self.tree {
            Some(tree) => tree.find(field).0,
            None => Mark {
                line: 1,
                column: 1,
                width: 1,
            },
        }
    }

    fn mark_in_text(&self, field: &str, line: u32, column: u32) -> Mark {
        let inside = |mark: Mark| Mark {
            line: mark.line.saturating_add(line.saturating_sub(1)),
            column: mark.column.saturating_add(column.saturating_sub(1)),
            width: 1,
        };
        let Some(tree) = &self.tree else {
            return inside(Mark {
                line: 1,
                column: 1,
                width: 1,
            });
        };
        match tree.find(field) {
            (
                mark,
                Some(Node {
                    at,
                    value: Value::Text(text),
                }),
            ) => match self.start_of_text(*at, text) {
                Some(start) => inside(start),
                None => mark,
            },
            (mark, _) => mark,
        }
    }

    /// The position of a string's first character, if its lines are the file's lines: in block scalars (`|`), and in other
    /// scalars of only one line.
    fn start_of_text(&self, at: Mark, text: &str) -> Option<Mark> {
        let line = self.file.line(at.line)?;
        let before = usize::try_from(at.column.checked_sub(1)?).ok()?;
        let from_here: String = line.chars().skip(before).collect();
        // The parser returns the position of the first line that is not empty.
        let empty = text.chars().take_while(|c| *c == '\n').count();
        let first = text.lines().nth(empty)?;
        let same = !first.is_empty() && from_here.trim_end() == first.trim_end();
        if same {
            let up = u32::try_from(empty).ok()?;
            return Some(Mark {
                line: at.line.checked_sub(up)?,
                ..at
            });
        }
        // A scalar of one line equals the file's text if it has no escapes and is not folded.
        let inside = from_here.strip_prefix(['"', '\'']);
        let quote = u32::from(inside.is_some());
        let written = inside.unwrap_or(&from_here);
        (text.lines().count() == 1 && written.starts_with(first)).then_some(Mark {
            column: at.column.saturating_add(quote),
            ..at
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::load::{load_dir, load_texts};

    const TEXT: &str = "\
# the mesh
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: example.org }
---
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: block, namespace: shop }
spec:
  policies: |

    permit (
      principal);
---
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: line, namespace: shop }
spec: { policies: \"forbid (principal, action, resource);\" }
---
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: folded, namespace: shop }
spec:
  policies: >-
    forbid (principal,
    action, resource);
";

    fn place(resources: &Resources, name: &str, line: u32, column: u32) -> String {
        let resource = resources
            .list
            .iter()
            .find(|r| r.name.as_str() == name)
            .unwrap();
        let place = resources.locate_in_text(resource, "spec.policies", line, column);
        place.unwrap().to_string()
    }

    #[test]
    fn a_position_in_a_policy_text_is_a_position_in_the_file() {
        let resources =
            load_texts([("all.yaml", TEXT), ("shop/own.cedar", "permit(\n  x")]).unwrap();
        // The block begins with an empty line, which Cedar counts.
        assert_eq!(place(&resources, "block", 1, 1), "all.yaml:12:5");
        assert_eq!(place(&resources, "block", 2, 1), "all.yaml:13:5");
        assert_eq!(place(&resources, "block", 3, 3), "all.yaml:14:7");
        assert_eq!(place(&resources, "line", 1, 1), "all.yaml:19:20");
        assert_eq!(place(&resources, "line", 1, 9), "all.yaml:19:28");
        assert_eq!(place(&resources, "own", 2, 3), "shop/own.cedar:2:3");
        // Folding joins lines, so only the position of the field is known.
        assert_eq!(place(&resources, "folded", 1, 9), "all.yaml:25:3");
    }

    #[test]
    fn a_missing_field_is_located_at_its_nearest_existing_parent() {
        let resources = load_texts([("all.yaml", TEXT)]).unwrap();
        let (mesh, _) = resources.mesh().unwrap();
        let at = |field: &str| resources.locate(mesh, field).unwrap().to_string();
        assert_eq!(at("spec.trustDomain"), "all.yaml:5:22");
        assert_eq!(at("spec.certificates.lifetime"), "all.yaml:5:1");
        assert_eq!(at("metadata.name"), "all.yaml:4:19");
        assert_eq!(at(""), "all.yaml:2:1");
        assert_eq!(at("[["), "all.yaml:2:1");
    }

    #[test]
    fn a_problem_in_a_policy_quotes_its_line() {
        let resources = load_texts([("all.yaml", TEXT)]).unwrap();
        let resource = resources
            .list
            .iter()
            .find(|r| r.name.as_str() == "block")
            .unwrap();
        let problem = resources
            .problem_in_text(
                resource,
                "spec.policies",
                (3, 3, 9),
                "unknown variable `principal`",
            )
            .hint("there is none");
        insta::assert_snapshot!(problem);
    }

    #[test]
    fn the_examples_are_valid_and_have_no_warnings() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        for folder in ["shop", "standalone-gateway/resources"] {
            let resources =
                load_dir(&examples.join(folder)).unwrap_or_else(|report| panic!("{report}"));
            assert!(resources.warnings.is_empty(), "{}", resources.warnings);
        }
    }
}
