//! Which policies apply to which service: by `targetRefs`, and only within their namespace.

use std::collections::HashMap;

use merlon_config::{
    name::{Namespace, ResourceName, ServiceName},
    resource::{
        RateLimitRule, RequestAuthenticationSpec, RequestValidationSpec, Resource, Spec,
        TargetKind, TargetRef,
    },
    snapshot::{Attached, PolicyDocument},
};

/// A target. Services and Gateways share their names in policies, but not as targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Service,
    Gateway,
}

/// All policies, by target.
///
/// INVARIANT: the policies of a namespace were created in that namespace, or in the root namespace with a `Mesh`
/// target. So a tenant's policy cannot apply to another tenant, whatever its `targetRefs` contain.
#[derive(Debug)]
pub(crate) struct Attachments<'a> {
    root: &'a Namespace,
    mesh: Vec<&'a Resource>,
    namespaces: HashMap<&'a Namespace, Vec<&'a Resource>>,
    targets: HashMap<(Target, &'a Namespace, &'a ResourceName), Vec<&'a Resource>>,
}

impl<'a> Attachments<'a> {
    pub(crate) fn new(resources: &'a [Resource], root: &'a Namespace) -> Self {
        let mut all = Self {
            root,
            mesh: Vec::new(),
            namespaces: HashMap::new(),
            targets: HashMap::new(),
        };
        for resource in resources {
            match resource.spec.target_refs() {
                Some([]) => all.attach_namespace(resource),
                Some(refs) => refs.iter().for_each(|to| all.attach(resource, to)),
                None => {}
            }
        }
        all
    }

    fn attach_namespace(&mut self, resource: &'a Resource) {
        let list = self.namespaces.entry(&resource.namespace).or_default();
        list.push(resource);
    }

    fn attach(&mut self, resource: &'a Resource, to: &'a TargetRef) {
        let target = match to.kind {
            TargetKind::Mesh => {
                // The check of the resources rejects it in other namespaces. Here it has no effect.
                if resource.namespace == *self.root {
                    self.mesh.push(resource);
                }
                return;
            }
            TargetKind::Namespace => {
                let own = to
                    .name
                    .as_ref()
                    .is_none_or(|name| name.as_str() == resource.namespace.as_str());
                if own {
                    self.attach_namespace(resource);
                }
                return;
            }
            TargetKind::Service => Target::Service,
            TargetKind::Gateway => Target::Gateway,
        };
        if let Some(name) = &to.name {
            let key = (target, &resource.namespace, name);
            self.targets.entry(key).or_default().push(resource);
        }
    }

    /// The policies that apply to one service: the mesh-wide ones of the root namespace first, then by name, each once.
    pub(crate) fn applying_to(&self, target: Target, name: &ServiceName) -> Vec<&'a Resource> {
        let by_name = |resource: &&Resource| (resource.namespace.clone(), resource.name.clone());
        let mut mesh = self.mesh.clone();
        mesh.sort_by_key(by_name);
        let mut own: Vec<_> = self
            .namespaces
            .get(&name.namespace)
            .cloned()
            .unwrap_or_default();
        if let Some(direct) = self.targets.get(&(target, &name.namespace, &name.name)) {
            own.extend(direct);
        }
        own.sort_by_key(by_name);
        mesh.extend(own);
        // A policy that selects its target twice counts once.
        let mut seen: Vec<&Resource> = Vec::with_capacity(mesh.len());
        mesh.retain(|resource| {
            let resource: &Resource = resource;
            let new = !seen.iter().any(|other| std::ptr::eq(*other, resource));
            seen.push(resource);
            new
        });
        mesh
    }
}

/// The policies that apply to one service, by kind.
#[derive(Debug, Default)]
pub(crate) struct Attachment {
    pub(crate) policies: Vec<PolicyDocument>,
    pub(crate) authentication: Vec<Attached<RequestAuthenticationSpec>>,
    pub(crate) limits: Vec<Attached<RateLimitRule>>,
    pub(crate) validation: Vec<Attached<RequestValidationSpec>>,
}

impl Attachment {
    /// `targetRefs` and line numbers are not pushed: a service does not need to know the policy's other targets, and a
    /// change to them or to the text above must not change the version of this service.
    pub(crate) fn of(resources: &[&Resource]) -> Self {
        let mut all = Self::default();
        for resource in resources {
            let from = ServiceName {
                namespace: resource.namespace.clone(),
                name: resource.name.clone(),
            };
            match &resource.spec {
                Spec::AuthorizationPolicy(spec) => all.policies.push(PolicyDocument {
                    name: from,
                    origin: file_of(&resource.origin).to_owned(),
                    text: spec.policies.clone(),
                }),
                Spec::RequestAuthentication(spec) => all.authentication.push(Attached {
                    from,
                    spec: RequestAuthenticationSpec {
                        target_refs: Vec::new(),
                        ..spec.clone()
                    },
                }),
                Spec::RateLimit(spec) => {
                    all.limits.extend(spec.limits.iter().map(|rule| Attached {
                        from: from.clone(),
                        spec: rule.clone(),
                    }))
                }
                Spec::RequestValidation(spec) => all.validation.push(Attached {
                    from,
                    spec: RequestValidationSpec {
                        target_refs: Vec::new(),
                        ..spec.clone()
                    },
                }),
                _ => {}
            }
        }
        all
    }
}

/// The file of an origin: `policies/orders.yaml` for `policies/orders.yaml:12:1`.
pub(crate) fn file_of(origin: &str) -> &str {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let mut file = origin;
    for _ in 0..2 {
        match file.rsplit_once(':') {
            Some((head, tail)) if number(tail) => file = head,
            _ => break,
        }
    }
    file
}
