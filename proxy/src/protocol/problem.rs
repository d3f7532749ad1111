//! Encodes refusals as `application/problem+json` (RFC 9457) or as a gRPC status. Nothing else does.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use serde_json::json;

use super::denial::{Denial, Refusal};

/// What the response depends on besides the denial.
#[derive(Debug, Clone, Copy)]
pub struct ProblemContext<'a> {
    /// Whether the call is gRPC, by its content type.
    pub grpc: bool,
    /// Whether the caller has a verified mesh identity: only then the response names the policy.
    pub meshed: bool,
    /// The connection's HTTP version.
    pub version: Version,
    /// The ID of the recorded facts.
    pub decision_id: &'a str,
}

/// Status, headers and body of a response that the proxy generates.
#[derive(Debug)]
pub struct ProblemResponse {
    /// The status; 200 for gRPC.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; empty for gRPC.
    pub body: Bytes,
}

/// The ID of the recorded facts, for `merlon explain <id>`.
pub const DECISION_ID: HeaderName = HeaderName::from_static("merlon-decision-id");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Turns a denial into a response.
pub fn response(denial: &Denial, context: &ProblemContext<'_>) -> ProblemResponse {
    let refusal = denial.refusal();
    let mut headers = HeaderMap::with_capacity(8);
    if let Ok(id) = HeaderValue::from_str(context.decision_id) {
        headers.insert(DECISION_ID, id);
    }
    if let Some(seconds) = refusal.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(challenge) = refusal.challenge {
        headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(challenge),
        );
    }
    if let Some(Ok(allow)) = refusal.allow.as_deref().map(HeaderValue::from_str) {
        headers.insert(header::ALLOW, allow);
    }
    if let Some(codings) = refusal.accept_encoding {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(codings));
    }
    if context.grpc {
        grpc(&refusal, headers)
    } else {
        problem(&refusal, context, headers)
    }
}

fn problem(
    refusal: &Refusal<'_>,
    context: &ProblemContext<'_>,
    mut headers: HeaderMap,
) -> ProblemResponse {
    let (kind, title) = refusal.problem;
    let mut body = json!({
        "type": format!("https://merlon.io/problems/{kind}"),
        "title": title,
        "status": refusal.status.as_u16(),
        "detail": refusal.detail.to_string(),
        "instance": format!("urn:merlon:decision:{}", context.decision_id),
        "decision_id": context.decision_id,
        "reason": refusal.reason,
    });
    if let Some(object) = body.as_object_mut() {
        if let Some(policy) = refusal.policy.filter(|_| context.meshed) {
            object.insert("policy".to_owned(), policy.to_string().into());
        }
        if let Some(place) = refusal.place {
            object.insert("place".to_owned(), place.into());
        }
    }
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if refusal.closes && context.version < Version::HTTP_2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    ProblemResponse {
        status: refusal.status,
        headers,
        body: Bytes::from(body.to_string()),
    }
}

/// Trailers-only: the status is in the one header block (gRPC over HTTP/2, "Responses").
fn grpc(refusal: &Refusal<'_>, mut headers: HeaderMap) -> ProblemResponse {
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert(GRPC_STATUS, HeaderValue::from(grpc_code(refusal.status)));
    let message = format!("{}: {}", refusal.reason, refusal.detail);
    if let Ok(value) = HeaderValue::try_from(percent_encode(&message)) {
        headers.insert(GRPC_MESSAGE, value);
    }
    ProblemResponse {
        status: StatusCode::OK,
        headers,
        body: Bytes::new(),
    }
}

/// The gRPC code for an HTTP status of a refusal.
pub(crate) fn grpc_code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 | 405 | 411 | 414 | 415 | 417 | 421 | 431 => 3,
        401 => 16,
        403 => 7,
        404 => 12,
        408 | 504 => 4,
        413 | 429 => 8,
        502 | 503 => 14,
        _ => 13,
    }
}

/// `Percent-Encoded` of gRPC over HTTP/2: encodes everything but printable ASCII without `%`.
fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, 0x20..=0x7e) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Whether a request is gRPC by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(grpc: bool) -> ProblemContext<'static> {
        ProblemContext {
            grpc,
            meshed: false,
            version: Version::HTTP_11,
            decision_id: "w1-7",
        }
    }

    #[test]
    fn a_missing_token_gets_a_challenge_without_an_error() {
        let refused = response(&Denial::TokenMissing, &context(false));
        assert_eq!(refused.status, 401);
        assert_eq!(refused.headers[header::WWW_AUTHENTICATE], "Bearer");
        let body: serde_json::Value = serde_json::from_slice(&refused.body).unwrap();
        assert_eq!(body["reason"], "authn.missing");
        assert_eq!(body["decision_id"], "w1-7");
        assert_eq!(body["status"], 401);
    }

    #[test]
    fn grpc_gets_a_grpc_status_and_no_body() {
        let limited = Denial::RateLimited {
            limit: "per-user 100%".into(),
            retry_after: 3,
        };
        let refused = response(&limited, &context(true));
        assert_eq!(refused.status, 200);
        assert_eq!(refused.headers[GRPC_STATUS], "8");
        assert_eq!(
            refused.headers[GRPC_MESSAGE],
            "rate.limited: the rate limit `per-user 100%25` is exceeded; try again in 3 s"
        );
        assert_eq!(refused.headers[header::RETRY_AFTER], "3");
        assert!(refused.body.is_empty());
    }

    #[test]
    fn a_framing_violation_closes_the_connection() {
        let refused = response(
            &Denial::Framing(crate::protocol::http1::Violation::LengthAndEncoding),
            &context(false),
        );
        assert_eq!(refused.headers[header::CONNECTION], "close");
    }

    #[test]
    fn grpc_is_recognised_only_by_its_content_type() {
        let with = |text: &'static str| {
            is_grpc(&HeaderMap::from_iter([(
                header::CONTENT_TYPE,
                HeaderValue::from_static(text),
            )]))
        };
        assert!(with("application/grpc"));
        assert!(with("application/grpc+proto"));
        assert!(!with("application/grpc-web"));
        assert!(!with("application/json"));
    }
}
