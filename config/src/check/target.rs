use std::collections::HashSet;

use super::Checker;
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
            self.reaches_something(resource, targets.is_empty());
        }
        let mut seen = HashSet::new();
        for (index, target) in targets.iter().enumerate() {
            let field = format!("spec.targetRefs[{index}]");
            if !seen.insert(target) {
                self.warning(resource, &field, "this target stands here twice");
                continue;
            }
            match (target.kind, &target.name) {
                (TargetKind::Service, Some(name)) => self.own(resource, &field, "Service", name),
                (TargetKind::Gateway, Some(name)) => self.own(resource, &field, "Gateway", name),
                (TargetKind::Service | TargetKind::Gateway, None) => {
                    let hint = "for all of this namespace write `kind: Namespace`";
                    self.error(resource, &format!("{field}.name"), "`name` is missing")
                        .hint(hint);
                }
                (TargetKind::Namespace, Some(name)) => {
                    if name.as_str() != resource.namespace.as_str() {
                        let message = format!(
                            "a policy in `{}` cannot reach the namespace `{name}`",
                            resource.namespace
                        );
                        let hint = "write it in that namespace, or for all of the mesh in the root namespace";
                        self.error(resource, &format!("{field}.name"), message)
                            .hint(hint);
                    }
                }
                (TargetKind::Namespace, None) => {}
                (TargetKind::Mesh, name) => self.whole_mesh(resource, &field, name.as_ref()),
            }
        }
    }

    /// A guardrail that was meant for the mesh and reaches nothing would be noticed only when it is needed.
    fn reaches_something(&mut self, resource: &'a Resource, by_default: bool) {
        let mut here = ["Service", "Gateway"]
            .into_iter()
            .flat_map(|kind| self.names_in(kind, &resource.namespace));
        if !self.checked.complete || here.next().is_some() {
            return;
        }
        let message = format!(
            "this reaches nothing: there is no Service and no Gateway in `{}`",
            resource.namespace
        );
        let root = self.root_namespace() == Some(&resource.namespace);
        let hint = root.then_some("for the whole mesh write `targetRefs: [{ kind: Mesh }]`");
        let field = if by_default {
            "spec"
        } else {
            "spec.targetRefs"
        };
        self.warning(resource, field, message).maybe_hint(hint);
    }

    fn whole_mesh(&mut self, resource: &Resource, field: &str, name: Option<&ResourceName>) {
        if name.is_some() {
            let field = format!("{field}.name");
            self.error(resource, &field, "the mesh has no name")
                .hint("leave `name` out");
        }
        let Some(root) = self.root_namespace().cloned() else {
            return;
        };
        if resource.namespace != root {
            let message = format!(
                "only the root namespace `{root}` writes for the whole mesh, and this stands in `{}`",
                resource.namespace
            );
            self.error(resource, &format!("{field}.kind"), message)
                .hint("for all of this namespace write `kind: Namespace`");
        }
    }

    /// A Service or Gateway of the resource's own namespace.
    fn own(
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
            .claims
            .iter()
            .find(|claim| claim.kind == kind && claim.name == *name);
        let hint = match elsewhere {
            Some(claim) => Some(format!(
                "there is one in `{}`; a policy reaches only its own namespace: write it there",
                claim.namespace
            )),
            None => nearest::hint(name.as_str(), here),
        };
        let message = format!("there is no {kind} `{name}` in `{namespace}`");
        let field = format!("{field}.name");
        let said = if self.checked.targets_may_come_later {
            self.warning(resource, &field, message)
        } else {
            self.error(resource, &field, message)
        };
        said.maybe_hint(hint);
    }
}
