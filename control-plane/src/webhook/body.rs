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
/// How many values a body may have. What is read of it takes some 70 bytes for each, and it is copied: of a body that is
/// nothing but short values that is forty times its size.
const PARTS: usize = 300_000;
/// Up to this size, in bytes, a body counts as small, as nearly all are.
pub(super) const SMALL: usize = 256 << 10;
/// What all small ones may have together, in bytes, and all others: who sends large ones holds up no small one.
const TOGETHER: usize = 32 << 20;
/// Until it is there. The API server's own patience is in the webhook configurations.
const PATIENCE: Duration = Duration::from_secs(3);

/// Memory for bodies.
#[derive(Debug)]
pub(super) struct Room {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// A body, and the memory that is lent to it.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    lent: Option<OwnedSemaphorePermit>,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lent = self.lent.as_ref().map(OwnedSemaphorePermit::num_permits);
        f.debug_struct("Body")
            .field("lent", &lent)
            .finish_non_exhaustive()
    }
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("a body has at most {MOST} bytes, and {PARTS} values")]
    TooLarge,
    #[error("the body broke off, or is longer than it said")]
    Broken,
    #[error("the body did not come within {} s", PATIENCE.as_secs())]
    Slow,
    #[error("too much is asked at once: try again")]
    NoRoom,
}

impl BodyError {
    pub(super) fn answer(self) -> Response {
        let status = match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Broken => StatusCode::BAD_REQUEST,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, format!("{self}\n")).into_response()
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::of(TOGETHER)
    }
}

impl Room {
    fn of(bytes: usize) -> Self {
        Self {
            small: Arc::new(Semaphore::new(bytes)),
            large: Arc::new(Semaphore::new(bytes)),
        }
    }

    /// Reads a request's body. Memory is lent as it comes: who announces much and sends nothing has none.
    pub(super) async fn read(&self, request: Request) -> Result<Body, BodyError> {
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        let most = announced.unwrap_or(MOST);
        if most > MOST {
            return Err(BodyError::TooLarge);
        }
        let room = match most {
            0..=SMALL => &self.small,
            _ => &self.large,
        };
        let body = timeout(PATIENCE, lend(room, most, request)).await;
        let body = body.unwrap_or(Err(BodyError::Slow))?;
        let begins = |byte: &&u8| matches!(byte, b',' | b':' | b'[' | b'{');
        match body.bytes.iter().filter(begins).count() {
            0..=PARTS => Ok(body),
            _ => Err(BodyError::TooLarge),
        }
    }
}

async fn lend(room: &Arc<Semaphore>, most: usize, request: Request) -> Result<Body, BodyError> {
    let mut body = Body {
        bytes: Vec::new(),
        lent: None,
    };
    let mut stream = request.into_body().into_data_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|_| BodyError::Broken)?;
        if body.bytes.len() + piece.len() > most {
            return Err(BodyError::Broken);
        }
        let length = u32::try_from(piece.len()).map_err(|_| BodyError::Broken)?;
        let lent = Arc::clone(room).try_acquire_many_owned(length);
        let lent = lent.map_err(|_| BodyError::NoRoom)?;
        match &mut body.lent {
            Some(before) => before.merge(lent),
            none => *none = Some(lent),
        }
        body.bytes.extend_from_slice(&piece);
    }
    Ok(body)
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

    async fn refused(room: &Room, request: Request) -> BodyError {
        room.read(request).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_body_is_read_and_its_memory_is_given_back() {
        let room = Room::of(4);
        for length in [Some(4), None] {
            let body = room.read(request(length, "true")).await.unwrap();
            assert_eq!(body.bytes, b"true");
            drop(body);
        }
        assert_eq!(room.small.available_permits(), 4);
        assert_eq!(room.large.available_permits(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_long_or_too_slow_is_refused_and_keeps_no_memory() {
        let room = Room::default();
        let announced = request(Some(MOST + 1), "");
        assert_eq!(refused(&room, announced).await, BodyError::TooLarge);
        for length in [None, Some(10), Some(SMALL + 1)] {
            let longer = request(length, endless());
            assert_eq!(refused(&room, longer).await, BodyError::Broken);
            let slow = request(length, silent());
            assert_eq!(refused(&room, slow).await, BodyError::Slow);
        }
        assert_eq!(room.small.available_permits(), TOGETHER);
        assert_eq!(room.large.available_permits(), TOGETHER);
    }

    #[tokio::test]
    async fn a_body_of_nothing_but_short_values_is_too_large_below_its_size() {
        let short = |values: usize| format!("[{}0]", "0,".repeat(values - 1));
        let room = Room::default();
        let most = short(PARTS);
        assert!(room.read(request(Some(most.len()), most)).await.is_ok());
        let more = short(PARTS + 1);
        let refused = refused(&room, request(Some(more.len()), more)).await;
        assert_eq!(refused, BodyError::TooLarge);
    }

    #[tokio::test]
    async fn large_bodies_and_such_as_never_come_hold_up_no_small_one() {
        let room = Room::of(SMALL + 2);
        let announced = [Some(MOST), Some(SMALL), None];
        let mut silent: Vec<_> = announced
            .map(|length| Box::pin(room.read(request(length, silent()))))
            .into();
        for silent in &mut silent {
            assert!(futures_util::poll!(silent).is_pending());
        }
        let large = "0".repeat(SMALL + 1);
        let large = room.read(request(Some(large.len()), large)).await.unwrap();
        let small = || request(Some(2), "{}");
        room.read(small()).await.unwrap();
        // Of its own kind there is no more.
        let second = request(None, "{}");
        assert_eq!(refused(&room, second).await, BodyError::NoRoom);
        drop(large);
        room.read(request(None, "{}")).await.unwrap();
    }
}
