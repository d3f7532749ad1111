//! An exchange whose body the test sends piece by piece, and a peer that sends GOAWAY.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use merlon_certs::MERLON_H2;
use merlon_tests::{Client, Reply, limit, mesh::TestPeer};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

type Pieces = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A request whose body has no end yet, and its response.
pub(super) struct Unfinished {
    pieces: Pieces,
    response: JoinHandle<hyper::Result<Response<Incoming>>>,
}

/// A response that returns the pieces of the request's body.
pub(super) struct Exchange {
    pieces: Pieces,
    body: Incoming,
}

impl Exchange {
    /// Sends a request with one piece of its body, over HTTP/1.1.
    pub(super) async fn send(client: &Client, service: &str, target: &str) -> Unfinished {
        let (pieces, body) = mpsc::channel(1);
        let io = TokioIo::new(client.tcp().await);
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post(target)
            .header("host", client.host(service))
            .body(StreamBody::new(ReceiverStream::new(body)))
            .unwrap();
        let response = tokio::spawn(async move { sender.send_request(request).await });
        pieces.send(Ok(Frame::data("first".into()))).await.unwrap();
        Unfinished { pieces, response }
    }

    /// An exchange whose first piece has come back.
    pub(super) async fn open(client: &Client, service: &str) -> Self {
        let Unfinished { pieces, response } = Self::send(client, service, "/stream").await;
        let response = limit("the head of the response", response).await;
        let response = response.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body();
        let mut exchange = Self { pieces, body };
        assert_eq!(exchange.read(5).await, "first");
        exchange
    }

    /// Sends a piece.
    pub(super) async fn write(&self, piece: String) {
        let sending = self.pieces.send(Ok(Frame::data(piece.into())));
        limit("room for a piece", sending).await.unwrap();
    }

    /// Reads so many bytes.
    pub(super) async fn read(&mut self, length: usize) -> String {
        let mut read = Vec::new();
        while read.len() < length {
            let frame = limit("a piece of the response", self.body.frame()).await;
            read.extend(frame.expect("no end").unwrap().into_data().unwrap());
        }
        String::from_utf8(read).unwrap()
    }

    /// Ends the body of the request; that of the response must end too, in order.
    pub(super) async fn ends(self) {
        let Self { pieces, body } = self;
        drop(pieces);
        let rest = limit("the end of the response", body.collect()).await;
        assert_eq!(rest.unwrap().to_bytes(), "");
    }

    /// The response must break, not end.
    pub(super) async fn breaks(mut self) {
        match limit("the response to break", self.body.frame()).await {
            Some(Err(_)) => {}
            other => panic!("expected an error, got {other:?}"),
        }
    }
}

impl Unfinished {
    /// The whole response.
    pub(super) async fn reply(self) -> Reply {
        let response = limit("the response", self.response).await;
        Reply::read(response.unwrap().unwrap()).await.unwrap()
    }
}

/// A proxy of the test that responds with the request's body, and sends GOAWAY on request.
pub(super) struct GoAwayPeer {
    address: SocketAddr,
    leave: watch::Sender<()>,
}

impl GoAwayPeer {
    pub(super) async fn start(identity: &TestPeer) -> Self {
        let tls = TlsAcceptor::from(identity.server_config(MERLON_H2));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let leave = watch::Sender::new(());
        let leaving = leave.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, mut leave) = (tls.clone(), leaving.subscribe());
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(async |request: Request<Incoming>| {
                        Ok::<_, Infallible>(Response::new(request.into_body()))
                    });
                    let connection = http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service);
                    let mut connection = std::pin::pin!(connection);
                    tokio::select! {
                        _ = &mut connection => return,
                        _ = leave.changed() => connection.as_mut().graceful_shutdown(),
                    }
                    let _ = connection.await;
                });
            }
        });
        Self { address, leave }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends GOAWAY on all open connections.
    pub(super) fn go_away(&self) {
        self.leave.send_replace(());
    }
}
