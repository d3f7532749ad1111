use std::collections::HashSet;

use super::checker::Checker;
use crate::{
    name::ResourceName,
    nearest,
    resource::{Resource, TargetKind, TargetRef},
};

impl<'a> Checker<'a, '_> {
    pub(super) fn targets(&mut self, resource: &'a Resource, targets: &'a [TargetRef]) {
        let whole_namespace = targets
            .iter()
            .all(|target| target.kind == TargetKind::Namespace);
        if whole_namespace {
            self.namespace_target(resource, targets.is_empty());
        }
        let mut seen = HashSet::new();
        for (index, target) in targets.iter().enumerate() {
            let field = format!("spec.targetRefs[{index}]");
            if !seen.insert(target) {
                self.warning(resource, &field, "duplicate target");
                continue;
            }
            match (target.kind, &target.name) {
                (TargetKind::Service, Some(name)) => {
                    self.named_target(resource, &field, "Service", name);
                }
                (TargetKind::Gateway, Some(name)) => {
                    self.named_target(resource, &field, "Gateway", name);
                }
                (TargetKind::Service | TargetKind::Gateway, None) => {
                    let hint = "to target the whole namespace, write `kind: Namespace`";
                    self.error(resource, &format!("{field}.name"), "`name` is missing")
                        .hint(hint);
                }
                (TargetKind::Namespace, Some(name)) => {
                    if name.as_str() != resource.namespace.as_str() {
                        let message = format!(
                            "a policy in `{}` cannot apply to the namespace `{name}`",
                            resource.namespace
                        );
                        let hint = "move it to that namespace, or to the root namespace for the whole mesh";
                        self.error(resource, &format!("{field}.name"), message)
                            .hint(hint);
                    }
                }
                (TargetKind::Namespace, None) => {}
                (TargetKind::Mesh, name) => self.mesh_target(resource, &field, name.as_ref()),
            }
        }
    }

    /// Warns of a policy without effect: a mesh-wide guardrail with the wrong target would otherwise go unnoticed until it
    /// is needed.
    fn namespace_target(&mut self, resource: &'a Resource, by_default: bool) {
        let mut here = ["Service", "Gateway"]
            .into_iter()
            .flat_map(|kind| self.names_in(kind, &resource.namespace));
        if !self.checked.complete || here.next().is_some() {
            return;
        }
        let message = format!(
            "this policy has no effect: there is no Service and no Gateway in `{}`",
            resource.namespace
        );
        let root = self.root_namespace() == Some(&resource.namespace);
        let hint = root.then_some("to target the whole mesh, write `targetRefs: [{ kind: Mesh }]`");
        let field = if by_default {
            "spec"
        } else {
            "spec.targetRefs"
        };
        self.warning(resource, field, message).maybe_hint(hint);
    }

    fn mesh_target(&mut self, resource: &Resource, field: &str, name: Option<&ResourceName>) {
        if name.is_some() {
            let field = format!("{field}.name");
            self.error(resource, &field, "a `Mesh` target has no `name`")
                .hint("remove `name`");
        }
        let Some(root) = self.root_namespace().cloned() else {
            return;
        };
        if resource.namespace != root {
            let message = format!(
                "only policies in the root namespace `{root}` can target the whole mesh, but this one is in `{}`",
                resource.namespace
            );
            self.error(resource, &format!("{field}.kind"), message)
                .hint("to target the whole namespace, write `kind: Namespace`");
        }
    }

    /// A Service or Gateway of the resource's own namespace.
    fn named_target(
        &mut self,
        resource: &'a Resource,
        field: &str,
        kind: &'static str,
        name: &ResourceName,
    ) {
        let namespace = &resource.namespace;
        let here: Vec<&str> = self
            .names_in(kind, namespace)
            .map(ResourceName::as_str)
            .collect();
        if here.contains(&name.as_str()) || !self.checked.complete {
            return;
        }
        let elsewhere = self
            .checked
            .declared
            .iter()
            .find(|one| one.kind == kind && one.name == *name);
        let hint = match elsewhere {
            Some(other) => Some(format!(
                "there is one in `{}`; a policy applies only to its own namespace, so move it there",
                other.namespace
            )),
            None => nearest::hint(name.as_str(), here),
        };
        let message = format!("there is no {kind} `{name}` in `{namespace}`");
        let field = format!("{field}.name");
        let problem = if self.checked.allow_missing_targets {
            self.warning(resource, &field, message)
        } else {
            self.error(resource, &field, message)
        };
        problem.maybe_hint(hint);
    }
}
