use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::*;

/// The longest that a test waits. Only a failed test waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running listener and what it did.
struct Listening {
    address: SocketAddr,
    /// Handshakes that started.
    started: Arc<AtomicUsize>,
    /// Where more handshakes started than there are places, counting those that failed before: started and failed.
    over: Arc<Mutex<Vec<(usize, usize)>>>,
    failed: mpsc::UnboundedReceiver<()>,
    accepted: mpsc::Receiver<Accepted>,
    client: TlsConnector,
    shutdown: CancellationToken,
}

async fn listen(limits: Limits) -> Listening {
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(signed.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connections, accepted) = mpsc::channel(1);
    let (failures, failed) = mpsc::unbounded_channel();
    let (started, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let over = Arc::<Mutex<Vec<_>>>::default();
    let shutdown = CancellationToken::new();
    let (server, stopped) = (Arc::new(server), shutdown.clone());
    let current = {
        let (started, ended, over) = (started.clone(), ended.clone(), over.clone());
        move || {
            let started = started.fetch_add(1, Ordering::SeqCst) + 1;
            let ended = ended.load(Ordering::SeqCst);
            if started > limits.at_once + ended {
                over.lock().unwrap().push((started, ended));
            }
            Some(Arc::clone(&server))
        }
    };
    let on_failure = move || {
        ended.fetch_add(1, Ordering::SeqCst);
        let _ = failures.send(());
    };
    tokio::spawn(accept(
        listener,
        limits,
        current,
        connections,
        on_failure,
        stopped,
    ));
    Listening {
        address,
        started,
        over,
        failed,
        accepted,
        client: TlsConnector::from(Arc::new(client)),
        shutdown,
    }
}

impl Listening {
    async fn silent(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// A handshake that succeeds, at both ends.
    async fn handshake(&mut self) {
        let stream = self.silent().await;
        let name = "localhost".try_into().unwrap();
        let both = async {
            let (client, server) =
                tokio::join!(self.client.connect(name, stream), self.accepted.recv());
            client.unwrap().write_all(b"x").await.unwrap();
            assert_eq!(server.unwrap().0.read_u8().await.unwrap(), b'x');
        };
        timeout(PATIENCE, both).await.unwrap();
    }

    async fn failure(&mut self) {
        timeout(PATIENCE, self.failed.recv())
            .await
            .unwrap()
            .unwrap();
    }
}

fn limits(at_once: usize, timeout: Duration) -> Limits {
    Limits { at_once, timeout }
}

#[tokio::test]
async fn beyond_the_limit_a_handshake_starts_only_when_another_has_ended() {
    let mut listening = listen(limits(2, PATIENCE * 2)).await;
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(listening.silent().await);
    }
    for client in silent {
        drop(client);
        listening.failure().await;
    }
    assert_eq!(listening.started.load(Ordering::SeqCst), 6);
    assert_eq!(*listening.over.lock().unwrap(), []);
    // All places are free again.
    listening.handshake().await;
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_handshake_in_time_is_disconnected_and_its_place_is_free()
{
    let mut listening = listen(limits(1, Duration::from_millis(50))).await;
    // Nothing, and the first bytes of a ClientHello.
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00"] {
        let mut client = listening.silent().await;
        client.write_all(begun).await.unwrap();
        let end = timeout(PATIENCE, client.read(&mut [0; 8])).await;
        assert_eq!(end.unwrap().unwrap(), 0, "it is closed");
        listening.failure().await;
    }
    let mut listening = listen(limits(1, PATIENCE)).await;
    listening.handshake().await;
    listening.handshake().await;
}

#[tokio::test]
async fn bytes_that_are_not_tls_count_as_a_failure_and_end_the_connection() {
    let mut listening = listen(limits(1, PATIENCE * 2)).await;
    let mut client = listening.silent().await;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    listening.failure().await;
    let mut rest = Vec::new();
    let end = timeout(PATIENCE, client.read_to_end(&mut rest)).await;
    assert!(end.is_ok() && !rest.starts_with(b"HTTP/"), "{rest:?}");
    listening.handshake().await;
}

#[tokio::test]
async fn after_the_shutdown_nothing_is_accepted() {
    let mut listening = listen(limits(1, PATIENCE)).await;
    listening.handshake().await;
    listening.shutdown.cancel();
    // The senders of connections are dropped with the accepting task.
    assert!(
        timeout(PATIENCE, listening.accepted.recv())
            .await
            .unwrap()
            .is_none()
    );
    assert!(TcpStream::connect(listening.address).await.is_err());
}
