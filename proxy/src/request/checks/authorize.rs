//! Authorizes the request: the policies of the service, and the `forbid`s of the services that share its program port.

use std::{rc::Rc, sync::Arc};

use http::Method;
use merlon_config::resource::AppProtocol;
use merlon_policy::{
    decision::Decision,
    facts::{GrpcFacts, Headers, HttpFacts, RequestFacts, RequestKind},
    record::RecordedFacts,
};

use super::stage::{Permitted, WithinQuota};
use crate::{
    protocol::{denial::Denial, tls_session::TlsSession},
    request::{
        call::Call,
        open_permit::{AuthzQuery, OpenPermit, QueryKind, grpc_name, headers_read_by},
        target::{PolicyHeaders, Target},
    },
    telemetry::decision_log::{DecisionFacts, Outcome, RecordedDecision},
};

/// # Errors
/// [`Denial::Policy`].
pub(crate) fn authorize(within_quota: WithinQuota<'_>) -> Result<Permitted<'_>, Denial> {
    let target = &*within_quota.target;
    let call = &*within_quota.call;
    // Registered before the decision, so that no snapshot change is missed in between.
    let open_permit = call.local.register(open_permit(call, &within_quota.target));
    let headers = PolicyHeaders(&call.head.headers);
    let facts = facts(call, target, &headers);
    let decision = target.decide(&facts);
    record(call, target, &facts, &decision);
    let permit = decision.into_result()?;
    // The snapshot may have changed earlier, while the token's keys were fetched.
    let now = call.local.current();
    if now.generation != call.current.generation {
        open_permit.recheck(now.snapshot().map(|snapshot| &**snapshot));
    }
    Ok(within_quota.permitted(permit, open_permit))
}

/// Keeps what is needed to decide again.
fn open_permit(call: &Call, target: &Rc<Target>) -> OpenPermit {
    let host = call.parsed.authority.clone();
    let uri = call.head.uri.clone();
    let headers = headers_read_by(target, &call.head.headers);
    let kind = if grpc(call, target).is_some() {
        QueryKind::Grpc { host, uri, headers }
    } else {
        QueryKind::Http {
            method: if call.parsed.websocket {
                Method::GET
            } else {
                call.head.method.clone()
            },
            host,
            uri,
            headers,
        }
    };
    OpenPermit::new(AuthzQuery {
        target: Rc::clone(target),
        kind,
        address: call.address.ip(),
        user: call.user.clone(),
        session: call.session.clone(),
    })
}

fn facts<'a>(call: &'a Call, target: &Target, headers: &'a dyn Headers) -> RequestFacts<'a> {
    RequestFacts {
        kind: kind(call, target, headers),
        source_ip: call.address.ip(),
        client_ip: call.address.ip(),
        port: target.port,
        now: call.now,
        user: call.user.as_deref(),
        tls: call.session.as_deref().map(TlsSession::facts),
    }
}

fn kind<'a>(call: &'a Call, target: &Target, headers: &'a dyn Headers) -> RequestKind<'a> {
    let host = call.parsed.authority.as_str();
    let path = call.head.uri.path();
    if let Some((service, method)) = grpc(call, target) {
        return RequestKind::Grpc(GrpcFacts {
            host,
            service,
            method,
            headers,
        });
    }
    RequestKind::Http(HttpFacts {
        host,
        method: call.method(),
        path,
        query: call.head.uri.query(),
        route: &call.route,
        headers,
    })
}

/// The service and method of a gRPC call. On a port that is not declared as gRPC, a content type must not select the
/// action: the policies for HTTP would not apply.
fn grpc<'a>(call: &'a Call, target: &Target) -> Option<(&'a str, &'a str)> {
    (target.protocol == AppProtocol::Grpc && call.grpc)
        .then(|| grpc_name(call.head.uri.path()))
        .flatten()
}

/// Records the facts of a decision for `merlon explain`: of every refusal, and of a limited number of permits per
/// second. Copying the facts costs as much as the decision.
fn record(call: &Call, target: &Target, facts: &RequestFacts<'_>, decision: &Decision) {
    let outcome = match decision {
        Decision::Permit(permit) if call.local.recorder.may_keep(call.clock) => {
            Outcome::permitted(permit.policy())
        }
        Decision::Permit(_) => return,
        // The refusal is recorded when the response is made.
        Decision::Deny(_) => Outcome::default(),
    };
    let facts = target.service.policy.record(&target.peer, facts, decision);
    keep(call, target, facts, outcome);
}

/// As [`record`], for a request that another check refuses, before the policies are evaluated or after one permitted
/// it.
pub(crate) fn record_refusal(call: &Call, target: &Target) {
    let headers = PolicyHeaders(&call.head.headers);
    let facts = facts(call, target, &headers);
    let decision = target.decide(&facts);
    let mut recorded = target
        .service
        .policy
        .record(&target.peer, &facts, &decision);
    // `decided` records whether the policies were evaluated; the facts are complete either way.
    let permit = call.exchange.permit.as_ref();
    recorded.decided = permit.map(|permit| (&Decision::Permit(permit.clone())).into());
    keep(call, target, recorded, Outcome::default());
}

fn keep(call: &Call, target: &Target, facts: RecordedFacts, outcome: Outcome) {
    let Some(snapshot) = call.current.snapshot() else {
        return;
    };
    call.local.shared.decisions.record(RecordedDecision {
        id: call.exchange.decision_id,
        evidence: Some(DecisionFacts {
            facts,
            service: Arc::clone(&target.service.state),
            mesh: Arc::clone(&target.service.mesh),
            snapshot: snapshot.version.clone(),
        }),
        asked: None,
        outcome,
    });
}
