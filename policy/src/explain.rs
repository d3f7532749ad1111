//! Explains decisions with Cedar's own evaluator.

mod outcome;
mod reasons;

use merlon_config::snapshot::{InboundService, MeshState, PolicyName};
use serde::{Deserialize, Serialize};

pub use outcome::PolicyOutcome;

use crate::{
    cedar::Inputs,
    contain,
    decision::{Effect, PolicyInfo},
    document::Policy,
    facts::{GrpcFacts, HttpFacts, RequestFacts, RequestKind, TcpFacts, TlsFacts},
    matcher::{Gathered, Reading},
    prepare::Prepared,
    principal::PeerFacts,
    problem::PolicyProblem,
    record::{RecordedFacts, RecordedHeaders, RecordedRequest, query_text},
    stack,
    validate::RouteMatch,
};

/// A decision repeated from recorded facts, with the outcome of every policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether the given policies allow the request.
    pub allowed: bool,
    /// The decision in one sentence.
    pub summary: String,
    /// The policies that decided; empty when no policy permitted the request.
    #[serde(default)]
    pub determining: Vec<PolicyName>,
    /// Every policy that applies to the service, forbids first.
    #[serde(default)]
    pub policies: Vec<PolicyExplanation>,
}

/// The outcome of one policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyExplanation {
    /// The policy.
    pub policy: PolicyInfo,
    /// Whether it holds.
    pub outcome: PolicyOutcome,
}

/// Decides on recorded facts with the given policies of `service`, which may be those of the time of the decision or
/// today's.
///
/// Cedar's evaluator decides; the compiled matcher is not used.
///
/// # Errors
/// When the policies do not compile.
pub fn explain(
    service: &InboundService,
    mesh: &MeshState,
    facts: &RecordedFacts,
) -> Result<Explanation, Vec<PolicyProblem>> {
    contain::service(service, |service| {
        stack::with(|| explained(service, mesh, facts))
    })
}

/// As [`explain`], on the caller's stack.
pub(crate) fn explained(
    service: &InboundService,
    mesh: &MeshState,
    facts: &RecordedFacts,
) -> Result<Explanation, Vec<PolicyProblem>> {
    let prepared = Prepared::new(service, mesh)?;
    let headers = RecordedHeaders(facts.request.headers());
    let query = facts.request.query().map(query_text);
    let route = match &facts.request {
        RecordedRequest::Http { method, path, .. } => prepared.router.find(method, path),
        _ => RouteMatch::NONE,
    };
    let request = RequestFacts {
        kind: match &facts.request {
            RecordedRequest::Http {
                host, method, path, ..
            } => RequestKind::Http(HttpFacts {
                host,
                method,
                path,
                query: query.as_deref(),
                route: &route,
                headers: &headers,
            }),
            RecordedRequest::Grpc {
                host,
                service,
                method,
                ..
            } => RequestKind::Grpc(GrpcFacts {
                host,
                service,
                method,
                headers: &headers,
            }),
            RecordedRequest::Tcp { sni } => RequestKind::Tcp(TcpFacts {
                sni: sni.as_deref(),
            }),
        },
        source_ip: facts.source_ip,
        client_ip: facts.client_ip,
        port: facts.port,
        now: facts.now,
        user: facts.user.as_ref(),
        tls: facts.tls.as_ref().map(|tls| TlsFacts {
            version: &tls.version,
            cipher: &tls.cipher,
            dns_names: &tls.dns_names,
        }),
    };
    let peer = PeerFacts::new(&facts.principal, mesh, &service.workload_groups, 0);
    let gathered = match Gathered::new(&prepared.names, &request) {
        Ok(gathered) => gathered,
        Err(deny) => return Ok(Explanation::invalid_facts(&deny)),
    };
    let mut explanation = None;
    // Of the readings of repeated headers, the first that is denied; otherwise the first.
    for number in 0..gathered.readings() {
        let slots = gathered.reading(number);
        let reading = Reading {
            action: request.action(),
            peer: &peer,
            facts: &request,
            router: &prepared.router,
            route: &route,
            headers: &slots,
            query: &gathered.query,
        };
        let found = match prepared.inputs.build(&reading) {
            Ok(inputs) => Explanation::new(&prepared.policies, &inputs),
            Err(problem) => Explanation::invalid_facts(&problem),
        };
        if !found.allowed || explanation.is_none() {
            let allowed = found.allowed;
            explanation = Some(found);
            if !allowed {
                break;
            }
        }
    }
    Ok(explanation
        .unwrap_or_else(|| Explanation::invalid_facts(&"the request has no valid reading")))
}

impl Explanation {
    /// A denial because the facts are invalid.
    fn invalid_facts(problem: &impl std::fmt::Display) -> Self {
        Self {
            allowed: false,
            summary: format!("denied: {problem}"),
            determining: Vec::new(),
            policies: Vec::new(),
        }
    }

    fn new(policies: &[Policy], inputs: &Inputs) -> Self {
        let mut explained: Vec<PolicyExplanation> = policies
            .iter()
            .map(|policy| PolicyExplanation {
                policy: (*policy.info).clone(),
                outcome: reasons::outcome(policy, inputs),
            })
            .collect();
        explained.sort_by_key(|one| one.policy.effect);
        let deciding = |effect: Effect| {
            explained
                .iter()
                .filter(move |one| one.policy.effect == effect)
                .filter(move |one| match one.outcome {
                    PolicyOutcome::Holds => true,
                    // A forbid that cannot be evaluated might hold.
                    PolicyOutcome::Error { .. } => effect == Effect::Forbid,
                    _ => false,
                })
                .map(|one| one.policy.name.clone())
                .collect::<Vec<_>>()
        };
        let (forbids, permits) = (deciding(Effect::Forbid), deciding(Effect::Permit));
        let (allowed, determining, summary) = match (forbids.first(), permits.first()) {
            (Some(first), _) => (
                false,
                forbids.clone(),
                format!("denied: `{first}` forbids it"),
            ),
            (None, Some(first)) => (
                true,
                permits.clone(),
                format!("allowed: `{first}` permits it"),
            ),
            (None, None) => (false, Vec::new(), "denied: no policy permits it".to_owned()),
        };
        Self {
            allowed,
            summary,
            determining,
            policies: explained,
        }
    }
}

#[cfg(test)]
mod tests;
