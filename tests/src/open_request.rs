//! A request that stays open while a test changes something.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{client::Client, wait};

type Piece = Result<Frame<Bytes>, std::convert::Infallible>;

/// A `POST` of a streamed body over a connection of its own, to a program that returns each piece (see
/// [`crate::app::App::http`]).
#[derive(Debug)]
pub struct OpenRequest {
    pieces: mpsc::Sender<Piece>,
    response: Incoming,
    status: StatusCode,
}

impl OpenRequest {
    /// Opens it, and waits until the first piece has come back. `target` begins with `/stream`.
    pub async fn start(client: &Client, service: &str, target: &str) -> Self {
        let (pieces, body) = mpsc::channel::<Piece>(1);
        // Not a `Connection`: what reads the response here has a limit, and must distinguish its end from a time-out.
        let stream = TcpStream::connect(client.address()).await;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream.expect("a connection")))
                .await
                .expect("a connection");
        tokio::spawn(connection);
        let request = Request::post(target)
            .header(http::header::HOST, client.host(service))
            .body(StreamBody::new(ReceiverStream::new(body)))
            .expect("a request");
        let response = sender.send_request(request);
        let first = Frame::data(Bytes::from_static(b"first"));
        pieces.send(Ok(first)).await.expect("an open body");
        let (head, response) = wait::limit("the beginning of the response", response)
            .await
            .unwrap_or_else(|error| panic!("{target}: {error}"))
            .into_parts();
        let mut this = Self {
            pieces,
            response,
            status: head.status,
        };
        if this.status == StatusCode::OK {
            assert_eq!(this.next().await.as_deref(), Some(b"first".as_slice()));
        }
        this
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Sends a piece, and returns whether it came back.
    pub async fn passes(&mut self, piece: &str) -> bool {
        let frame = Frame::data(Bytes::from(piece.to_owned()));
        self.pieces.send(Ok(frame)).await.is_ok()
            && self.next().await.as_deref() == Some(piece.as_bytes())
    }

    /// Waits until the proxy has cut the response.
    ///
    /// # Panics
    /// If the response ends whole.
    pub async fn until_cut(&mut self) {
        loop {
            let frame = wait::limit("the cut of the response", self.response.frame());
            match frame.await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return,
                None => panic!("the response ends whole instead of being cut"),
            }
        }
    }

    /// Ends the request, and asserts that the response ends whole.
    pub async fn finish(mut self) {
        drop(self.pieces);
        match wait::limit("the end of the response", self.response.frame()).await {
            None => {}
            Some(more) => panic!("the response does not end whole: {more:?}"),
        }
    }

    /// The next piece; `None` at the end, whole or not.
    async fn next(&mut self) -> Option<Bytes> {
        let frame = wait::limit("a piece of the response", self.response.frame()).await;
        frame?.ok()?.into_data().ok()
    }
}
