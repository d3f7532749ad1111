//! Response bodies that are written in pieces and within a time limit.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::{sync::Notify, task::AbortHandle};

/// Size of a piece in bytes. A connection buffers one or two of them, and TLS a few more.
const PIECE: usize = 16 << 10;

/// A response body. A client that does not read it in time loses the connection.
pub(crate) struct ResponseBody {
    body: Body,
    rest: Bytes,
    timer: Arc<Timer>,
}

/// Aborts its task when dropped.
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Bytes that are handed to the connection and not written yet. The body may be dropped by then, but the timer still runs.
struct Piece {
    bytes: Bytes,
    _timer: Arc<Timer>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl ResponseBody {
    pub(crate) fn new(body: Body, within: Duration, late: Arc<Notify>) -> Self {
        let timer = tokio::spawn(async move {
            tokio::time::sleep(within).await;
            late.notify_one();
        });
        Self {
            body,
            rest: Bytes::new(),
            timer: Arc::new(Timer(timer.abort_handle())),
        }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let length = self.rest.len().min(PIECE);
        let piece = Piece {
            bytes: self.rest.split_to(length),
            _timer: Arc::clone(&self.timer),
        };
        Frame::data(Bytes::from_owner(piece))
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        Poll::Ready(Some(Ok(self.piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.rest.len() as u64;
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + left);
        }
        hint.set_lower(hint.lower() + left);
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(10);

    /// Whether the timer fires after all pieces of a response were taken and `written` of them were written.
    async fn times_out(length: usize, written: usize) -> bool {
        let late = Arc::new(Notify::new());
        let mut body = ResponseBody::new(Body::from(vec![0; length]), WITHIN, Arc::clone(&late));
        let mut pieces = Vec::new();
        while let Some(piece) = body.frame().await {
            pieces.push(piece.unwrap().into_data().unwrap());
        }
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), length);
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE));
        drop(body);
        pieces.drain(..written);
        tokio::time::timeout(2 * WITHIN, late.notified())
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_runs_until_the_last_piece_is_written() {
        assert!(times_out(3 * PIECE + 1, 3).await);
        assert!(!times_out(3 * PIECE + 1, 4).await);
        assert!(times_out(1, 0).await);
        assert!(!times_out(0, 0).await);
    }
}
