//! Converts a reading of a request to inputs of Cedar's evaluator, validated against the schema.
//!
//! This is the slow path: for policies that do not compile, for explanations, and as the oracle in tests.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    str::FromStr,
};

use cedar_policy::{
    Authorizer, Context, EntityId, EntityTypeName, EntityUid, Policy, PolicySet, Request,
    RestrictedExpression as Value, Schema,
};
use jiff::Timestamp;
use merlon_config::resource::ClaimType;

use crate::{
    authn::{ClaimValue, User},
    facts::{RequestKind, TlsFacts},
    matcher::{Reading, Target, Verdict},
    principal::{Entity, EntityKind, PeerFacts},
    schema::Declared,
};

/// A request and the entities around it.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) request: Request,
    pub(crate) entities: cedar_policy::Entities,
}

/// Builds [`Inputs`] from a reading.
#[derive(Debug, Clone)]
pub(crate) struct InputBuilder {
    pub(crate) schema: Schema,
    pub(crate) declared: Declared,
    pub(crate) target: Target,
}

type Fields = Vec<(String, Value)>;

impl InputBuilder {
    /// Builds and validates the inputs. An error means that the facts do not match the schema, so nothing can be decided
    /// on them.
    pub(crate) fn build(&self, of: &Reading<'_>) -> Result<Inputs, String> {
        let action = uid(&Entity::new(EntityKind::Action, of.action.name()))?;
        let context = Context::from_pairs(self.context(of)?).map_err(text)?;
        let request = Request::new(
            uid(&of.peer.entity)?,
            action,
            uid(&self.target.service)?,
            context,
            Some(&self.schema),
        )
        .map_err(text)?;
        let entities =
            cedar_policy::Entities::from_entities(self.entities(of)?, Some(&self.schema))
                .map_err(text)?;
        Ok(Inputs { request, entities })
    }

    fn context(&self, of: &Reading<'_>) -> Result<Fields, String> {
        let facts = of.facts;
        let mut fields: Fields = vec![
            (
                "circumstances".into(),
                record(vec![
                    ("now".into(), datetime(facts.now)?),
                    ("schedules".into(), strings(&[])),
                    ("breakGlass".into(), strings(&[])),
                ])?,
            ),
            ("sourceIp".into(), address(facts.source_ip)),
            ("port".into(), Value::new_long(i64::from(facts.port))),
        ];
        if let Some(tls) = facts.tls {
            fields.push(("tls".into(), tls_record(tls, of.peer)?));
        }
        match facts.kind {
            RequestKind::Tcp(tcp) => {
                fields.extend(tcp.sni.map(|sni| ("sni".into(), string(sni))));
                return Ok(fields);
            }
            RequestKind::Http(http) => {
                fields.push(("host".into(), string(http.host)));
                fields.push(("method".into(), string(http.method)));
                fields.push(("path".into(), string(http.path)));
                fields.extend(
                    of.router
                        .template(of.route)
                        .map(|route| ("route".into(), string(route))),
                );
                let params = of
                    .router
                    .all_params(of.route, http.path)
                    .filter(|(name, _)| self.declared.params.contains(*name))
                    .map(|(name, value)| (name.to_owned(), string(value)))
                    .collect();
                fields.push(("params".into(), record(params)?));
                fields.push((
                    "query".into(),
                    slots(&self.target.query, |slot| of.query.get(slot))?,
                ));
            }
            RequestKind::Grpc(grpc) => {
                fields.push(("host".into(), string(grpc.host)));
                fields.push(("service".into(), string(grpc.service)));
                fields.push(("method".into(), string(grpc.method)));
            }
        }
        fields.push(("clientIp".into(), address(facts.client_ip)));
        fields.push((
            "headers".into(),
            slots(&self.target.headers, |slot| of.headers.get(slot))?,
        ));
        if let Some(user) = facts.user {
            let id = uid(&Entity::new(EntityKind::User, user.id.as_str()))?;
            fields.push(("user".into(), Value::new_entity_uid(id)));
        }
        Ok(fields)
    }

    fn entities(&self, of: &Reading<'_>) -> Result<Vec<cedar_policy::Entity>, String> {
        let mut parents: BTreeMap<Entity, BTreeSet<Entity>> = BTreeMap::new();
        let mut attributes: BTreeMap<Entity, Fields> = BTreeMap::new();

        // --- the service
        let service = &self.target.service;
        attributes.insert(
            service.clone(),
            vec![(
                "namespace".into(),
                Value::new_entity_uid(uid(&self.target.namespace)?),
            )],
        );
        add_ancestors(
            &mut parents,
            service,
            &self.target.ancestors,
            &self.target.namespace,
        );

        // --- the peer
        let peer = &of.peer.entity;
        parents.entry(peer.clone()).or_default();
        if let Some(workload) = &of.peer.workload {
            add_ancestors(&mut parents, peer, &of.peer.ancestors, &workload.namespace);
            attributes.insert(
                peer.clone(),
                vec![
                    (
                        "namespace".into(),
                        Value::new_entity_uid(uid(&workload.namespace)?),
                    ),
                    ("serviceAccount".into(), string(&workload.service_account)),
                    (
                        "trustDomain".into(),
                        Value::new_entity_uid(uid(&workload.trust_domain)?),
                    ),
                ],
            );
        }

        let mut all = Vec::new();
        for (entity, of) in parents {
            let of: HashSet<EntityUid> = of.iter().map(uid).collect::<Result<_, _>>()?;
            let own = attributes.remove(&entity).unwrap_or_default();
            all.push(
                cedar_policy::Entity::new(uid(&entity)?, own.into_iter().collect(), of)
                    .map_err(text)?,
            );
        }
        if let Some(user) = of.facts.user {
            self.user(user, &mut all)?;
        }
        Ok(all)
    }

    fn user(&self, user: &User, all: &mut Vec<cedar_policy::Entity>) -> Result<(), String> {
        let issuer = uid(&Entity::new(EntityKind::Issuer, user.issuer_name.as_str()))?;
        let claims = user
            .claims
            .iter()
            .filter(|(name, value)| self.declared.claims.get(*name) == Some(&claim_type(value)))
            .map(|(name, value)| (name.clone(), claim(value)))
            .collect();
        let mut fields: Fields = vec![
            ("issuer".into(), Value::new_entity_uid(issuer.clone())),
            ("subject".into(), string(&user.subject)),
            ("audience".into(), strings(&user.audience)),
            ("scopes".into(), strings(&user.scopes)),
            ("amr".into(), strings(&user.amr)),
            ("claims".into(), record(claims)?),
        ];
        fields.extend(
            user.client_id
                .as_deref()
                .map(|id| ("clientId".into(), string(id))),
        );
        fields.extend(user.acr.as_deref().map(|acr| ("acr".into(), string(acr))));
        if let Some(at) = user.auth_time {
            fields.push(("authTime".into(), datetime(at)?));
        }
        let groups: BTreeSet<&String> = user.groups.iter().collect();
        let groups: Vec<EntityUid> = groups
            .into_iter()
            .map(|group| uid(&Entity::new(EntityKind::Group, group.as_str())))
            .collect::<Result<_, _>>()?;
        let tags = user
            .tags
            .iter()
            .map(|(name, texts)| (name.clone(), strings(texts)));
        all.push(
            cedar_policy::Entity::new_with_tags(
                uid(&Entity::new(EntityKind::User, user.id.as_str()))?,
                fields,
                groups.clone(),
                tags,
            )
            .map_err(text)?,
        );
        all.extend(groups.into_iter().map(cedar_policy::Entity::with_uid));
        all.push(cedar_policy::Entity::with_uid(issuer));
        Ok(())
    }
}

impl Inputs {
    /// Evaluates one policy. `alone` contains only this policy.
    pub(crate) fn evaluate(&self, alone: &PolicySet) -> (Verdict, Option<String>) {
        let response = Authorizer::new().is_authorized(&self.request, alone, &self.entities);
        if let Some(error) = response.diagnostics().errors().next() {
            return (Verdict::Error, Some(error.to_string()));
        }
        if response.diagnostics().reason().next().is_some() {
            (Verdict::Holds, None)
        } else {
            (Verdict::DoesNotHold, None)
        }
    }

    /// Like [`Inputs::evaluate`], for a policy that is not in a set.
    pub(crate) fn evaluate_policy(&self, policy: &Policy) -> (Verdict, Option<String>) {
        let mut alone = PolicySet::new();
        match alone.add(policy.clone()) {
            Ok(()) => self.evaluate(&alone),
            Err(error) => (Verdict::Error, Some(error.to_string())),
        }
    }
}

/// Adds `ancestors` as parents of `entity`; the trust domain becomes a parent of the namespace.
fn add_ancestors(
    parents: &mut BTreeMap<Entity, BTreeSet<Entity>>,
    entity: &Entity,
    ancestors: &[Entity],
    namespace: &Entity,
) {
    for ancestor in ancestors {
        let child = if ancestor.kind == EntityKind::TrustDomain {
            namespace
        } else {
            entity
        };
        parents
            .entry(child.clone())
            .or_default()
            .insert(ancestor.clone());
        parents.entry(ancestor.clone()).or_default();
    }
}

fn slots<'a>(
    names: &[Box<str>],
    value: impl Fn(usize) -> Option<&'a str>,
) -> Result<Value, String> {
    let fields = names
        .iter()
        .enumerate()
        .filter_map(|(slot, name)| Some((name.to_string(), string(value(slot)?))))
        .collect();
    record(fields)
}

fn tls_record(tls: TlsFacts<'_>, peer: &PeerFacts) -> Result<Value, String> {
    let mut fields = vec![
        ("version".to_owned(), string(tls.version)),
        ("cipher".to_owned(), string(tls.cipher)),
        ("dnsNames".to_owned(), strings(tls.dns_names)),
    ];
    fields.extend(
        peer.spiffe_id
            .as_deref()
            .map(|id| ("spiffeId".to_owned(), string(id))),
    );
    record(fields)
}

fn claim(value: &ClaimValue) -> Value {
    match value {
        ClaimValue::String(text) => string(text),
        ClaimValue::Long(number) => Value::new_long(*number),
        ClaimValue::Boolean(value) => Value::new_bool(*value),
        ClaimValue::StringSet(texts) => strings(texts),
    }
}

fn claim_type(value: &ClaimValue) -> ClaimType {
    match value {
        ClaimValue::String(_) => ClaimType::String,
        ClaimValue::Long(_) => ClaimType::Long,
        ClaimValue::Boolean(_) => ClaimType::Boolean,
        ClaimValue::StringSet(_) => ClaimType::StringSet,
    }
}

fn string(text: &str) -> Value {
    Value::new_string(text.to_owned())
}

fn strings(texts: &[String]) -> Value {
    Value::new_set(texts.iter().map(|text| string(text)))
}

fn record(fields: Fields) -> Result<Value, String> {
    Value::new_record(fields).map_err(text)
}

fn datetime(at: Timestamp) -> Result<Value, String> {
    let milliseconds = Timestamp::from_millisecond(at.as_millisecond()).map_err(text)?;
    Ok(Value::new_datetime(
        milliseconds.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
    ))
}

fn address(ip: IpAddr) -> Value {
    let written = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        // Cedar rejects IPv6 addresses in dotted notation, which Rust uses for some.
        IpAddr::V6(ip) => ip
            .segments()
            .map(|segment| format!("{segment:x}"))
            .join(":"),
    };
    Value::new_ip(written)
}

pub(crate) fn uid(entity: &Entity) -> Result<EntityUid, String> {
    Ok(EntityUid::from_type_name_and_id(
        EntityTypeName::from_str(entity.kind.name()).map_err(text)?,
        EntityId::new(&*entity.id),
    ))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
