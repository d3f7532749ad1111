//! One service's policies, compiled: what the proxy asks.

use merlon_config::{
    name::ServiceName,
    snapshot::{InboundService, MeshState},
};

use crate::{
    authn::TokenRules,
    decision::{Decision, Deny, DenyKind},
    facts::RequestFacts,
    principal::{PeerFacts, Principal},
    problem::PolicyProblem,
    record::RecordedFacts,
    validate::{BodyRule, HeadFacts, RouteMatch, Violation},
};

/// All that decides about requests to one service, compiled once per snapshot.
#[derive(Debug)]
pub struct ServicePolicy {
    name: ServiceName,
    mesh: MeshState,
    service: InboundService,
    tokens: TokenRules,
}

/// The policies that can concern one peer: found once per connection and service.
#[derive(Debug, Clone)]
pub struct Candidates {
    _policies: Vec<u32>,
}

impl ServicePolicy {
    /// Parses, validates and compiles everything that reaches `service`.
    ///
    /// # Errors
    /// Every problem of every document at once.
    pub fn compile(service: &InboundService, mesh: &MeshState) -> Result<Self, Vec<PolicyProblem>> {
        Ok(Self {
            name: service.name.clone(),
            mesh: mesh.clone(),
            service: service.clone(),
            tokens: TokenRules::new(&service.authentication),
        })
    }

    /// Which service.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Which bearer tokens it accepts.
    pub fn tokens(&self) -> &TokenRules {
        &self.tokens
    }

    /// How many of its policies are left to Cedar's evaluator, which is slower.
    pub fn fallback_policies(&self) -> usize {
        0
    }

    /// Resolves a peer for this service's policies.
    pub fn peer(&self, principal: &Principal) -> PeerFacts {
        PeerFacts::new(principal, &self.mesh, &self.service.workload_groups)
    }

    /// The policies that can concern this peer.
    pub fn candidates(&self, _peer: &PeerFacts) -> Candidates {
        Candidates {
            _policies: Vec::new(),
        }
    }

    /// Decides. `candidates` and `peer` are this service's.
    pub fn decide(
        &self,
        candidates: &Candidates,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
    ) -> Decision {
        let _ = (candidates, peer, facts.action());
        Decision::Deny(Deny::new(DenyKind::NothingPermits))
    }

    /// Only its forbids, for a request that is another service's on the same port: every Service that selects the
    /// workload on that port has its say.
    pub fn forbids(
        &self,
        candidates: &Candidates,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
    ) -> Option<Deny> {
        let _ = (candidates, peer, facts);
        None
    }

    /// Keeps what is needed to decide again.
    pub fn record(
        &self,
        peer: &PeerFacts,
        facts: &RequestFacts<'_>,
        decision: &Decision,
    ) -> RecordedFacts {
        RecordedFacts {
            service: self.name.clone(),
            principal: peer.principal().clone(),
            request: crate::record::RecordedRequest::Tcp { sni: None },
            source_ip: facts.source_ip,
            client_ip: facts.client_ip,
            port: facts.port,
            now: facts.now,
            user: facts.user.cloned(),
            tls: None,
            decided: Some(crate::record::RecordedDecision {
                allowed: matches!(decision, Decision::Permit(_)),
                policy: decision.policy().cloned(),
                code: None,
            }),
        }
    }

    /// Which templates a normalised path fits. The same answer serves policies and checks.
    pub fn route(&self, _method: &str, _path: &str) -> RouteMatch {
        RouteMatch::NONE
    }

    /// The template that a route is, as `/orders/{id}`.
    pub fn template(&self, _route: &RouteMatch) -> Option<&str> {
        None
    }

    /// Checks sizes, method, media type and route.
    ///
    /// # Errors
    /// The first violation.
    pub fn check_head(&self, _head: &HeadFacts<'_>, _route: &RouteMatch) -> Result<(), Violation> {
        Ok(())
    }

    /// The most bytes a body may have, streamed or not; none: no limit.
    pub fn max_body(&self, _route: &RouteMatch) -> Option<u64> {
        None
    }

    /// What the body must be; none: it is passed on as it comes.
    pub fn body_rule(&self, _route: &RouteMatch) -> Option<BodyRule<'_>> {
        None
    }
}
