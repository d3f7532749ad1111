//! Calls through the mesh: an allowed call, calls over the rate limit, and a call with an invalid body.

use futures_util::future::join_all;
use serde_json::json;

use super::{
    super::{
        mesh::{Mesh, Workload},
        report::Outcome,
        trace::Trace,
        wire::{self, NoReply, Reply, request, text_at},
    },
    shared::Shared,
};
use crate::failure::Failure;

/// The mesh names of the services.
pub(super) const ORDERS: &str = "orders.shop";
pub(super) const PAYMENTS: &str = "payments.payments";
pub(super) const WEB: &str = "web.shop";

/// A response with the trace of its request.
pub(super) struct Traced {
    pub(super) reply: Reply,
    pub(super) trace: Trace,
}

/// Calls a service through the sidecar of `from`, as its program does.
pub(super) async fn call(
    mesh: &Mesh<'_>,
    from: &Workload,
    request: http::Request<http_body_util::Full<bytes::Bytes>>,
) -> Result<Traced, Failure> {
    let trace = Trace::begin(mesh)?;
    let mut request = request;
    request.headers_mut().insert("traceparent", trace.header());
    let reply = wire::send(from.outbound, request).await;
    let reply = reply
        .map_err(|error| Failure::runtime(format!("the sidecar of {}: {error}", from.name)))?;
    Ok(Traced { reply, trace })
}

pub(super) async fn allowed(mesh: &Mesh<'_>, shared: &Shared) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::expecting(
        "201: each sidecar authenticates the caller, and a policy permits the call",
    );
    let order = json!({"item": "battlement", "quantity": 2});
    let mut request = request(
        "POST",
        "web",
        "/checkout",
        Some(&shared.token),
        Some(&order),
    );
    let trace = Trace::begin(mesh)?;
    request.headers_mut().insert("traceparent", trace.header());
    // Directly to the program, as from a browser: the demo has no gateway in front of web.
    let reply = wire::send(mesh.web.program, request).await;
    let reply = reply.map_err(|error| Failure::runtime(format!("web: {error}")))?;
    outcome.observed(format!("{} {}", reply.status, reason(reply.status)));
    outcome.must(reply.status == 201, || {
        format!("web answered {} {}", reply.status, reply.json())
    });
    let state = reply.text("/answer/answer/state");
    outcome.must(state == "charged", || {
        "the response of payments is missing".to_owned()
    });
    for (caller, callee) in [(&mesh.web, &mesh.orders), (&mesh.orders, &mesh.payments)] {
        let line = trace.inbound(callee).await;
        let (src, policy) = (text_at(&line, "/src"), text_at(&line, "/policy"));
        let path = text_at(&line, "/path");
        outcome.must(src == caller.identity(), || {
            format!(
                "the sidecar of {} identified the caller as `{src}`, not `{}`",
                callee.name,
                caller.identity()
            )
        });
        outcome.must(text_at(&line, "/status") == "201", || {
            format!("the sidecar of {} logged {line}", callee.name)
        });
        if src.is_empty() {
            continue;
        }
        outcome.note(format!("{src} called {} at {path}", callee.account()));
        if !policy.is_empty() {
            outcome.note(format!("  permitted by {policy}"));
        }
        outcome.fact(
            callee.name,
            json!({"src": src, "path": path, "policy": policy}),
        );
    }
    Ok(outcome)
}

pub(super) async fn rate_limited(mesh: &Mesh<'_>) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::expecting(
        "429 with Retry-After once the limit (burst of 10, 50 per second) is exceeded",
    );
    let charge = json!({"item": "battlement", "quantity": 1});
    let one = || {
        wire::send(
            mesh.orders.outbound,
            request("POST", PAYMENTS, "/charges", None, Some(&charge)),
        )
    };
    let before = mesh.payments.requests().await?;
    let mut replies: Vec<Result<Reply, NoReply>> = Vec::new();
    // On a slow machine the first batch may be slow enough to stay within the limit.
    for _ in 0..3 {
        replies.extend(join_all((0..40).map(|_| one())).await);
        if replies.iter().flatten().any(|reply| reply.status == 429) {
            break;
        }
    }
    let count = |status: u16| {
        replies
            .iter()
            .flatten()
            .filter(|reply| reply.status == status)
            .count()
    };
    let (passed, limited) = (count(201), count(429));
    let seen = mesh.payments.requests().await?.saturating_sub(before);
    let refused = replies.iter().flatten().find(|reply| reply.status == 429);
    let retry_after = refused
        .map(|reply| reply.header("retry-after").to_owned())
        .unwrap_or_default();
    outcome.observed(format!(
        "{passed} of {} calls passed, {limited} got 429 with Retry-After: {retry_after}",
        replies.len()
    ));
    outcome.must(limited > 0, || "no call was limited".to_owned());
    outcome.must(passed > 0, || "no call passed".to_owned());
    outcome.must(passed + limited == replies.len(), || {
        let other = replies.iter().find_map(|reply| match reply {
            Ok(reply) if matches!(reply.status, 201 | 429) => None,
            Ok(reply) => Some(format!("{} {}", reply.status, reply.json())),
            Err(error) => Some(error.to_string()),
        });
        format!("unexpected response: {}", other.unwrap_or_default())
    });
    outcome.must(
        limited == 0 || retry_after.parse::<u64>().is_ok_and(|seconds| seconds > 0),
        || format!("Retry-After is `{retry_after}`"),
    );
    outcome.must(u64::try_from(passed) == Ok(seen), || {
        format!("the program received {seen} calls, not {passed}")
    });
    if let Some(reply) = refused {
        outcome.note(reply.text("/detail"));
    }
    outcome.note(format!("the program payments received {seen} of them"));
    outcome.fact("passed", passed);
    outcome.fact("limited", limited);
    outcome.fact("retry_after", retry_after);
    Ok(outcome)
}

pub(super) async fn bad_body(mesh: &Mesh<'_>, shared: &Shared) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::expecting(
        "400 with the location of the error in the body; the program receives nothing",
    );
    let order = json!({"item": "battlement", "quantity": "many"});
    let before = mesh.orders.requests().await?;
    let request = request("POST", ORDERS, "/orders", Some(&shared.token), Some(&order));
    let Traced { reply, trace: _ } = call(mesh, &mesh.web, request).await?;
    let seen = mesh.orders.requests().await?.saturating_sub(before);
    let place = reply.text("/place");
    outcome.observed(format!(
        "{} {} at `{place}` in the body",
        reply.status,
        reason(reply.status)
    ));
    outcome.must(reply.status == 400, || {
        format!("orders answered {} {}", reply.status, reply.json())
    });
    outcome.must(place == "/quantity", || format!("the place is `{place}`"));
    outcome.must(seen == 0, || {
        "the program orders received the request".to_owned()
    });
    outcome.note(reply.text("/detail"));
    outcome.fact("place", place);
    outcome.fact("problem", reply.json());
    Ok(outcome)
}

/// The reason phrase of a status.
pub(super) fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("")
}
