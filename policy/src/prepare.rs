//! Turns documents into checked policies and everything they refer to.

use std::{collections::BTreeMap, sync::Arc};

use cedar_policy::Schema;
use merlon_config::{
    name::ServiceName,
    resource::ClaimType,
    snapshot::{InboundService, MeshState},
};

use crate::{
    authn::TokenRules,
    cedar::InputBuilder,
    document::{Parsed, Policy, check},
    matcher::{Names, Target},
    principal::{Entity, EntityKind},
    problem::PolicyProblem,
    schema::Declared,
    validate::{Router, params},
};

/// All documents of a service, parsed and checked together.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) policies: Vec<Policy>,
    pub(crate) inputs: InputBuilder,
    pub(crate) names: Names,
    pub(crate) router: Router,
    pub(crate) tokens: TokenRules,
}

impl Prepared {
    /// Parses and checks the documents.
    pub(crate) fn new(
        service: &InboundService,
        mesh: &MeshState,
    ) -> Result<Self, Vec<PolicyProblem>> {
        Self::checked_by(check, service, mesh)
    }

    /// Parses the documents and runs `check` on the policies. Tests pass a check that accepts everything, since only
    /// invalid policies reach every evaluation error.
    pub(crate) fn checked_by(
        check: fn(&[Parsed<'_>], &Schema) -> Vec<PolicyProblem>,
        service: &InboundService,
        mesh: &MeshState,
    ) -> Result<Self, Vec<PolicyProblem>> {
        let mut problems = Vec::new();
        let mut declared = claims(service, &mut problems);
        problems.extend(TokenRules::conflicts(&service.authentication));
        let router = Router::new(&service.validation).unwrap_or_else(|found| {
            problems.extend(found);
            Router::default()
        });
        // Includes parameters of documents with other problems, so that policies that use them are not reported.
        let documents = service.validation.iter();
        declared.params = documents
            .flat_map(|document| params(&document.spec))
            .map(str::to_owned)
            .collect();
        declared
            .params
            .extend(service.declared_elsewhere.params.iter().cloned());

        let mut documents = Vec::new();
        for document in &service.policies {
            let same_namespace = document.name.namespace == service.name.namespace;
            if !same_namespace && document.name.namespace != mesh.root_namespace {
                problems.push(
                    PolicyProblem::new(
                        &document.name,
                        format!(
                            "policies of the namespace `{}` do not apply to `{}`",
                            document.name.namespace, service.name
                        ),
                    )
                    .origin(&document.origin)
                    .hint(format!(
                        "only policies of `{}` apply to other namespaces",
                        mesh.root_namespace
                    )),
                );
            }
            match Parsed::new(document) {
                Ok(parsed) => documents.push(parsed),
                Err(found) => problems.extend(found),
            }
        }
        for document in &documents {
            declared
                .headers
                .extend(document.mentions.headers.iter().cloned());
            declared
                .query
                .extend(document.mentions.query.iter().cloned());
        }
        let schema = match declared.schema() {
            Ok(schema) => schema,
            Err(message) => {
                problems.push(PolicyProblem::new(&service.name, message));
                return Err(problems);
            }
        };
        problems.extend(check(&documents, &schema));
        if !problems.is_empty() {
            problems.sort();
            problems.dedup();
            return Err(problems);
        }
        let slots = |names: &std::collections::BTreeSet<String>| -> Vec<Arc<str>> {
            names.iter().map(|name| Arc::from(name.as_str())).collect()
        };
        let names = Names {
            headers: slots(&declared.headers),
            query: slots(&declared.query),
        };
        let target = target(service, mesh, &names);
        Ok(Self {
            policies: documents
                .into_iter()
                .flat_map(|document| document.policies)
                .collect(),
            inputs: InputBuilder {
                schema,
                declared,
                target,
            },
            names,
            router,
            tokens: TokenRules::new(&service.authentication),
        })
    }
}

/// The claims that a service's issuers declare. All issuers must agree on the type of a claim.
fn claims(service: &InboundService, problems: &mut Vec<PolicyProblem>) -> Declared {
    let mut all: BTreeMap<String, (ClaimType, ServiceName)> = BTreeMap::new();
    for document in &service.authentication {
        for (name, kind) in document
            .spec
            .issuers
            .iter()
            .flat_map(|issuer| &issuer.claims)
        {
            let (first, from) = all
                .entry(name.clone())
                .or_insert_with(|| (*kind, document.from.clone()));
            if first != kind {
                problems.push(
                    PolicyProblem::new(
                        &document.from,
                        format!("the claim `{name}` is declared as {kind:?} and as {first:?}"),
                    )
                    .field("spec.issuers")
                    .hint(format!("the other declaration is in `{from}`")),
                );
            }
        }
    }
    let mut claims: BTreeMap<String, ClaimType> = service.declared_elsewhere.claims.clone();
    claims.extend(all.into_iter().map(|(name, (kind, _))| (name, kind)));
    Declared {
        claims,
        ..Declared::default()
    }
}

fn target(service: &InboundService, mesh: &MeshState, names: &Names) -> Target {
    let namespace = Entity::new(EntityKind::Namespace, service.name.namespace.as_str());
    let mut ancestors = vec![
        namespace.clone(),
        Entity::new(EntityKind::TrustDomain, mesh.trust_domain.as_str()),
    ];
    ancestors.extend(
        service
            .groups
            .iter()
            .map(|group| Entity::new(EntityKind::ServiceGroup, group.as_str())),
    );
    let slots = |names: &[Arc<str>]| names.iter().map(|name| Box::from(&**name)).collect();
    Target {
        service: Entity::new(EntityKind::Service, service.name.to_string()),
        ancestors,
        namespace,
        headers: slots(&names.headers),
        query: slots(&names.query),
    }
}
