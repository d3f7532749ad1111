//! May they: the policies of the service, with all that is known, and the `forbid`s of whoever shares its port.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, header};
use jiff::Timestamp;
use merlon_config::resource::AppProtocol;
use merlon_policy::{
    decision::Decision,
    facts::{GrpcFacts, Headers, HttpFacts, RequestFacts, RequestKind, TcpFacts, TlsFacts},
    record::{RecordedFacts, RecordedRequest},
};

use super::{
    stage::{Call, Counted, Permitted},
    target::Target,
};
use crate::{
    decisions::{Evidence, Outcome, RecordedDecision},
    denial::Denial,
    state::{CompiledService, Snapshot},
    worker::{LongLived, Recheck},
};

/// # Errors
/// [`Denial::Policy`].
pub(crate) fn authorize(counted: Counted<'_>) -> Result<Permitted<'_>, Denial> {
    let target = &*counted.target;
    let call = &*counted.call;
    // What may outlive this decision is registered before it is made, so that no change slips between.
    let long_lived = may_last(call).then(|| call.local.register(Recheck::Pending));
    let headers = Fields(&call.head.headers);
    let facts = facts(call, target, &headers);
    let decision = decide(target, &facts);
    if let Some(held) = &long_lived {
        let recorded = target
            .service
            .policy
            .record(&target.peer, &facts, &decision);
        hold(held, call, target, recorded);
    }
    record(call, target, &facts, &decision);
    let permit = decision.into_result()?;
    Ok(counted.permitted(permit, long_lived))
}

/// Asks the service's policies, and of the others on the same port their `forbid`s.
pub(crate) fn decide(target: &Target, facts: &RequestFacts<'_>) -> Decision {
    let decision = target
        .service
        .policy
        .decide(&target.candidates, &target.peer, facts);
    if matches!(decision, Decision::Deny(_)) {
        return decision;
    }
    for other in &target.others {
        if let Some(deny) = other
            .service
            .policy
            .forbids(&other.candidates, &other.peer, facts)
        {
            return Decision::Deny(deny);
        }
    }
    decision
}

fn facts<'a>(call: &'a Call, target: &Target, headers: &'a dyn Headers) -> RequestFacts<'a> {
    RequestFacts {
        kind: kind(call, target, headers),
        source_ip: call.address.ip(),
        client_ip: call.address.ip(),
        port: target.port,
        now: call.now,
        user: call.user.as_deref(),
        tls: call.exchange.src.as_ref().map(|_| TLS),
    }
}

/// The mesh speaks one version.
pub(crate) const TLS: TlsFacts<'static> = TlsFacts {
    version: "TLSv1.3",
    cipher: "",
    dns_names: &[],
};

fn kind<'a>(call: &'a Call, target: &Target, headers: &'a dyn Headers) -> RequestKind<'a> {
    let host = call.reading.authority.as_str();
    let path = call.head.uri.path();
    // On a port that is not gRPC's a content type must not choose the action: policies for HTTP would not apply.
    if target.protocol == AppProtocol::Grpc
        && call.grpc
        && let Some((service, method)) =
            path.strip_prefix('/').and_then(|path| path.split_once('/'))
        && !method.contains('/')
    {
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

/// A header map as policies read it.
struct Fields<'m>(&'m HeaderMap);

impl Headers for Fields<'_> {
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        self.0
            .get_all(name)
            .iter()
            .for_each(|value| each(value.as_bytes()));
    }
}

/// Recorded headers, likewise.
struct RecordedFields<'m>(&'m BTreeMap<String, Vec<String>>);

impl Headers for RecordedFields<'_> {
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        self.0
            .get(name)
            .into_iter()
            .flatten()
            .for_each(|value| each(value.as_bytes()));
    }
}

/// Whether a request is of a kind that goes on for long.
fn may_last(call: &Call) -> bool {
    call.grpc
        || call.reading.websocket
        || call.body.as_ref().is_some_and(|body| {
            use hyper::body::Body as _;
            !body.is_end_stream() && body.size_hint().exact().is_none()
        })
        || call
            .head
            .headers
            .get(header::ACCEPT)
            .is_some_and(|accept| accept.as_bytes() == b"text/event-stream")
}

fn hold(held: &LongLived, call: &Call, target: &Target, recorded: RecordedFacts) {
    let port = target.port;
    let service = Arc::clone(&target.service);
    let gateway = target.port == 0;
    held.recheck_with(move |snapshot| {
        still_permitted(snapshot, &service, port, gateway, &recorded)
    });
    // The snapshot may have changed while the token's keys were fetched.
    let now = call.local.current();
    if now.generation != call.current.generation {
        held.recheck_now(now.snapshot().map(|snapshot| &**snapshot));
    }
}

/// Decides again about recorded facts.
pub(crate) fn still_permitted(
    snapshot: &Snapshot,
    then: &Arc<CompiledService>,
    port: u16,
    gateway: bool,
    recorded: &RecordedFacts,
) -> bool {
    let target = if gateway {
        Target::gateway(snapshot, &recorded.principal)
    } else {
        Target::claimed(snapshot, &recorded.service, port, &recorded.principal)
    };
    let Some(target) = target else { return false };
    if Arc::ptr_eq(&target.service, then) && target.others.is_empty() {
        return true;
    }
    let (route, query, headers);
    let kind = match &recorded.request {
        RecordedRequest::Http {
            host,
            method,
            path,
            query: pairs,
            headers: fields,
            ..
        } => {
            route = target.service.policy.route(method, path);
            query = join(pairs);
            headers = RecordedFields(fields);
            RequestKind::Http(HttpFacts {
                host,
                method,
                path,
                query: query.as_deref(),
                route: &route,
                headers: &headers,
            })
        }
        RecordedRequest::Grpc {
            host,
            service,
            method,
            headers: fields,
        } => {
            headers = RecordedFields(fields);
            RequestKind::Grpc(GrpcFacts {
                host,
                service,
                method,
                headers: &headers,
            })
        }
        RecordedRequest::Tcp { sni } => RequestKind::Tcp(TcpFacts {
            sni: sni.as_deref(),
        }),
    };
    let facts = RequestFacts {
        kind,
        source_ip: recorded.source_ip,
        client_ip: recorded.client_ip,
        port: recorded.port,
        now: Timestamp::now(),
        user: recorded.user.as_ref(),
        tls: recorded.tls.as_ref().map(|_| TLS),
    };
    matches!(decide(&target, &facts), Decision::Permit(_))
}

fn join(pairs: &BTreeMap<String, Vec<String>>) -> Option<String> {
    let all: Vec<String> = pairs
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}={value}")))
        .collect();
    (!all.is_empty()).then(|| all.join("&"))
}

/// Keeps the facts of a decision, so that people can ask why: of every refusal, and of what was permitted as many as
/// people read. Copying facts costs as much as deciding.
fn record(call: &Call, target: &Target, facts: &RequestFacts<'_>, decision: &Decision) {
    let outcome = match decision {
        Decision::Permit(permit) if call.local.recorder.may_keep(call.clock) => {
            Outcome::permitted(permit.policy())
        }
        Decision::Permit(_) => return,
        // The refusal that follows tells it.
        Decision::Deny(_) => Outcome::default(),
    };
    let facts = target.service.policy.record(&target.peer, facts, decision);
    keep(call, target, facts, outcome);
}

/// As [`record`], for a request that a check refuses: before any policy was asked, or after one permitted it.
pub(crate) fn record_refusal(call: &Call, target: &Target) {
    let headers = Fields(&call.head.headers);
    let facts = facts(call, target, &headers);
    let decision = decide(target, &facts);
    let mut recorded = target
        .service
        .policy
        .record(&target.peer, &facts, &decision);
    // The facts say what the policies would have been asked, and this, whether they were.
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
        evidence: Some(Evidence {
            facts,
            service: Arc::clone(&target.service.state),
            mesh: Arc::clone(&target.service.mesh),
            snapshot: snapshot.version.clone(),
        }),
        asked: None,
        outcome,
    });
}

/// How many permits one worker records in a second.
const KEPT_PER_SECOND: u32 = 50;

/// Counts the permits that were recorded in this second.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    second: Cell<Option<Instant>>,
    kept: Cell<u32>,
}

impl Recorder {
    fn may_keep(&self, now: Instant) -> bool {
        let fresh = self
            .second
            .get()
            .is_some_and(|begun| now.saturating_duration_since(begun) < Duration::from_secs(1));
        if !fresh {
            self.second.set(Some(now));
            self.kept.set(0);
        }
        self.kept.set(self.kept.get() + 1);
        self.kept.get() <= KEPT_PER_SECOND
    }
}
