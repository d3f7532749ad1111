//! Bodies of questions: each of bounded size and time, and all of them together in bounded memory.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Bytes, to_bytes},
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// Twice what the API server takes itself, since a review carries the object before a change and after it.
pub(super) const MOST: usize = 6 << 20;
/// What all of them may have together, in bytes: who sends large ones slowly waits for himself, and not for memory.
const TOGETHER: usize = 64 << 20;
/// Until it is there. The API server's own patience is in the webhook configurations.
const PATIENCE: Duration = Duration::from_secs(3);

/// Memory for bodies.
#[derive(Debug)]
pub(super) struct Room(Arc<Semaphore>);

/// A body, and the memory that is lent to it.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Bytes,
    _lent: OwnedSemaphorePermit,
}

impl Default for Room {
    fn default() -> Self {
        Self::of(TOGETHER)
    }
}

impl Room {
    fn of(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    /// Reads a request's body.
    ///
    /// # Errors
    /// It is larger than [`MOST`], or does not come within the time, be it that there is no room: as an answer.
    pub(super) async fn read(&self, request: Request) -> Result<Body, Response> {
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        // Of one that does not say how long it is the worst is expected.
        let length: usize = announced.unwrap_or(MOST);
        if length > MOST {
            let told = format!("a body has at most {MOST} bytes\n");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, told).into_response());
        }
        let lent = u32::try_from(length).unwrap_or(u32::MAX);
        let read = async {
            let lent = Arc::clone(&self.0).acquire_many_owned(lent).await.ok()?;
            let bytes = to_bytes(request.into_body(), length).await.ok()?;
            Some(Body { bytes, _lent: lent })
        };
        match timeout(PATIENCE, read).await {
            Ok(Some(body)) => Ok(body),
            Ok(None) => Err((
                StatusCode::BAD_REQUEST,
                "the body broke off, or is longer than it said\n",
            )
                .into_response()),
            Err(_) => Err((
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not come within {} s\n", PATIENCE.as_secs()),
            )
                .into_response()),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body as HttpBody;
    use futures_util::stream;

    use super::*;

    fn request(length: Option<usize>, body: HttpBody) -> Request {
        let mut request = Request::new(body);
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

    async fn status(room: &Room, request: Request) -> StatusCode {
        room.read(request).await.unwrap_err().status()
    }

    #[tokio::test]
    async fn a_body_is_read_and_its_room_is_given_back() {
        let room = Room::of(4);
        let body = room.read(request(Some(4), "true".into())).await.unwrap();
        assert_eq!(body.bytes, "true");
        assert_eq!(room.0.available_permits(), 0);
        drop(body);
        assert_eq!(room.0.available_permits(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_long_or_too_slow_is_refused_and_keeps_no_room() {
        let room = Room::default();
        let too_long = request(Some(MOST + 1), "".into());
        assert_eq!(status(&room, too_long).await, StatusCode::PAYLOAD_TOO_LARGE);
        for longer in [request(None, endless()), request(Some(10), endless())] {
            assert_eq!(status(&room, longer).await, StatusCode::BAD_REQUEST);
        }
        let slow = request(Some(10), silent());
        assert_eq!(status(&room, slow).await, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(room.0.available_permits(), TOGETHER);
    }

    #[tokio::test(start_paused = true)]
    async fn when_others_have_all_room_who_comes_waits_and_not_for_ever() {
        let room = Room::of(MOST);
        let held = room.read(request(Some(MOST - 1), "".into())).await.unwrap();
        let small = || request(Some(4), "true".into());
        assert_eq!(status(&room, small()).await, StatusCode::REQUEST_TIMEOUT);
        drop(held);
        assert_eq!(room.read(small()).await.unwrap().bytes, "true");
    }
}
