use std::time::Duration;

use axum::routing::get;
use merlon_certs::provider;
use rustls::{ClientConfig, RootCertStore, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream as ClientStream};

use super::*;

/// The longest that a test waits. Only a failed test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

struct Listening {
    address: SocketAddr,
    fallback: SocketAddr,
    client: TlsConnector,
    metrics: Metrics,
    shutdown: CancellationToken,
    unlisted: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

async fn listen(change: impl FnOnce(&mut WebhookLimits)) -> Listening {
    let signed = rcgen::generate_simple_self_signed(["webhook".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let certificate = signed.cert.der().clone();
    let server = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key);
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let second = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let fallback = second.local_addr().unwrap();
    let mut limits = WebhookLimits {
        handshake: PATIENCE * 2,
        head: PATIENCE * 2,
        ..WebhookLimits::default()
    };
    change(&mut limits);
    let (_, tls_config) = watch::channel(Some(Arc::new(server.unwrap())));
    let metrics = Metrics::new();
    let routes = Router::new().route("/validate", get(async || "answer"));
    let (shutdown, unlisted) = (CancellationToken::new(), CancellationToken::new());
    let serving = tokio::spawn(serve(
        vec![listener, second],
        limits,
        tls_config,
        routes,
        metrics.clone(),
        (shutdown.clone(), unlisted.clone()),
    ));
    Listening {
        address,
        fallback,
        client: TlsConnector::from(Arc::new(client)),
        metrics,
        shutdown,
        unlisted,
        serving,
    }
}

impl Listening {
    async fn connect(&self) -> ClientStream<TcpStream> {
        self.connect_to(self.address).await
    }

    async fn connect_to(&self, address: SocketAddr) -> ClientStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = "webhook".try_into().unwrap();
        timeout(PATIENCE, self.client.connect(name, stream))
            .await
            .unwrap()
            .unwrap()
    }
}

/// A request on a connection that stays open.
async fn ask(stream: &mut ClientStream<TcpStream>) {
    let request = b"GET /validate HTTP/1.1\r\nhost: webhook\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"answer") {
        let bytes = timeout(PATIENCE, stream.read_buf(&mut read)).await;
        assert_ne!(bytes.unwrap().unwrap(), 0, "the connection is closed");
    }
    assert!(read.starts_with(b"HTTP/1.1 200 "));
}

/// Waits until the server closes. Returns what it sent before.
async fn rest(mut stream: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut read = Vec::new();
    // A reset is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut read))
        .await
        .expect("the server closes the connection");
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_handshake_is_disconnected_and_counted() {
    let listening = listen(|limits| limits.handshake = SHORT).await;
    let silent = TcpStream::connect(listening.address).await.unwrap();
    assert_eq!(rest(silent).await, "");
    assert_eq!(listening.metrics.handshakes_failed.get(), 1);
}

#[tokio::test]
async fn both_listeners_answer_and_share_the_limit_of_connections() {
    let listening = listen(|limits| limits.connections = 1).await;
    let mut first = listening.connect().await;
    ask(&mut first).await;
    let mut second = listening.connect_to(listening.fallback).await;
    ask(&mut second).await;
    assert_eq!(rest(first).await, "");
}

#[tokio::test]
async fn at_the_limit_of_connections_the_oldest_is_closed_and_the_newest_is_answered() {
    let listening = listen(|limits| limits.connections = 2).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = listening.connect().await;
        ask(&mut stream).await;
        open.push(stream);
    }
    let oldest = open.remove(0);
    assert_eq!(rest(oldest).await, "");
    for stream in &mut open {
        ask(stream).await;
    }
}

#[tokio::test]
async fn a_head_that_does_not_arrive_in_time_ends_the_connection() {
    let listening = listen(|limits| limits.head = SHORT).await;
    for begun in [&b""[..], b"GET /validate HTTP/1.1\r\nhost: webhook\r\n"] {
        let mut stream = listening.connect().await;
        stream.write_all(begun).await.unwrap();
        let text = rest(stream).await;
        assert!(!text.contains("200"), "{text}");
    }
}

#[tokio::test]
async fn after_the_start_of_the_shutdown_requests_are_served_and_each_is_the_last_of_its_connection()
 {
    let listening = listen(|limits| limits.linger = Duration::ZERO).await;
    let mut known = listening.connect().await;
    ask(&mut known).await;
    listening.shutdown.cancel();
    for mut stream in [known, listening.connect().await] {
        let request = b"GET /validate HTTP/1.1\r\nhost: webhook\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let answer = rest(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
        assert!(answer.ends_with("answer"), "{answer}");
    }
}

#[tokio::test]
async fn when_no_node_sends_requests_any_more_connections_are_closed_and_none_is_accepted() {
    let listening = listen(|limits| limits.linger = SHORT).await;
    let mut idle = listening.connect().await;
    ask(&mut idle).await;
    listening.shutdown.cancel();
    listening.unlisted.cancel();
    assert_eq!(rest(idle).await, "");
    timeout(PATIENCE, listening.serving).await.unwrap().unwrap();
    for address in [listening.address, listening.fallback] {
        TcpStream::connect(address).await.unwrap_err();
    }
}
