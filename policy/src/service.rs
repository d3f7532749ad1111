//! The compiled policies of one service, and the interface that the proxy calls.

use std::{borrow::Cow, cell::OnceCell, sync::Arc};

use merlon_config::{
    name::ServiceName,
    snapshot::{InboundService, MeshState},
};

use crate::{
    authn::TokenRules,
    cedar::{InputBuilder, Inputs},
    contain,
    decision::{Decision, Deny, DenyKind, Permit, PolicyInfo},
    facts::{RequestFacts, RequestKind},
    matcher::{Body, Compiled, Gathered, Matcher, Names, Reading, Slots, Verdict},
    prepare::Prepared,
    principal::{PeerFacts, Principal},
    problem::PolicyProblem,
    record::RecordedFacts,
    stack,
    validate::{BodyRule, HeadFacts, RouteMatch, Router, Violation, check_head, max_body},
};

/// Everything that decides on requests to one service, compiled once per snapshot.
#[derive(Debug)]
pub struct ServicePolicy {
    name: ServiceName,
    mesh: MeshState,
    groups: std::collections::BTreeMap<String, Vec<merlon_config::name::WorkloadId>>,
    tokens: TokenRules,
    router: Router,
    names: Names,
    matcher: Matcher,
    /// Present only when policies are left to Cedar, since its schema is large.
    inputs: Option<Box<InputBuilder>>,
}

/// The policies that can apply to one peer, found once per connection and service.
#[derive(Debug, Clone)]
pub struct Candidates {
    stamp: u64,
    /// Forbids first.
    numbers: Vec<u32>,
}

impl ServicePolicy {
    /// Parses, validates and compiles every document that applies to `service`, on a stack of its own.
    ///
    /// # Errors
    /// All problems of all documents. A panic is a problem of the document that causes it.
    pub fn compile(service: &InboundService, mesh: &MeshState) -> Result<Self, Vec<PolicyProblem>> {
        contain::service(service, |service| {
            stack::with(|| Ok(Self::new(service, mesh, Prepared::new(service, mesh)?)))
        })
    }

    /// The problems of the documents that apply to `service`, without those that depend on names declared in other
    /// documents.
    pub fn structural_problems(service: &InboundService, mesh: &MeshState) -> Vec<PolicyProblem> {
        let prepared = contain::service(service, |service| {
            stack::with(|| Prepared::checked_by(|_, _| Vec::new(), service, mesh).map(drop))
        });
        prepared.err().unwrap_or_default()
    }

    fn new(service: &InboundService, mesh: &MeshState, prepared: Prepared) -> Self {
        let Prepared {
            policies,
            inputs,
            names,
            router,
            tokens,
        } = prepared;
        let matcher = Matcher::new(&policies, &inputs.target);
        let inputs = (matcher.fallback_policies() > 0).then(|| Box::new(inputs));
        Self {
            name: service.name.clone(),
            mesh: mesh.clone(),
            groups: service.workload_groups.clone(),
            tokens,
            router,
            names,
            matcher,
            inputs,
        }
    }

    /// The service's name.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// The headers that its policies read, in lower case.
    pub fn header_names(&self) -> impl Iterator<Item = &str> {
        self.names.headers.iter().map(|name| &**name)
    }

    /// The bearer tokens it accepts.
    pub fn tokens(&self) -> &TokenRules {
        &self.tokens
    }

    /// How many of its policies are left to Cedar's evaluator, which takes tens of microseconds; a compiled policy takes
    /// a tenth of a microsecond.
    pub fn fallback_policies(&self) -> usize {
        self.matcher.fallback_policies()
    }

    /// Resolves a peer for this service's policies.
    pub fn peer(&self, principal: &Principal) -> PeerFacts {
        PeerFacts::new(principal, &self.mesh, &self.groups, self.router.stamp())
    }

    /// The policies that can apply to this peer.
    pub fn candidates(&self, peer: &PeerFacts) -> Candidates {
        let peer = self.current_peer(peer);
        Candidates {
            stamp: self.router.stamp(),
            numbers: self.matcher.candidates(&peer),
        }
    }

    /// Decides on a request. A `forbid` that holds or cannot be evaluated denies it; otherwise a `permit` that holds
    /// allows it; otherwise it is denied.
    ///
    /// `candidates` and `peer` come from this `ServicePolicy`; those of another one are detected and resolved again.
    /// Does not allocate, unless a header is repeated, a query parameter is escaped, or a policy is left to Cedar.
    pub fn decide(
        &self,
        candidates: &Candidates,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
    ) -> Decision {
        match self.each_reading(candidates, peer, facts, |numbers, reading| {
            self.decide_reading(numbers, reading)
        }) {
            Ok(info) => Decision::Permit(Permit::new(info)),
            Err(deny) => Decision::Deny(deny),
        }
    }

    /// Evaluates only the forbids, for a request to another service on the same port: the forbids of every Service that
    /// selects the workload on that port apply.
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

    /// Records the facts that are needed to repeat the decision.
    pub fn record(
        &self,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
        decision: &Decision,
    ) -> RecordedFacts {
        let route = self.current_route(facts);
        RecordedFacts::new(
            &self.name,
            &self.names,
            (&self.router, &route),
            peer,
            facts,
            Some(decision),
        )
    }

    /// The templates that a normalised path matches, and their rules for the method. Policies and validation share the
    /// result.
    pub fn route(&self, method: &str, path: &str) -> RouteMatch {
        self.router.find(method, path)
    }

    /// The template of a route, such as `/orders/{id}`.
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

    /// Maximum size of a body in bytes, streamed or not; `None` means no limit. A larger body gets 413.
    pub fn max_body(&self, route: &RouteMatch) -> Option<u64> {
        max_body(&self.router, route)
    }

    /// The rule that the body must satisfy; `None` if it is forwarded unchecked.
    pub fn body_rule(&self, route: &RouteMatch) -> Option<BodyRule> {
        BodyRule::new(&self.router, route)
    }

    /// Decides once for each reading of the request's repeated headers. All must be allowed, since the application may
    /// use any of the values.
    fn each_reading<T>(
        &self,
        candidates: &Candidates,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
        decide: impl Fn(&[u32], &Reading<'_>) -> Result<T, DenyKind>,
    ) -> Result<T, Deny> {
        let peer = self.current_peer(peer);
        let resolved;
        let numbers = if candidates.stamp == self.router.stamp() {
            &candidates.numbers
        } else {
            resolved = self.matcher.candidates(&peer);
            &resolved
        };
        let route = self.current_route(facts);
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
        let allowed = decide(numbers, &joined).map_err(Deny::new)?;
        for number in 1..gathered.readings() {
            let headers: Slots<'_> = gathered.reading(number);
            let alone = Reading {
                headers: &headers,
                ..joined
            };
            decide(numbers, &alone).map_err(Deny::new)?;
        }
        Ok(allowed)
    }

    fn decide_reading<'s>(
        &'s self,
        numbers: &[u32],
        of: &Reading<'_>,
    ) -> Result<&'s Arc<PolicyInfo>, DenyKind> {
        let cedar = LazyInputs::new(self, of);
        for policy in self.applying(numbers, of) {
            match (policy.is_forbid(), cedar.verdict(policy)) {
                (true, Verdict::Holds) => {
                    return Err(DenyKind::Forbidden(Arc::clone(&policy.info)));
                }
                (true, Verdict::Error) => {
                    return Err(DenyKind::ForbidFailed(Arc::clone(&policy.info)));
                }
                (false, Verdict::Holds) => return Ok(&policy.info),
                _ => {}
            }
        }
        Err(DenyKind::NothingPermits)
    }

    fn forbid_in(&self, numbers: &[u32], of: &Reading<'_>) -> Option<DenyKind> {
        let cedar = LazyInputs::new(self, of);
        self.applying(numbers, of)
            .take_while(|policy| policy.is_forbid())
            .find_map(|policy| match cedar.verdict(policy) {
                Verdict::Holds => Some(DenyKind::Forbidden(Arc::clone(&policy.info))),
                Verdict::Error => Some(DenyKind::ForbidFailed(Arc::clone(&policy.info))),
                Verdict::DoesNotHold => None,
            })
    }

    /// The candidates whose scope includes the request's action, forbids first.
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

    /// Resolves a peer of another snapshot again, since its memberships may have changed.
    fn current_peer<'a>(&self, peer: &'a PeerFacts) -> Cow<'a, PeerFacts> {
        if peer.stamp == self.router.stamp() {
            Cow::Borrowed(peer)
        } else {
            Cow::Owned(self.peer(&peer.principal))
        }
    }

    fn current_route(&self, facts: &RequestFacts<'_>) -> RouteMatch {
        match facts.kind {
            RequestKind::Http(http) if !self.router.owns(http.route) => {
                self.router.find(http.method, http.path)
            }
            RequestKind::Http(http) => *http.route,
            _ => RouteMatch::NONE,
        }
    }
}

/// Cedar's inputs, built when the first policy needs them.
struct LazyInputs<'a> {
    service: &'a ServicePolicy,
    reading: &'a Reading<'a>,
    inputs: OnceCell<Option<Inputs>>,
}

impl<'a> LazyInputs<'a> {
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
                Ok(false) => Verdict::DoesNotHold,
                Err(_) => Verdict::Error,
            },
            Body::Cedar(alone) => self
                .inputs
                .get_or_init(|| self.service.inputs.as_ref()?.build(self.reading).ok())
                .as_ref()
                .map_or(Verdict::Error, |inputs| inputs.evaluate(alone).0),
        }
    }
}

#[cfg(test)]
mod deepest;

#[cfg(test)]
mod equality;

#[cfg(test)]
mod tests;
