//! Bodies of questions: each of bounded size and time, and all of them together in bounded memory.

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

/// In bytes. The cluster's store takes objects of 1.5 MiB, and a review carries one before a change and after it.
const MOST: usize = 4 << 20;
/// How many values a body may mean: about 100 bytes of memory each once it is read, and it is copied some times while it is
/// judged.
const VALUES: usize = 400_000;
/// Up to these, in bytes and in values, a body is small, as nearly all are.
const SMALL: usize = 256 << 10;
const FEW: usize = 50_000;
/// What all that are announced as small may have together, in bytes, and all others: large ones hold up no small one.
const TOGETHER: usize = 32 << 20;
/// Until it is there. The API server's own patience is in the webhook configurations.
const PATIENCE: Duration = Duration::from_secs(3);

/// Reservation for bodies.
#[derive(Debug)]
pub(super) struct MemoryBudget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// A body, and the memory that is reserved for it.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    /// Whether it means more than nearly all others.
    pub(super) large: bool,
    pub(super) reservation: Reservation,
}

/// Memory that is reserved until this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Semaphore>,
    all: Option<OwnedSemaphorePermit>,
}

impl Reservation {
    /// Makes it so many bytes.
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

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("a body has at most {MOST} bytes, and {VALUES} values")]
    TooLarge,
    #[error("the body broke off, or is longer than it said")]
    Broken,
    #[error("the body did not come within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("too much is asked at once: try again")]
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
        Self::of(TOGETHER)
    }
}

impl MemoryBudget {
    fn of(bytes: usize) -> Self {
        Self {
            small: Arc::new(Semaphore::new(bytes)),
            large: Arc::new(Semaphore::new(bytes)),
        }
    }

    /// Reads a request's body. Memory is reserved as the bytes arrive: a request that announces much and sends nothing holds none.
    pub(super) async fn read(&self, request: Request) -> Result<Body, BodyError> {
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        let most = announced.unwrap_or(MOST);
        if most > MOST {
            return Err(BodyError::TooLarge);
        }
        let budget = match most {
            0..=SMALL => &self.small,
            _ => &self.large,
        };
        let body = timeout(PATIENCE, read_within(budget, most, request)).await;
        let (bytes, reservation) = body.unwrap_or(Err(BodyError::Slow))?;
        let values = values(&bytes);
        if values > VALUES {
            return Err(BodyError::TooLarge);
        }
        Ok(Body {
            large: bytes.len() > SMALL || values > FEW,
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
        // No more than was reserved.
        bytes.reserve_exact(piece.len());
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, reservation))
}

/// As many values as JSON may mean, by what stands between them outside of strings. A list that is begun has budget for four.
fn values(json: &[u8]) -> usize {
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
    async fn a_body_is_read_and_its_memory_is_given_back() {
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
    async fn what_is_too_long_or_too_slow_is_refused_and_keeps_no_memory() {
        let budget = MemoryBudget::default();
        let announced = request(Some(MOST + 1), "");
        assert_eq!(refused(&budget, announced).await, BodyError::TooLarge);
        for length in [None, Some(10), Some(SMALL + 1)] {
            let longer = request(length, endless());
            assert_eq!(refused(&budget, longer).await, BodyError::Broken);
            let slow = request(length, silent());
            assert_eq!(refused(&budget, slow).await, BodyError::Slow);
        }
        assert_eq!(budget.small.available_permits(), TOGETHER);
        assert_eq!(budget.large.available_permits(), TOGETHER);
    }

    #[tokio::test]
    async fn a_body_of_nothing_but_short_values_is_too_large_below_its_size() {
        let budget = MemoryBudget::default();
        let read = async |text: String| budget.read(request(Some(text.len()), text)).await;
        let short = |values: usize| format!("[{}0]", "0,".repeat(values - 4));
        let nested = |lists: usize| format!("[{}]", vec!["[]"; lists].join(","));
        assert!(!read(short(FEW)).await.unwrap().large);
        assert!(read(short(FEW + 1)).await.unwrap().large);
        assert!(read(short(VALUES)).await.unwrap().large);
        let many = [
            short(VALUES + 1),
            nested(VALUES / 5),
            "[".repeat(VALUES / 4 + 1),
        ];
        for text in many {
            assert_eq!(read(text).await.unwrap_err(), BodyError::TooLarge);
        }
        // What stands in a string is one value.
        let text = format!("[\"\\\"{}\"]", ",".repeat(FEW + 1));
        assert!(!read(text).await.unwrap().large);
    }

    #[tokio::test]
    async fn large_bodies_and_such_as_never_come_hold_up_no_small_one() {
        let budget = MemoryBudget::of(SMALL + 2);
        let announced = [Some(MOST), Some(SMALL), None];
        let mut silent: Vec<_> = announced
            .map(|length| Box::pin(budget.read(request(length, silent()))))
            .into();
        for silent in &mut silent {
            assert!(futures_util::poll!(silent).is_pending());
        }
        let large = "0".repeat(SMALL + 1);
        let large = budget
            .read(request(Some(large.len()), large))
            .await
            .unwrap();
        let small = || request(Some(2), "{}");
        budget.read(small()).await.unwrap();
        // Of its own kind there is no more.
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
