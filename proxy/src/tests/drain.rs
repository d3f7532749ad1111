//! The shutdown of a worker: what is open finishes, and nothing new begins.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use http::{Request, Response};
use hyper::client::conn::http2::SendRequest;
use merlon_certs::MERLON_H2;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    sync::watch,
    task,
};

use super::streams;
use crate::{
    limits::Limits,
    telemetry::metrics::worker::WorkerMetrics,
    tests::harness::*,
    upstream::{body::RequestBody, dial, h2},
};

/// A connection that keeps a copy of what it reads.
struct Recorded<T> {
    inner: T,
    read: Rc<RefCell<Vec<u8>>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Recorded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.read
            .borrow_mut()
            .extend_from_slice(&buffer.filled()[before..]);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Recorded<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// An HTTP/2 connection, and the bytes that the proxy sends on it.
struct H2Client {
    sender: SendRequest<RequestBody>,
    read: Rc<RefCell<Vec<u8>>>,
}

impl H2Client {
    async fn on(stream: impl AsyncRead + AsyncWrite + Unpin + 'static) -> Self {
        let read = Rc::default();
        let recorded = Recorded {
            inner: stream,
            read: Rc::clone(&read),
        };
        let sender = h2::begin(recorded, std::future::pending(), &Limits::default())
            .await
            .unwrap();
        Self { sender, read }
    }

    fn begin(&mut self, path: &str) -> task::JoinHandle<CollectedResponse> {
        let response = self.sender.send_request(request(path));
        task::spawn_local(async move { collect(response.await.unwrap()).await })
    }

    /// The error code of the first GOAWAY frame (RFC 9113 §6.8).
    fn goaway(&self) -> Option<u32> {
        let all = self.read.borrow();
        let mut rest = all.as_slice();
        while let [l0, l1, l2, kind, _flags, _, _, _, _, after @ ..] = rest {
            let length = u32::from_be_bytes([0, *l0, *l1, *l2]) as usize;
            let payload = after.get(..length)?;
            if *kind == 7 {
                return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
            rest = &after[length..];
        }
        None
    }
}

fn request(path: &str) -> Request<RequestBody> {
    Request::get(format!("http://orders.shop{path}"))
        .header("merlon-peer", "service=shop/orders;port=80;proto=h2")
        .body(RequestBody::Empty)
        .unwrap()
}

/// Waits until the listener at `address` is closed.
async fn refused(address: SocketAddr) {
    loop {
        match TcpStream::connect(address).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return,
            _ => task::yield_now().await,
        }
    }
}

/// A program that holds its answers to `/held` until the test sends.
async fn holding() -> (Program, watch::Sender<bool>) {
    let (release, held) = watch::channel(false);
    let program = Program::serving(async move |request| {
        if request.uri().path() == "/held" {
            held.clone().wait_for(|go| *go).await.unwrap();
        }
        Response::new(full("done"))
    })
    .await;
    (program, release)
}

/// An HTTP/1.1 connection that stays open after one answered request.
async fn idle(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let quick = b"GET /quick HTTP/1.1\r\nHost: orders\r\n\r\n";
    stream.write_all(quick).await.unwrap();
    let head = streams::read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    stream.read_exact(&mut [0; 4]).await.unwrap();
    stream
}

#[test]
fn a_drain_lets_open_requests_finish_and_accepts_no_new_ones() {
    run(async {
        let (program, release) = holding().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let http1 = task::spawn_local(http1(pair.web.outbound, get("orders", "/held")));
        let own = TcpStream::connect(pair.web.outbound).await.unwrap();
        let mut own = H2Client::on(own).await;
        let identity = pair.ca.identity("shop/web");
        let limits = Limits::default();
        let (orders, metrics) = (
            spiffe("shop/orders").parse().unwrap(),
            WorkerMetrics::default(),
        );
        let peer = dial::mesh(
            pair.orders.inbound,
            &orders,
            &identity,
            MERLON_H2,
            &limits,
            &metrics,
        )
        .await;
        let mut peer = H2Client::on(peer.unwrap()).await;
        let open = [own.begin("/held"), peer.begin("/held")];
        let mut idle = idle(pair.web.outbound).await;
        until("the requests", || program.requests.get() == 4).await;

        pair.web.shutdown.drain.cancel();
        pair.orders.shutdown.drain.cancel();

        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
        for client in [&mut own, &mut peer] {
            until("GOAWAY", || client.goaway().is_some()).await;
            assert_eq!(client.goaway(), Some(0), "NO_ERROR");
            let next = client.sender.send_request(request("/next")).await;
            assert!(next.unwrap_err().is_canceled(), "it was not sent");
        }
        refused(pair.web.outbound).await;
        refused(pair.orders.inbound).await;
        assert!(!http1.is_finished() && open.iter().all(|one| !one.is_finished()));
        assert!(!pair.web.worker.is_finished() && !pair.orders.worker.is_finished());

        release.send(true).unwrap();
        let http1 = http1.await.unwrap();
        assert_eq!((http1.status, http1.body.as_str()), (200, "done"));
        assert_eq!(http1.headers["connection"], "close");
        for answer in open {
            let answer = answer.await.unwrap();
            assert_eq!((answer.status, answer.body.as_str()), (200, "done"));
        }
        pair.web.worker.await.unwrap();
        pair.orders.worker.await.unwrap();
        assert_eq!(program.requests.get(), 4);
        let log = &pair.orders.log;
        let permitted = |line: &serde_json::Value| line["path"] == "/held" && line["status"] == 200;
        let count = || log.lines().iter().filter(|line| permitted(line)).count();
        until("the lines", || count() == 3).await;
    });
}

#[test]
fn a_drain_lets_open_websockets_and_tunnels_continue() {
    run(async {
        let (http, bytes) = (streams::websocket_echo().await, streams::tcp_echo().await);
        let http_pair = Pair::new(&http, "http", PERMIT_ALL);
        let (tcp_pair, local) = streams::tcp_pair(&bytes, PERMIT_ALL).await;
        let mut websocket = TcpStream::connect(http_pair.web.outbound).await.unwrap();
        let ask = streams::WEBSOCKET_REQUEST.as_bytes();
        websocket.write_all(ask).await.unwrap();
        let head = streams::read_head(&mut websocket).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut tunnel = TcpStream::connect(local).await.unwrap();
        tunnel.read_exact(&mut [0; 6]).await.unwrap();

        let nodes = [
            http_pair.web,
            http_pair.orders,
            tcp_pair.web,
            tcp_pair.orders,
        ];
        for node in &nodes {
            node.shutdown.drain.cancel();
        }
        for node in &nodes {
            refused(node.inbound).await;
        }
        refused(local).await;
        for stream in [&mut websocket, &mut tunnel] {
            for byte in 0..100 {
                stream.write_u8(byte).await.unwrap();
                assert_eq!(stream.read_u8().await.unwrap(), byte);
            }
        }
        for node in &nodes {
            assert!(!node.worker.is_finished(), "it carries a tunnel");
        }
        drop((websocket, tunnel));
        for node in nodes {
            node.worker.await.unwrap();
        }
    });
}

#[test]
fn after_the_drain_timeout_a_worker_ends_with_its_open_requests() {
    run(async {
        let (program, _release) = holding().await;
        let pair = Pair::new(&program, "http", PERMIT_ALL);
        let mut open = TcpStream::connect(pair.web.outbound).await.unwrap();
        let ask = b"GET /held HTTP/1.1\r\nHost: orders\r\n\r\n";
        open.write_all(ask).await.unwrap();
        until("the request", || program.requests.get() == 1).await;
        pair.web.shutdown.drain.cancel();
        refused(pair.web.outbound).await;
        assert!(!pair.web.worker.is_finished());
        pair.web.shutdown.end.cancel();
        pair.web.worker.await.unwrap();
    });
}
