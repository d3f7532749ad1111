//! Validates the head, then the body. No byte of the body is read before all other checks have passed.

use std::{rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::header;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use merlon_policy::validate::{BodyRule, HeadFacts};
use tokio::{sync::Semaphore, task};

use super::stage::{Admitted, Permitted};
use crate::{
    protocol::denial::Denial,
    request::{call::Call, open_permit::OpenPermit},
    upstream::body::{BodyProgress, Permission, RequestBody},
};

/// Bytes of a body up to which a worker validates it.
const ON_WORKER: usize = 64 << 10;
/// How often a worker visits the values of a body at most: less than a millisecond. Other requests wait meanwhile.
const VISITS_ON_WORKER: u64 = 20_000;
/// Validations at the same time that take longer, in the whole process.
static LONG_VALIDATIONS: Semaphore = Semaphore::const_new(2);

/// # Errors
/// [`Denial::Invalid`], [`Denial::BodyTooLarge`], [`Denial::BodyTimeout`], [`Denial::BodyBroken`] or [`Denial::Overload`].
pub(crate) async fn validate(permitted: Permitted<'_>) -> Result<Admitted<'_>, Denial> {
    let policy = &permitted.target.service.policy;
    let incoming = permitted.call.body.take();
    let call = &*permitted.call;
    policy.check_head(&head(call, incoming.as_ref())?, &call.route)?;
    if call.question.is_some() {
        // The body is not there yet; it is validated with the request that carries it.
        return Ok(permitted.admitted(RequestBody::Empty));
    }
    let body = match incoming {
        None => match policy.body_rule(&call.route) {
            // A body rule also applies when there is no body.
            Some(rule) => validate_body(rule, Bytes::new(), call).await?,
            None => RequestBody::Empty,
        },
        Some(incoming) => match policy.body_rule(&call.route) {
            Some(rule) => {
                let within = call.local.shared.limits.body_timeout;
                let body = read_body(incoming, rule.max_bytes(), within).await?;
                validate_body(rule, body, call).await?
            }
            None => {
                let permission: Rc<dyn Permission> =
                    Rc::<OpenPermit>::clone(&permitted.open_permit);
                let progress = BodyProgress::new(policy.max_body(&call.route), Some(permission));
                permitted.call.exchange.progress = Some(progress.clone());
                RequestBody::Stream(incoming, progress)
            }
        },
    };
    Ok(permitted.admitted(body))
}

fn head<'a>(call: &'a Call, body: Option<&Incoming>) -> Result<HeadFacts<'a>, Denial> {
    let content_type = match call.head.headers.get(header::CONTENT_TYPE) {
        Some(value) => Some(
            value
                .to_str()
                .map_err(|_| Denial::Header("`Content-Type` is not printable ASCII"))?,
        ),
        None => None,
    };
    Ok(HeadFacts {
        method: call.method(),
        uri_bytes: call.parsed.uri_bytes,
        header_bytes: call.parsed.header_bytes,
        content_type,
        encoded: encoded(&call.head.headers),
        content_length: match call.question {
            Some(length) => length,
            None => body.map_or(Some(0), |body| body.size_hint().exact()),
        },
        has_body: body.is_some() || call.question.is_some(),
    })
}

/// Whether any encoding other than `identity` was applied (RFC 9110 §8.4).
pub(crate) fn encoded(headers: &http::HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

async fn validate_body(rule: BodyRule, body: Bytes, call: &Call) -> Result<RequestBody, Denial> {
    let content_type = call
        .head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let short = (body.len() <= ON_WORKER).then(|| {
        rule.check_within(VISITS_ON_WORKER, &body, content_type)
            .ok()
    });
    match short.flatten() {
        Some(checked) => checked?,
        None => validate_off_worker(rule, &body, content_type, call).await?,
    }
    Ok(if body.is_empty() {
        RequestBody::Empty
    } else {
        RequestBody::Whole(Some(body))
    })
}

async fn validate_off_worker(
    rule: BodyRule,
    body: &Bytes,
    content_type: Option<&str>,
    call: &Call,
) -> Result<(), Denial> {
    let within = call.local.shared.limits.body_timeout;
    let turn = tokio::time::timeout(within, LONG_VALIDATIONS.acquire()).await;
    let Ok(Ok(turn)) = turn else {
        return Err(Denial::Overload);
    };
    let (body, content_type) = (body.clone(), content_type.map(str::to_owned));
    let checked = task::spawn_blocking(move || {
        // Held to the end, even if the caller has left.
        let _turn = turn;
        rule.check(&body, content_type.as_deref())
    });
    match checked.await {
        Ok(checked) => Ok(checked?),
        Err(error) => match error.try_into_panic() {
            // As on a worker: only this request ends.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Denial::Overload),
        },
    }
}

/// Buffers a body, within its size and time limits.
async fn read_body(mut incoming: Incoming, limit: u64, within: Duration) -> Result<Bytes, Denial> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut whole = BytesMut::new();
    let read = async {
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame.map_err(|_| Denial::BodyBroken)?.into_data() else {
                continue;
            };
            if data.len() > most.saturating_sub(whole.len()) {
                return Err(Denial::BodyTooLarge(limit));
            }
            whole.extend_from_slice(&data);
        }
        Ok(())
    };
    tokio::time::timeout(within, read)
        .await
        .map_err(|_| Denial::BodyTimeout)??;
    Ok(whole.freeze())
}
