//! Request bodies: size and time of each are bounded, and so is the memory of all of them.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::StreamExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Maximum size of a body. The cluster stores objects of up to 1.5 MiB, and a review contains one before and after a
/// change.
const MAX_BYTES: usize = 4 << 20;
/// Maximum number of JSON values in a body. A parsed value takes about 100 bytes, and the object is copied several
/// times while it is validated.
const MAX_VALUES: usize = 400_000;
/// Limits of a small body, in bytes and in values. Nearly all bodies are small.
const SMALL_BYTES: usize = 256 << 10;
const SMALL_VALUES: usize = 50_000;
/// Budget for all bodies that are announced as small, in bytes. All others share a second one of the same size, so
/// large bodies do not delay small ones.
const TOTAL_BYTES: usize = 32 << 20;
/// Time-out for receiving a body. The API server's own time-out is in the webhook configurations.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The memory for all bodies.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// A body with its memory reservation.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    /// Whether it exceeds the limits of a small body.
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
    #[error("the body exceeds {MAX_BYTES} bytes or {MAX_VALUES} values")]
    TooLarge,
    #[error("the body is incomplete or longer than announced")]
    Broken,
    #[error("the body was not received within {} s", TIMEOUT.as_secs())]
    Slow,
    #[error("too many requests at once: retry")]
    OutOfMemory,
}

impl BodyError {
    pub(super) fn answer(self) -> Response {
        let status = match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Broken => StatusCode::BAD_REQUEST,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::OutOfMemory => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, format!("{self}\n")).into_response()
    }
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::of(TOTAL_BYTES)
    }
}

impl MemoryBudget {
    fn of(bytes: usize) -> Self {
        Self {
            small: Arc::new(Semaphore::new(bytes)),
            large: Arc::new(Semaphore::new(bytes)),
        }
    }

    /// Reads a request's body. It reserves memory as data arrives, so a client that only announces a body takes none.
    pub(super) async fn read(&self, request: Request) -> Result<Body, BodyError> {
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        let most = announced.unwrap_or(MAX_BYTES);
        if most > MAX_BYTES {
            return Err(BodyError::TooLarge);
        }
        let budget = match most {
            0..=SMALL_BYTES => &self.small,
            _ => &self.large,
        };
        let body = timeout(TIMEOUT, read_within(budget, most, request)).await;
        let (bytes, reservation) = body.unwrap_or(Err(BodyError::Slow))?;
        let values = values(&bytes);
        if values > MAX_VALUES {
            return Err(BodyError::TooLarge);
        }
        Ok(Body {
            large: bytes.len() > SMALL_BYTES || values > SMALL_VALUES,
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

    async fn refused(budget: &MemoryBudget, request: Request) -> BodyError {
        budget.read(request).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_body_is_read_and_its_memory_is_released() {
        let budget = MemoryBudget::of(4);
        for length in [Some(4), None] {
            let body = budget.read(request(length, "true")).await.unwrap();
            assert_eq!(body.bytes, b"true");
            drop(body);
        }
        assert_eq!(budget.small.available_permits(), 4);
        assert_eq!(budget.large.available_permits(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_too_long_or_too_slow_is_refused_and_releases_its_memory() {
        let budget = MemoryBudget::default();
        let announced = request(Some(MAX_BYTES + 1), "");
        assert_eq!(refused(&budget, announced).await, BodyError::TooLarge);
        for length in [None, Some(10), Some(SMALL_BYTES + 1)] {
            let longer = request(length, endless());
            assert_eq!(refused(&budget, longer).await, BodyError::Broken);
            let slow = request(length, silent());
            assert_eq!(refused(&budget, slow).await, BodyError::Slow);
        }
        assert_eq!(budget.small.available_permits(), TOTAL_BYTES);
        assert_eq!(budget.large.available_permits(), TOTAL_BYTES);
    }

    #[tokio::test]
    async fn a_body_with_too_many_values_is_too_large_below_the_maximum_size() {
        let budget = MemoryBudget::default();
        let read = async |text: String| budget.read(request(Some(text.len()), text)).await;
        let short = |values: usize| format!("[{}0]", "0,".repeat(values - 4));
        let nested = |lists: usize| format!("[{}]", vec!["[]"; lists].join(","));
        assert!(!read(short(SMALL_VALUES)).await.unwrap().large);
        assert!(read(short(SMALL_VALUES + 1)).await.unwrap().large);
        assert!(read(short(MAX_VALUES)).await.unwrap().large);
        let too_many = [
            short(MAX_VALUES + 1),
            nested(MAX_VALUES / 5),
            "[".repeat(MAX_VALUES / 4 + 1),
        ];
        for text in too_many {
            assert_eq!(read(text).await.unwrap_err(), BodyError::TooLarge);
        }
        // Separators within a string do not count.
        let text = format!("[\"\\\"{}\"]", ",".repeat(SMALL_VALUES + 1));
        assert!(!read(text).await.unwrap().large);
    }

    #[tokio::test]
    async fn large_and_stalled_bodies_do_not_delay_small_ones() {
        let budget = MemoryBudget::of(SMALL_BYTES + 2);
        let announced = [Some(MAX_BYTES), Some(SMALL_BYTES), None];
        let mut silent: Vec<_> = announced
            .map(|length| Box::pin(budget.read(request(length, silent()))))
            .into();
        for silent in &mut silent {
            assert!(futures_util::poll!(silent).is_pending());
        }
        let large = "0".repeat(SMALL_BYTES + 1);
        let large = budget
            .read(request(Some(large.len()), large))
            .await
            .unwrap();
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
        let budget = MemoryBudget::of(10);
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
