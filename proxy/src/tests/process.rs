//! A proxy as `app::start` runs it: its threads, its administration and its shutdown.

use std::{net::SocketAddr, num::NonZeroUsize, path::Path, time::Duration};

use http::Response;
use merlon_certs::{PrivateKey, pem};
use merlon_config::bootstrap::AccessLogMode;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UnixStream},
    sync::watch,
    task,
};

use crate::{
    app::{self, Handle},
    config::{IdentityFiles, ProxyConfig, Source, Subject},
    state::readiness::Unready,
    tests::{
        fixtures::{Authority, ORDERS},
        harness::*,
    },
};

const LONG: Duration = Duration::from_secs(3_600);

/// The sidecar of `shop/orders` from files, without an identity: two workers, plain text, no policy but a permit of all.
struct Standalone {
    directory: TempDir,
    config: ProxyConfig,
}

impl Standalone {
    fn of(program: &Program) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let resources = format!(
            r#"
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: {{ name: mesh, namespace: merlon-system }}
spec: {{ trustDomain: one.test }}
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: {{ name: orders, namespace: shop, labels: {{ app: orders }} }}
spec: {{ serviceAccount: orders }}
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: {{ name: orders, namespace: shop }}
spec:
  selector: {{ app: orders }}
  ports: [{{ port: 80, targetPort: {} }}]
---
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: all, namespace: shop }}
spec:
  targetRefs: [{{ kind: Service, name: orders }}]
  policies: |
    @id("all")
    @reason("a test")
    permit(principal, action, resource);
"#,
            program.port()
        );
        let files = directory.path().join("resources");
        std::fs::create_dir(&files).unwrap();
        std::fs::write(files.join("all.yaml"), resources).unwrap();
        let subject = Subject::Sidecar {
            identity: "shop/orders".parse().unwrap(),
            workload: None,
        };
        let source = Source::Standalone {
            directory: files,
            identity: None,
        };
        let config = ProxyConfig {
            workers: NonZeroUsize::new(2).unwrap(),
            access_log: AccessLogMode::Off,
            drain_timeout: LONG,
            ..ProxyConfig::local(subject, source)
        };
        Self { directory, config }
    }

    async fn start(&self) -> Handle {
        let handle = app::start(self.config.clone()).unwrap();
        handle.ready().await;
        handle
    }
}

/// A program that never answers `/held` until the test sends.
async fn holding() -> (Program, watch::Sender<bool>) {
    let (release, held) = watch::channel(false);
    let program = Program::serving(async move |_| {
        held.clone().wait_for(|go| *go).await.unwrap();
        Response::new(full("done"))
    })
    .await;
    (program, release)
}

/// A connection with a request that the program has received.
async fn open(program: &Program, address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let ask = b"GET /held HTTP/1.1\r\nHost: orders\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    until("the request", || program.requests.get() == 1).await;
    stream
}

#[test]
fn a_drain_is_reported_at_once_and_waits_for_the_open_request() {
    run(async {
        let (program, release) = holding().await;
        let standalone = Standalone::of(&program);
        let mut handle = standalone.start().await;
        let addresses = handle.addresses();
        let ready = http1(addresses.admin, get("localhost", "/ready")).await;
        assert_eq!(ready.status, 200, "{}", ready.body);
        let open = open(&program, addresses.inbound.unwrap()).await;

        handle.drain();

        until("the reason", || !handle.shared().readiness.is_ready()).await;
        let ready = http1(addresses.admin, get("localhost", "/ready")).await;
        assert_eq!(ready.status, 503);
        let reasons: Value = serde_json::from_str(&ready.body).unwrap();
        assert_eq!(reasons["reasons"][0]["code"], "drain", "{}", ready.body);
        release.send(true).unwrap();
        let answer = until_closed(open).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("done"), "{answer}");
        handle.ended().await.unwrap();
    });
}

#[test]
fn the_drain_timeout_ends_a_request_that_does_not_finish() {
    run(async {
        let (program, _release) = holding().await;
        let mut standalone = Standalone::of(&program);
        standalone.config.drain_timeout = Duration::from_millis(50);
        let mut handle = standalone.start().await;
        let open = open(&program, handle.addresses().inbound.unwrap()).await;
        handle.drain();
        handle.ended().await.unwrap();
        assert_eq!(until_closed(open).await, "");
    });
}

#[test]
fn dropping_the_handle_ends_a_drain_at_once() {
    run(async {
        let (program, _release) = holding().await;
        let standalone = Standalone::of(&program);
        let handle = standalone.start().await;
        let open = open(&program, handle.addresses().inbound.unwrap()).await;
        handle.drain();
        until("the reason", || !handle.shared().readiness.is_ready()).await;
        drop(handle);
        assert_eq!(until_closed(open).await, "");
    });
}

#[test]
fn with_an_expired_certificate_a_proxy_is_not_ready_and_accepts_nothing() {
    run(async {
        let program = Program::echo().await;
        let mut standalone = Standalone::of(&program);
        let authority = Authority::new();
        let key = PrivateKey::generate().unwrap();
        let leaf = authority.sign(&key, ORDERS, Duration::from_secs(8));
        let file = |name: &str, text: &[u8]| {
            let path = standalone.directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let identity = Some(IdentityFiles {
            certificate: file("tls.crt", pem::certificate(&leaf).as_bytes()),
            key: file("tls.key", key.to_pkcs8_pem().unwrap().as_bytes()),
            trust_bundle: file("roots.pem", pem::certificate(&authority.root).as_bytes()),
        });
        standalone.config.source = Source::Standalone {
            directory: standalone.directory.path().join("resources"),
            identity,
        };
        let handle = app::start(standalone.config).unwrap();
        let shared = handle.shared();
        assert!(shared.identity.load().is_some());

        until("the expiry", || shared.identity.load().is_none()).await;
        let reason = || shared.readiness.most_severe();
        until("the reason", || reason() == Some(Unready::TlsExpired)).await;
        let ready = http1(handle.addresses().admin, get("localhost", "/ready")).await;
        assert_eq!(ready.status, 503);
        let reasons: Value = serde_json::from_str(&ready.body).unwrap();
        assert_eq!(reasons["reasons"][0]["code"], "tls.expired", "{reasons}");
        let stream = TcpStream::connect(handle.addresses().inbound.unwrap()).await;
        assert_eq!(
            until_closed(stream.unwrap()).await,
            "",
            "not even a TLS alert"
        );
        program.assert_not_reached();
    });
}

/// `GET path` on a Unix socket.
async fn get_at(socket: &Path, path: &str) -> CollectedResponse {
    let stream = UnixStream::connect(socket).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    task::spawn_local(connection);
    collect(sender.send_request(get("localhost", path)).await.unwrap()).await
}

#[test]
fn only_the_owner_of_the_process_can_open_the_socket_and_tcp_serves_three_pages() {
    use std::os::unix::fs::MetadataExt as _;
    run(async {
        let program = Program::echo().await;
        let mut standalone = Standalone::of(&program);
        let state = standalone.directory.path().join("state");
        standalone.config.state_dir = Some(state.clone());
        let handle = standalone.start().await;
        let socket = state.join("admin.sock");
        until("the socket", || {
            std::fs::metadata(&socket).is_ok_and(|found| found.mode() & 0o777 == 0o600)
        })
        .await;
        assert_eq!(std::fs::metadata(&state).unwrap().mode() & 0o777, 0o700);

        let tcp = handle.addresses().admin;
        for (path, public) in [
            ("/live", 200),
            ("/ready", 200),
            ("/metrics", 200),
            ("/config", 404),
            ("/decisions/1", 404),
            ("/", 404),
        ] {
            let answer = http1(tcp, get("localhost", path)).await;
            assert_eq!(answer.status, public, "{path}: {}", answer.body);
        }
        let config = get_at(&socket, "/config").await;
        assert_eq!(config.status, 200);
        assert!(config.body.contains("shop/orders"), "{}", config.body);
        let unknown = get_at(&socket, "/decisions/1").await;
        assert_eq!(unknown.status, 400, "{}", unknown.body);
    });
}
