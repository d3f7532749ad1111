//! Names that policies mention: groups, and claims and path parameters that are declared for other services.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use merlon_config::{
    name::{Namespace, ServiceName, WorkloadId},
    resource::{ClaimType, RequestAuthenticationSpec, Resource, Spec},
    snapshot::{DeclaredNames, PolicyDocument},
};
use merlon_policy::{mention::Mentions, problem::PolicyProblem, validate::params};

use crate::{attach::Attachment, gateway::name_of, select::Workloads};

/// The mentions of every Cedar document. Each document is parsed once, however many services it applies to.
#[derive(Debug, Default)]
pub(crate) struct Documents(HashMap<ServiceName, Result<Mentions, Vec<PolicyProblem>>>);

impl Documents {
    pub(crate) fn new(resources: &[Resource]) -> Self {
        let mut all = Self::default();
        for resource in resources {
            if let Spec::AuthorizationPolicy(spec) = &resource.spec {
                let document = PolicyDocument {
                    name: name_of(resource),
                    origin: resource.origin.clone(),
                    text: spec.policies.clone(),
                };
                all.0.insert(name_of(resource), Mentions::of(&document));
            }
        }
        all
    }

    /// The mentions of the documents that parse.
    fn mentions<'a>(
        &'a self,
        policies: &'a [PolicyDocument],
    ) -> impl Iterator<Item = &'a Mentions> {
        let found = policies
            .iter()
            .filter_map(|policy| self.0.get(&policy.name));
        found.filter_map(|mentions| mentions.as_ref().ok())
    }

    /// The problems of the documents that do not parse.
    pub(crate) fn problems(&self) -> impl Iterator<Item = &PolicyProblem> {
        self.0
            .values()
            .filter_map(|found| found.as_ref().err())
            .flatten()
    }
}

/// The members of every `WorkloadGroup`, and all declared claims and path parameters.
#[derive(Debug, Default)]
pub(crate) struct Names {
    groups: BTreeMap<String, BTreeSet<WorkloadId>>,
    /// By name, then by the resource that declares them.
    claims: BTreeMap<String, BTreeMap<(Namespace, String), ClaimType>>,
    params: BTreeSet<String>,
}

impl Names {
    pub(crate) fn new(resources: &[Resource], workloads: &Workloads<'_>) -> Self {
        let mut all = Self::default();
        for workload in &workloads.all {
            for group in &workload.spec.groups {
                let members = all.groups.entry(group.clone()).or_default();
                members.insert(workload.workload_id());
            }
        }
        for resource in resources {
            match &resource.spec {
                Spec::RequestAuthentication(spec) => {
                    for (claim, kind) in claims(spec) {
                        let place = (resource.namespace.clone(), resource.name.to_string());
                        let places = all.claims.entry(claim.clone()).or_default();
                        places.entry(place).or_insert(kind);
                    }
                }
                Spec::RequestValidation(spec) => {
                    all.params.extend(params(spec).map(str::to_owned));
                }
                _ => {}
            }
        }
        all
    }

    /// The groups that these policies mention, with their members. A group without members is empty.
    pub(crate) fn groups(
        &self,
        documents: &Documents,
        policies: &[PolicyDocument],
    ) -> BTreeMap<String, Vec<WorkloadId>> {
        let mentions = documents.mentions(policies);
        let named: BTreeSet<_> = mentions.flat_map(|m| m.ids("WorkloadGroup")).collect();
        let members = |group: &str| {
            self.groups
                .get(group)
                .into_iter()
                .flatten()
                .cloned()
                .collect()
        };
        named
            .into_iter()
            .map(|group| (group.to_owned(), members(group)))
            .collect()
    }

    /// Claims and parameters that the policies mention and that are not declared for the same service. If they are
    /// declared with different types, the service's own namespace comes first, then the first resource by name.
    pub(crate) fn declared_elsewhere(
        &self,
        documents: &Documents,
        name: &ServiceName,
        attached: &Attachment,
    ) -> DeclaredNames {
        let own_claims: BTreeSet<_> = attached
            .authentication
            .iter()
            .flat_map(|a| claims(&a.spec).map(|(claim, _)| claim.as_str()))
            .collect();
        let own_params: BTreeSet<_> = attached
            .validation
            .iter()
            .flat_map(|v| params(&v.spec))
            .collect();
        let mut declared = DeclaredNames::default();
        let mut wanted_params = BTreeSet::new();
        for mentions in documents.mentions(&attached.policies) {
            for claim in &mentions.claims {
                let Some(places) = self.claims.get(claim) else {
                    continue;
                };
                let own_namespace = places
                    .iter()
                    .find(|((namespace, _), _)| *namespace == name.namespace);
                if let Some((_, kind)) = own_namespace.or_else(|| places.iter().next())
                    && !own_claims.contains(claim.as_str())
                {
                    declared.claims.insert(claim.clone(), *kind);
                }
            }
            let params = mentions.params.iter();
            wanted_params.extend(params.filter(|param| {
                self.params.contains(*param) && !own_params.contains(param.as_str())
            }));
        }
        declared.params = wanted_params.into_iter().cloned().collect();
        declared
    }
}

fn claims(spec: &RequestAuthenticationSpec) -> impl Iterator<Item = (&String, ClaimType)> {
    let claims = spec.issuers.iter().flat_map(|issuer| &issuer.claims);
    claims.map(|(claim, kind)| (claim, *kind))
}
