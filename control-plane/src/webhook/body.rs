//! Request bodies: size and time of each are bounded, and so is the memory of all of them.

use std::{fmt, sync::Arc};

use axum::{
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::StreamExt as _;
use merlon_config::unit::HumanDuration;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::limits::WebhookLimits;

/// The memory for all bodies.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    limits: WebhookLimits,
    /// For bodies that are announced as small.
    small: Arc<Semaphore>,
    /// For all others.
    large: Arc<Semaphore>,
}

/// A body with its memory reservation.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    /// Whether it exceeds the limits of a small body in bytes or values.
    pub(super) large: bool,
    pub(super) reservation: Reservation,
}

/// Reserved memory, which is released on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Semaphore>,
    all: Option<OwnedSemaphorePermit>,
}

impl Reservation {
    /// Changes the reservation to `bytes`.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), BodyError> {
        let now = self.bytes();
        if bytes > now {
            let more = u32::try_from(bytes - now).map_err(|_| BodyError::OutOfMemory)?;
            let more = Arc::clone(&self.budget).try_acquire_many_owned(more);
            let more = more.map_err(|_| BodyError::OutOfMemory)?;
            match &mut self.all {
                Some(before) => before.merge(more),
                none => *none = Some(more),
            }
        } else if let Some(all) = &mut self.all {
            drop(all.split(now - bytes));
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.all
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("bytes", &self.bytes.len())
            .field("large", &self.large)
            .finish_non_exhaustive()
    }
}

/// Why a body was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body exceeds {bytes} bytes or {values} values")]
    TooLarge { bytes: usize, values: usize },
    #[error("the body is incomplete or longer than announced")]
    Broken,
    #[error("the body was not received within {0}")]
    Slow(HumanDuration),
    #[error("too many requests at once: retry")]
    OutOfMemory,
}

impl BodyError {
    pub(super) fn answer(self) -> Response {
        let status = match self {
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Broken => StatusCode::BAD_REQUEST,
            Self::Slow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::OutOfMemory => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, format!("{self}\n")).into_response()
    }
}

impl MemoryBudget {
    pub(super) fn new(limits: WebhookLimits) -> Self {
        Self {
            limits,
            small: Arc::new(Semaphore::new(limits.bodies_bytes)),
            large: Arc::new(Semaphore::new(limits.bodies_bytes)),
        }
    }

    /// Reads a request's body. It reserves memory as data arrives, so a client that only announces a body takes none.
    pub(super) async fn read(&self, request: Request) -> Result<Body, BodyError> {
        let limits = &self.limits;
        let too_large = BodyError::TooLarge {
            bytes: limits.body_bytes,
            values: limits.body_values,
        };
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        let most = announced.unwrap_or(limits.body_bytes);
        if most > limits.body_bytes {
            return Err(too_large);
        }
        let budget = match most <= limits.small_body_bytes {
            true => &self.small,
            false => &self.large,
        };
        let body = timeout(limits.body, read_within(budget, most, request)).await;
        let slow = BodyError::Slow(HumanDuration(limits.body));
        let (bytes, reservation) = body.unwrap_or(Err(slow))?;
        let values = values(&bytes);
        if values > limits.body_values {
            return Err(too_large);
        }
        Ok(Body {
            large: bytes.len() > limits.small_body_bytes || values > limits.small_body_values,
            bytes,
            reservation,
        })
    }
}

async fn read_within(
    budget: &Arc<Semaphore>,
    most: usize,
    request: Request,
) -> Result<(Vec<u8>, Reservation), BodyError> {
    let mut reservation = Reservation {
        budget: Arc::clone(budget),
        all: None,
    };
    let mut bytes = Vec::new();
    let mut stream = request.into_body().into_data_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|_| BodyError::Broken)?;
        let length = bytes.len() + piece.len();
        if length > most {
            return Err(BodyError::Broken);
        }
        reservation.resize(length)?;
        // Exactly the reserved size.
        bytes.reserve_exact(piece.len());
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, reservation))
}

/// An upper bound of the number of values, from the separators outside of strings. Each list or map counts four, which
/// is the capacity that it is allocated with.
pub(crate) fn values(json: &[u8]) -> usize {
    let (mut values, mut quoted, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => values += 4,
            b',' | b':' if !quoted => values += 1,
            _ => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body as HttpBody, Bytes};
    use futures_util::stream;

    use super::*;

    fn request(length: Option<usize>, body: impl Into<HttpBody>) -> Request {
        let mut request = Request::new(body.into());
        if let Some(length) = length {
            request
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length.into());
        }
        request
    }

    fn endless() -> HttpBody {
        let piece = || Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1 << 16]));
        HttpBody::from_stream(stream::repeat_with(piece))
    }

    fn silent() -> HttpBody {
        HttpBody::from_stream(stream::pending::<Result<Bytes, std::io::Error>>())
    }

    /// Bodies of 100 bytes and 40 values, of which up to 10 bytes and 5 values are small.
    fn limits(bodies_bytes: usize) -> WebhookLimits {
        WebhookLimits {
            body_bytes: 100,
            body_values: 40,
            small_body_bytes: 10,
            small_body_values: 5,
            bodies_bytes,
            ..WebhookLimits::default()
        }
    }

    const TOO_LARGE: BodyError = BodyError::TooLarge {
        bytes: 100,
        values: 40,
    };

    fn budget(bodies_bytes: usize) -> MemoryBudget {
        MemoryBudget::new(limits(bodies_bytes))
    }

    async fn refused(budget: &MemoryBudget, request: Request) -> BodyError {
        budget.read(request).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_body_is_read_and_its_memory_is_released() {
        let budget = budget(4);
        for length in [Some(4), None] {
            let body = budget.read(request(length, "true")).await.unwrap();
            assert_eq!(body.bytes, b"true");
            drop(body);
        }
        assert_eq!(budget.small.available_permits(), 4);
        assert_eq!(budget.large.available_permits(), 4);
    }

    #[tokio::test]
    async fn a_body_of_the_maximum_size_is_read_and_one_byte_more_is_refused_with_413() {
        let budget = budget(1_000);
        let text = |bytes: usize| "1".repeat(bytes);
        for (bytes, large) in [(10, false), (11, true), (100, true)] {
            let body = budget.read(request(Some(bytes), text(bytes))).await;
            let body = body.unwrap();
            assert_eq!((body.bytes.len(), body.large), (bytes, large));
        }
        let error = refused(&budget, request(Some(101), text(101))).await;
        assert_eq!(error, TOO_LARGE);
        assert_eq!(error.to_string(), "the body exceeds 100 bytes or 40 values");
        assert_eq!(error.answer().status(), StatusCode::PAYLOAD_TOO_LARGE);
        // It does not matter whether the size is announced.
        assert!(budget.read(request(None, text(100))).await.is_ok());
        let longer = request(None, text(101));
        assert_eq!(refused(&budget, longer).await, BodyError::Broken);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_too_long_or_too_slow_is_refused_and_releases_its_memory() {
        let budget = budget(1 << 20);
        let announced = request(Some(101), "");
        assert_eq!(refused(&budget, announced).await, TOO_LARGE);
        for length in [None, Some(10), Some(11)] {
            let longer = request(length, endless());
            assert_eq!(refused(&budget, longer).await, BodyError::Broken);
            let slow = refused(&budget, request(length, silent())).await;
            assert_eq!(slow, BodyError::Slow(HumanDuration(Duration::from_secs(3))));
            assert_eq!(slow.answer().status(), StatusCode::REQUEST_TIMEOUT);
        }
        assert_eq!(budget.small.available_permits(), 1 << 20);
        assert_eq!(budget.large.available_permits(), 1 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_arrives_within_its_time_is_read_and_a_later_one_is_refused() {
        let budget = MemoryBudget::new(WebhookLimits {
            body: Duration::from_secs(10),
            ..limits(1_000)
        });
        let after = |seconds: u64| {
            let piece = async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok::<_, std::io::Error>(Bytes::from_static(b"true"))
            };
            request(Some(4), HttpBody::from_stream(stream::once(piece)))
        };
        assert_eq!(budget.read(after(9)).await.unwrap().bytes, b"true");
        let slow = refused(&budget, after(11)).await;
        assert_eq!(slow.to_string(), "the body was not received within 10s");
    }

    #[tokio::test]
    async fn a_body_with_too_many_values_is_too_large_below_the_maximum_size() {
        let budget = budget(1_000);
        let read = async |text: String| budget.read(request(None, text)).await;
        let short = |values: usize| format!("[{}0]", "0,".repeat(values - 4));
        let nested = |lists: usize| format!("[{}]", vec!["[]"; lists].join(","));
        assert!(!read(short(5)).await.unwrap().large);
        assert!(read(short(6)).await.unwrap().large);
        assert!(read(short(40)).await.unwrap().large);
        for text in [short(41), nested(8), "[".repeat(11)] {
            assert!(text.len() < 100);
            assert_eq!(read(text).await.unwrap_err(), TOO_LARGE);
        }
        // Separators within a string do not count.
        assert!(!read(r#"["\",,"]"#.to_owned()).await.unwrap().large);
        let text = format!("\"{}\"", ",".repeat(60));
        assert!(read(text).await.is_ok());
    }

    #[tokio::test]
    async fn large_and_stalled_bodies_do_not_delay_small_ones() {
        let budget = budget(12);
        let announced = [Some(100), Some(10), None];
        let mut silent: Vec<_> = announced
            .map(|length| Box::pin(budget.read(request(length, silent()))))
            .into();
        for silent in &mut silent {
            assert!(futures_util::poll!(silent).is_pending());
        }
        let large = "0".repeat(11);
        let large = budget.read(request(Some(11), large)).await.unwrap();
        let small = || request(Some(2), "{}");
        budget.read(small()).await.unwrap();
        // There is no memory left for large bodies.
        let second = request(None, "{}");
        assert_eq!(refused(&budget, second).await, BodyError::OutOfMemory);
        drop(large);
        budget.read(request(None, "{}")).await.unwrap();
    }

    #[tokio::test]
    async fn a_request_hands_its_reservation_on_to_its_response() {
        let budget = budget(10);
        let mut reservation = budget
            .read(request(Some(4), "true"))
            .await
            .unwrap()
            .reservation;
        reservation.resize(9).unwrap();
        assert_eq!(budget.small.available_permits(), 1);
        assert_eq!(reservation.resize(11), Err(BodyError::OutOfMemory));
        reservation.resize(2).unwrap();
        assert_eq!(budget.small.available_permits(), 8);
        drop(reservation);
        assert_eq!(budget.small.available_permits(), 10);
    }
}
