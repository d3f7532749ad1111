//! Policies specialised to one service and compiled. Policies that do not compile are left to Cedar's evaluator.

mod compile;
mod eval;
mod expr;
mod gather;
mod reading;
mod value;

use std::sync::Arc;

use cedar_policy::pst::{
    self, ActionConstraint, Clause, EntityOrSlot, PrincipalConstraint, ResourceConstraint,
};
use foldhash::{HashMap, HashMapExt};

pub(crate) use compile::Target;
pub(crate) use gather::{Gathered, Names, decode};
pub(crate) use reading::{Reading, Slots};

use self::{
    compile::{Unsupported, action_bits, entity, entity_kind},
    expr::Expr,
};
use crate::{
    decision::{Effect, PolicyInfo},
    document::Policy,
    principal::{Entity, PeerFacts},
};

/// The policies that can apply to one service.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    /// Forbids first, each in the order of documents.
    policies: Vec<Compiled>,
    by_principal: HashMap<Entity, Vec<u32>>,
    any_principal: Vec<u32>,
}

/// One policy.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) info: Arc<PolicyInfo>,
    /// The actions in its scope, as [`crate::facts::Action::bit`]s.
    pub(crate) actions: u16,
    pub(crate) body: Body,
}

/// How a policy's conditions are evaluated.
#[derive(Debug)]
pub(crate) enum Body {
    /// By this crate.
    Compiled(Expr),
    /// By Cedar: a set that contains only this policy.
    Cedar(Box<cedar_policy::PolicySet>),
}

/// The result of evaluating a policy on one reading of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    DoesNotHold,
    Error,
}

/// The parts of a policy's scope that depend on the request.
struct Scope {
    actions: u16,
    /// The principals in scope; empty means any.
    principals: Vec<Entity>,
    condition: Expr,
}

impl Matcher {
    pub(crate) fn new(policies: &[Policy], target: &Target) -> Self {
        let mut matcher = Self {
            by_principal: HashMap::new(),
            ..Self::default()
        };
        let mut compiled_policies: Vec<(Vec<Entity>, Compiled)> = policies
            .iter()
            .filter_map(|policy| target.compile(policy))
            .collect();
        compiled_policies.sort_by_key(|(_, compiled)| compiled.info.effect);
        for (principals, compiled) in compiled_policies {
            let number = u32::try_from(matcher.policies.len()).unwrap_or(u32::MAX);
            if principals.is_empty() {
                matcher.any_principal.push(number);
            }
            for principal in principals {
                matcher
                    .by_principal
                    .entry(principal)
                    .or_default()
                    .push(number);
            }
            matcher.policies.push(compiled);
        }
        matcher
    }

    /// The indexes of the policies whose principal scope admits this peer, forbids first.
    pub(crate) fn candidates(&self, peer: &PeerFacts) -> Vec<u32> {
        let mut found = self.any_principal.clone();
        for entity in std::iter::once(&peer.entity).chain(&peer.ancestors) {
            found.extend(self.by_principal.get(entity).into_iter().flatten());
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    pub(crate) fn policy(&self, number: u32) -> Option<&Compiled> {
        self.policies.get(usize::try_from(number).ok()?)
    }

    pub(crate) fn fallback_policies(&self) -> usize {
        self.policies
            .iter()
            .filter(|policy| matches!(policy.body, Body::Cedar(_)))
            .count()
    }
}

impl Compiled {
    pub(crate) fn is_forbid(&self) -> bool {
        self.info.effect == Effect::Forbid
    }
}

impl Target {
    /// `None` when the policy can never apply to this service.
    fn compile(&self, policy: &Policy) -> Option<(Vec<Entity>, Compiled)> {
        let compiled = |actions, body| Compiled {
            info: Arc::clone(&policy.info),
            actions,
            body,
        };
        let left_to_cedar = |actions| {
            let mut alone = cedar_policy::PolicySet::new();
            // The set is empty, so the id is free.
            let _ = alone.add(policy.cedar.clone());
            compiled(actions, Body::Cedar(Box::new(alone)))
        };
        let pst = policy.pst.body();
        match self.compile_scope(pst) {
            Ok(None) => None,
            Err(Unsupported) => Some((Vec::new(), left_to_cedar(u16::MAX))),
            Ok(Some(scope)) => match self.compile_conditions(pst) {
                Err(Unsupported) => Some((scope.principals, left_to_cedar(scope.actions))),
                Ok(conditions) => match Expr::and([scope.condition, conditions]) {
                    Expr::Bool(false) => None,
                    whole => Some((
                        scope.principals,
                        compiled(scope.actions, Body::Compiled(whole)),
                    )),
                },
            },
        }
    }

    fn compile_scope(&self, policy: &pst::Template) -> Result<Option<Scope>, Unsupported> {
        let applies = match &policy.resource {
            ResourceConstraint::Any => true,
            ResourceConstraint::Eq(of) => fixed(of)? == self.service,
            ResourceConstraint::In(of) => self.is_in(&fixed(of)?),
            ResourceConstraint::Is(kind) => entity_kind(kind)? == self.service.kind,
            ResourceConstraint::IsIn(kind, of) => {
                entity_kind(kind)? == self.service.kind && self.is_in(&fixed(of)?)
            }
        };
        let actions = match &policy.action {
            ActionConstraint::Any => u16::MAX,
            ActionConstraint::Eq(uid) => action_bits(uid, false),
            ActionConstraint::In(uids) => uids
                .iter()
                .fold(0, |mask, uid| mask | action_bits(uid, true)),
        };
        if !applies || actions == 0 {
            return Ok(None);
        }
        let (principals, condition) = match &policy.principal {
            PrincipalConstraint::Any => (Vec::new(), Expr::Bool(true)),
            PrincipalConstraint::Eq(of) => {
                let of = fixed(of)?;
                (
                    vec![of.clone()],
                    Expr::Eq(Box::new([Expr::Principal, Expr::Entity(of)])),
                )
            }
            // The index finds exactly the peers that are in it.
            PrincipalConstraint::In(of) => (vec![fixed(of)?], Expr::Bool(true)),
            PrincipalConstraint::Is(kind) => (Vec::new(), Expr::PrincipalIs(entity_kind(kind)?)),
            PrincipalConstraint::IsIn(kind, of) => {
                (vec![fixed(of)?], Expr::PrincipalIs(entity_kind(kind)?))
            }
        };
        Ok(Some(Scope {
            actions,
            principals,
            condition,
        }))
    }

    fn compile_conditions(&self, policy: &pst::Template) -> Result<Expr, Unsupported> {
        let mut all = Vec::new();
        for clause in policy.clauses() {
            all.push(match clause {
                Clause::When(condition) => self.expr(condition, 0)?,
                Clause::Unless(condition) => self.expr(condition, 0)?.negate(),
            });
        }
        Ok(Expr::and(all))
    }
}

fn fixed(of: &EntityOrSlot) -> Result<Entity, Unsupported> {
    match of {
        EntityOrSlot::Entity(uid) => entity(uid),
        EntityOrSlot::Slot(_) => Err(Unsupported),
    }
}
