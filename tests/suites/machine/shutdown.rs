//! The end of a process: what is open finishes, nothing new is accepted, and a time-out or a second signal ends it.

use std::io::ErrorKind;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Request, StatusCode};
use merlon_tests::{
    Client, Mesh, OpenRequest,
    app::App,
    client::connect,
    limit,
    mesh::{Standalone, TestPeer},
    until,
};
use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;

use super::standalone::everyone;

/// The kernel spreads them over both workers: all of them at one worker would be one case in 2^31.
const CONNECTIONS: usize = 32;

/// A peer's connection with an open request.
struct OpenConnection {
    sender: SendRequest<Bytes>,
    body: SendStream<Bytes>,
    response: RecvStream,
}

impl OpenConnection {
    async fn start(peer: &TestPeer) -> Self {
        let tls = peer
            .to("orders")
            .dial(merlon_certs::MERLON_H2)
            .await
            .expect("a handshake");
        let (mut sender, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
        tokio::spawn(connection);
        let (response, mut body) = Self::request(&mut sender).expect("an open connection");
        body.send_data(Bytes::from_static(b"first"), false).unwrap();
        let response = limit("the beginning of the response", response)
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut this = Self {
            sender,
            body,
            response: response.into_body(),
        };
        assert_eq!(this.next().await.as_deref(), Some(b"first".as_slice()));
        this
    }

    fn request(
        sender: &mut SendRequest<Bytes>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let request = Request::post("http://orders.shop/stream")
            .header("merlon-peer", "service=shop/orders;port=80;proto=h2")
            .body(())
            .expect("a request");
        sender.send_request(request, false)
    }

    async fn next(&mut self) -> Option<Bytes> {
        let data = limit("a piece of the response", self.response.data()).await?;
        let data = data.expect("a response that is not cut");
        let flow = self.response.flow_control();
        flow.release_capacity(data.len()).unwrap();
        Some(data)
    }

    /// Waits for GOAWAY, after which a client opens no request on this connection.
    async fn until_goes_away(&self) {
        let error = until_some_error(&self.sender).await;
        assert!(error.is_go_away() && error.is_remote(), "{error:?}");
        assert_eq!(error.reason(), Some(Reason::NO_ERROR), "{error:?}");
    }

    async fn finish(mut self) {
        self.body
            .send_data(Bytes::from_static(b"last"), true)
            .unwrap();
        assert_eq!(self.next().await.as_deref(), Some(b"last".as_slice()));
        assert_eq!(self.next().await, None, "the response ends whole");
    }
}

async fn until_some_error(sender: &SendRequest<Bytes>) -> h2::Error {
    merlon_tests::wait::until_some("the proxy sends GOAWAY", async || {
        sender.clone().ready().await.err()
    })
    .await
}

#[tokio::test]
async fn a_terminated_proxy_finishes_open_requests_and_accepts_nothing_new() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "http", "/**")
        .workers(2)
        .start()
        .await;
    let orders = mesh.sidecar("orders");
    let peer = mesh.test_peer("web").await;
    let open = join_all((0..CONNECTIONS).map(|_| OpenConnection::start(&peer))).await;
    let served = orders.connections_of_workers(orders.inbound());
    assert_eq!(served.len(), 2, "each worker has some: {served:?}");

    orders.terminate();
    until("it is not ready", async || {
        orders.probe("/ready").await == 503
    })
    .await;
    let why = orders.page("/ready").await;
    assert!(why.contains("\"drain\""), "{why}");
    for connection in &open {
        connection.until_goes_away().await;
    }
    let refused = async || {
        let dialled = peer.to("orders").dial(merlon_certs::MERLON_H2).await;
        dialled.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    until("it refuses connections", refused).await;
    let program = Client::new(orders.outbound(), "shop");
    let error = program
        .get("orders", "/")
        .send()
        .await
        .expect_err("refused");
    assert!(error.contains("refused"), "{error}");
    assert!(orders.is_alive(), "the open requests have not ended");
    assert_eq!(orders.probe("/live").await, 200);

    for connection in open {
        connection.finish().await;
    }
    assert_eq!(orders.until_ended().await, 0);
    let log = orders.log();
    let whole = log.iter().filter(|line| {
        line.text("path") == "/stream"
            && line.text("status") == "200"
            && line.text("bytes_out") == "9"
            && line.text("aborted").is_empty()
    });
    assert_eq!(whole.count(), CONNECTIONS, "{log:?}");
    assert_eq!(mesh.requests_seen_by("orders"), CONNECTIONS);
}

/// A proxy with these arguments, and a request that stays open.
async fn proxy_with_an_open_request(app: &App, args: &[&str]) -> (Standalone, OpenRequest) {
    let policy = everyone("permit(principal, action, resource);");
    let proxy = Standalone::sidecar_of("orders", app, &policy);
    let proxy = proxy.workers(2).args(args).start().await;
    let client = Client::new(proxy.proxy().inbound(), "shop");
    let open = OpenRequest::start(&client, "orders", "/stream").await;
    (proxy, open)
}

#[tokio::test]
async fn requests_that_outlast_the_drain_timeout_are_cut() {
    let app = App::http().await;
    let (proxy, mut open) = proxy_with_an_open_request(&app, &["--drain-timeout", "100ms"]).await;
    proxy.proxy().terminate();
    open.until_cut().await;
    assert_eq!(proxy.proxy().until_ended().await, 0);
    let log = proxy.proxy().process_log();
    assert!(log.contains("\"proxy.draining\""), "{log}");
}

#[tokio::test]
async fn a_second_signal_ends_the_drain_at_once() {
    let app = App::http().await;
    for (first, second) in [
        (Signal::TERM, Signal::TERM),
        (Signal::TERM, Signal::INT),
        (Signal::INT, Signal::TERM),
        (Signal::INT, Signal::INT),
    ] {
        let (proxy, mut open) = proxy_with_an_open_request(&app, &["--drain-timeout", "1h"]).await;
        let proxy = proxy.proxy();
        proxy.signal(first);
        until("it drains", async || proxy.probe("/ready").await == 503).await;
        assert!(open.passes("still").await, "the first signal drains");
        proxy.signal(second);
        assert_eq!(proxy.until_ended().await, 0);
        open.until_cut().await;
    }
}

#[tokio::test]
async fn a_drain_closes_idle_connections_at_once() {
    let app = App::http().await;
    let (proxy, open) = proxy_with_an_open_request(&app, &["--drain-timeout", "1h"]).await;
    let proxy = proxy.proxy();
    // A connection that has had its response.
    let mut idle = connect(proxy.inbound()).await;
    tokio::io::AsyncWriteExt::write_all(
        &mut idle,
        b"GET /once HTTP/1.1\r\nhost: orders.shop\r\n\r\n",
    )
    .await
    .unwrap();
    let mut head = [0; 12];
    idle.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    proxy.terminate();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(proxy.is_alive(), "the open request has not ended");
    open.finish().await;
    assert_eq!(proxy.until_ended().await, 0);
}
