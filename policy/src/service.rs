//! One service's policies, compiled: what the proxy asks.

use std::{borrow::Cow, cell::OnceCell, sync::Arc};

use merlon_config::{
    name::ServiceName,
    snapshot::{InboundService, MeshState},
};

use crate::{
    authn::TokenRules,
    cedar::{Inputs, World},
    decision::{Decision, Deny, DenyKind, Permit, PolicyInfo},
    facts::{RequestFacts, RequestKind},
    matcher::{Body, Compiled, Gathered, Matcher, Names, Reading, Slots, Verdict},
    prepare::Prepared,
    principal::{PeerFacts, Principal},
    problem::PolicyProblem,
    record::RecordedFacts,
    validate::{BodyRule, HeadFacts, RouteMatch, Router, Violation, check_head, max_body},
};

/// All that decides about requests to one service, compiled once per snapshot.
#[derive(Debug)]
pub struct ServicePolicy {
    name: ServiceName,
    mesh: MeshState,
    groups: std::collections::BTreeMap<String, Vec<merlon_config::name::WorkloadId>>,
    tokens: TokenRules,
    router: Router,
    names: Names,
    matcher: Matcher,
    /// Only kept where policies are left to Cedar, for its schema is large.
    world: Option<Box<World>>,
}

/// The policies that can concern one peer: found once per connection and service.
#[derive(Debug, Clone)]
pub struct Candidates {
    stamp: u64,
    /// Forbids first.
    numbers: Vec<u32>,
}

impl ServicePolicy {
    /// Parses, validates and compiles everything that reaches `service`.
    ///
    /// # Errors
    /// Every problem of every document at once.
    pub fn compile(service: &InboundService, mesh: &MeshState) -> Result<Self, Vec<PolicyProblem>> {
        Ok(Self::new(service, mesh, Prepared::new(service, mesh)?))
    }

    /// What is wrong with the documents that reach `service`, but for what depends on names that others declare.
    pub fn problems_of_form(service: &InboundService, mesh: &MeshState) -> Vec<PolicyProblem> {
        let prepared = Prepared::checked_by(|_, _| Vec::new(), service, mesh);
        prepared.err().unwrap_or_default()
    }

    fn new(service: &InboundService, mesh: &MeshState, prepared: Prepared) -> Self {
        let Prepared {
            policies,
            world,
            names,
            router,
            tokens,
        } = prepared;
        let matcher = Matcher::new(&policies, &world.target);
        let world = (matcher.fallback_policies() > 0).then(|| Box::new(world));
        Self {
            name: service.name.clone(),
            mesh: mesh.clone(),
            groups: service.workload_groups.clone(),
            tokens,
            router,
            names,
            matcher,
            world,
        }
    }

    /// Which service.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// The headers that its policies read, in lower case.
    pub fn header_names(&self) -> impl Iterator<Item = &str> {
        self.names.headers.iter().map(|name| &**name)
    }

    /// Which bearer tokens it accepts.
    pub fn tokens(&self) -> &TokenRules {
        &self.tokens
    }

    /// How many of its policies are left to Cedar's evaluator, which takes tens of microseconds where the compiled
    /// ones take a tenth of one.
    pub fn fallback_policies(&self) -> usize {
        self.matcher.fallback_policies()
    }

    /// Resolves a peer for this service's policies.
    pub fn peer(&self, principal: &Principal) -> PeerFacts {
        PeerFacts::new(principal, &self.mesh, &self.groups, self.router.stamp())
    }

    /// The policies that can concern this peer.
    pub fn candidates(&self, peer: &PeerFacts) -> Candidates {
        let peer = self.own(peer);
        Candidates {
            stamp: self.router.stamp(),
            numbers: self.matcher.candidates(&peer),
        }
    }

    /// Decides: a `forbid` that holds or errs denies, else a `permit` that holds allows, else it is denied.
    ///
    /// `candidates` and `peer` are this service's of this snapshot; others are recognised and made anew.
    /// Allocates nothing, unless a header is repeated, a query parameter is escaped, or a policy is left to Cedar.
    pub fn decide(
        &self,
        candidates: &Candidates,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
    ) -> Decision {
        match self.each_reading(candidates, peer, facts, |numbers, reading| {
            self.decide_reading(numbers, reading)
        }) {
            Ok(info) => Decision::Permit(Permit::mint(info)),
            Err(deny) => Decision::Deny(deny),
        }
    }

    /// Only its forbids, for a request that is another service's on the same port: every Service that selects the
    /// workload on that port has its say.
    pub fn forbids(
        &self,
        candidates: &Candidates,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
    ) -> Option<Deny> {
        self.each_reading(candidates, peer, facts, |numbers, reading| {
            self.forbid_in(numbers, reading).map_or(Ok(()), Err)
        })
        .err()
    }

    /// Keeps what is needed to decide again.
    pub fn record(
        &self,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
        decision: &Decision,
    ) -> RecordedFacts {
        let route = self.own_route(facts);
        RecordedFacts::new(
            &self.name,
            &self.names,
            (&self.router, &route),
            peer,
            facts,
            Some(decision),
        )
    }

    /// Which templates a normalised path fits, and which of their rules is for the method. The same answer serves policies and checks.
    pub fn route(&self, method: &str, path: &str) -> RouteMatch {
        self.router.find(method, path)
    }

    /// The template that a route is, as `/orders/{id}`.
    pub fn template(&self, route: &RouteMatch) -> Option<&str> {
        self.router.template(route)
    }

    /// Checks sizes, method, media type and route.
    ///
    /// # Errors
    /// The first violation.
    pub fn check_head(&self, head: &HeadFacts<'_>, route: &RouteMatch) -> Result<(), Violation> {
        check_head(&self.router, head, route)
    }

    /// The most bytes a body may have, streamed or not; none: no limit. Over it: 413.
    pub fn max_body(&self, route: &RouteMatch) -> Option<u64> {
        max_body(&self.router, route)
    }

    /// What the body must be; none: it is passed on as it comes.
    pub fn body_rule<'a>(&'a self, route: &'a RouteMatch) -> Option<BodyRule<'a>> {
        BodyRule::new(&self.router, route)
    }

    /// Asks once for every way to read the request's repeated headers. All must agree to a yes: a value that stands
    /// second may be the one that the program takes.
    fn each_reading<T>(
        &self,
        candidates: &Candidates,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
        ask: impl Fn(&[u32], &Reading<'_>) -> Result<T, DenyKind>,
    ) -> Result<T, Deny> {
        let peer = self.own(peer);
        let fresh;
        let numbers = if candidates.stamp == self.router.stamp() {
            &candidates.numbers
        } else {
            fresh = self.matcher.candidates(&peer);
            &fresh
        };
        let route = self.own_route(facts);
        let gathered = Gathered::new(&self.names, facts)?;
        let joined = Reading {
            action: facts.action(),
            peer: &peer,
            facts,
            router: &self.router,
            route: &route,
            headers: &gathered.headers,
            query: &gathered.query,
        };
        let answer = ask(numbers, &joined).map_err(Deny::new)?;
        for number in 1..gathered.readings() {
            let headers: Slots<'_> = gathered.reading(number);
            let alone = Reading {
                headers: &headers,
                ..joined
            };
            ask(numbers, &alone).map_err(Deny::new)?;
        }
        Ok(answer)
    }

    fn decide_reading<'s>(
        &'s self,
        numbers: &[u32],
        of: &Reading<'_>,
    ) -> Result<&'s Arc<PolicyInfo>, DenyKind> {
        let cedar = Lazy::new(self, of);
        for policy in self.applying(numbers, of) {
            match (policy.is_forbid(), cedar.verdict(policy)) {
                (true, Verdict::Holds) => {
                    return Err(DenyKind::Forbidden(Arc::clone(&policy.info)));
                }
                (true, Verdict::Errs) => {
                    return Err(DenyKind::ForbidFailed(Arc::clone(&policy.info)));
                }
                (false, Verdict::Holds) => return Ok(&policy.info),
                _ => {}
            }
        }
        Err(DenyKind::NothingPermits)
    }

    fn forbid_in(&self, numbers: &[u32], of: &Reading<'_>) -> Option<DenyKind> {
        let cedar = Lazy::new(self, of);
        self.applying(numbers, of)
            .take_while(|policy| policy.is_forbid())
            .find_map(|policy| match cedar.verdict(policy) {
                Verdict::Holds => Some(DenyKind::Forbidden(Arc::clone(&policy.info))),
                Verdict::Errs => Some(DenyKind::ForbidFailed(Arc::clone(&policy.info))),
                Verdict::DoesNot => None,
            })
    }

    /// The candidates whose scope has the request's action, forbids first.
    fn applying<'s>(
        &'s self,
        numbers: &[u32],
        of: &Reading<'_>,
    ) -> impl Iterator<Item = &'s Compiled> {
        let action = of.action.bit();
        numbers
            .iter()
            .filter_map(|number| self.matcher.policy(*number))
            .filter(move |policy| policy.actions & action != 0)
    }

    /// A peer resolved by another snapshot may have lost or won memberships since.
    fn own<'a>(&self, peer: &'a PeerFacts) -> Cow<'a, PeerFacts> {
        if peer.stamp == self.router.stamp() {
            Cow::Borrowed(peer)
        } else {
            Cow::Owned(self.peer(&peer.principal))
        }
    }

    fn own_route(&self, facts: &RequestFacts<'_>) -> RouteMatch {
        match facts.kind {
            RequestKind::Http(http) if !self.router.is_mine(http.route) => {
                self.router.find(http.method, http.path)
            }
            RequestKind::Http(http) => *http.route,
            _ => RouteMatch::NONE,
        }
    }
}

/// Cedar's inputs, made when the first policy needs them.
struct Lazy<'a> {
    service: &'a ServicePolicy,
    reading: &'a Reading<'a>,
    inputs: OnceCell<Option<Inputs>>,
}

impl<'a> Lazy<'a> {
    fn new(service: &'a ServicePolicy, reading: &'a Reading<'a>) -> Self {
        Self {
            service,
            reading,
            inputs: OnceCell::new(),
        }
    }

    fn verdict(&self, policy: &Compiled) -> Verdict {
        match &policy.body {
            Body::Compiled(condition) => match condition.holds(self.reading) {
                Ok(true) => Verdict::Holds,
                Ok(false) => Verdict::DoesNot,
                Err(_) => Verdict::Errs,
            },
            Body::Cedar(alone) => self
                .inputs
                .get_or_init(|| self.service.world.as_ref()?.inputs(self.reading).ok())
                .as_ref()
                .map_or(Verdict::Errs, |inputs| inputs.ask(alone).0),
        }
    }
}

#[cfg(test)]
mod equality;

#[cfg(test)]
pub(crate) mod tests;
