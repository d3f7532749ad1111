mod bounds;
mod grpc;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{http::HeaderMap, routing::any};
use futures_util::FutureExt as _;
use merlon_config::probe::{
    Grpc, Handler, HookKey, HttpGet, Probe, ProbeKind, Scheme, TcpSocket, hook_path,
};
use merlon_test_support::{ports, wait::limit};
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::tests::harness::run;

/// A program that records the request heads.
#[derive(Clone, Default)]
struct Program {
    seen: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

impl Program {
    async fn start(routes: impl FnOnce(Router) -> Router) -> (Self, u16) {
        let this = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::clone(&this.seen);
        let routes = routes(Router::new()).layer(axum::middleware::from_fn(
            move |request: Request, next: axum::middleware::Next| {
                let head = (request.uri().to_string(), request.headers().clone());
                seen.lock().unwrap().push(head);
                next.run(request)
            },
        ));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (this, port)
    }
}

fn get(port: u16, path: &str) -> HttpGet {
    HttpGet {
        port,
        path: path.to_owned(),
        scheme: Scheme::Http,
        headers: Vec::new(),
    }
}

/// The response of a listener with one probe to a GET for it.
async fn probe_result(handler: Handler) -> (u16, String) {
    let here = listener(handler).await;
    response(here, "/probe/web/liveness", Method::GET).await
}

async fn listener(handler: Handler) -> SocketAddr {
    listener_at("/probe/web/liveness", handler).await
}

async fn listener_at(path: &str, handler: Handler) -> SocketAddr {
    listener_of(path, handler, 60).await
}

async fn listener_of(path: &str, handler: Handler, timeout_seconds: u32) -> SocketAddr {
    let probe = Probe {
        handler,
        timeout_seconds,
    };
    let probes = BTreeMap::from([(path.to_owned(), probe)]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, probes, Arc::new(Metrics::default())));
    here
}

async fn response(here: SocketAddr, path: &str, method: Method) -> (u16, String) {
    let request = reqwest::Client::new()
        .request(method, format!("http://{here}{path}"))
        .header("user-agent", "kube-probe/1.36");
    let reply = request.send().await.unwrap();
    let status = reply.status().as_u16();
    (status, reply.text().await.unwrap())
}

#[test]
fn responses_count_as_success_or_failure_as_for_the_kubelet() {
    run(async {
        for (status, right) in [
            (200, true),
            (204, true),
            (399, true),
            (400, false),
            (503, false),
        ] {
            let code = StatusCode::from_u16(status).unwrap();
            let (_, port) =
                Program::start(|routes| routes.route("/", any(move || async move { code }))).await;
            let (found, text) = probe_result(Handler::HttpGet(get(port, "/"))).await;
            assert_eq!(found == 200, right, "{status}: {text}");
            assert!(right || text.contains(&status.to_string()), "{text}");
        }
    });
}

#[test]
fn the_program_receives_the_same_request_as_from_the_kubelet() {
    run(async {
        let (program, port) = Program::start(|routes| routes.fallback(async || "fine")).await;
        let mut handler = get(port, "/healthz?full=1");
        handler.headers = vec![
            ("Host".to_owned(), "orders.shop".to_owned()),
            ("X-Twice".to_owned(), "a".to_owned()),
            ("X-Twice".to_owned(), "b".to_owned()),
        ];
        assert_eq!(probe_result(Handler::HttpGet(handler)).await.0, 200);
        let seen = program.seen.lock().unwrap();
        let (uri, headers) = seen.first().unwrap();
        assert_eq!(uri, "/healthz?full=1");
        assert_eq!(headers["host"], "orders.shop");
        assert_eq!(headers["user-agent"], "kube-probe/1.36");
        assert_eq!(headers["accept"], "*/*");
        let twice: Vec<_> = headers.get_all("x-twice").iter().collect();
        assert_eq!(twice, ["a", "b"]);
        assert!(
            headers
                .keys()
                .all(|name| !name.as_str().starts_with("merlon"))
        );
    });
}

#[test]
fn a_redirect_is_followed_within_the_program_and_nowhere_else() {
    run(async {
        let (elsewhere, other) = Program::start(|routes| routes.fallback(async || "seen")).await;
        let (_, port) = Program::start(|routes| {
            routes
                .route(
                    "/in",
                    any(async || ([("location", "/down")], StatusCode::FOUND)),
                )
                .route("/down", any(async || StatusCode::INTERNAL_SERVER_ERROR))
                .route(
                    "/out",
                    any(move || async move {
                        let location = format!("http://localhost:{other}/");
                        (StatusCode::FOUND, [("location", location)])
                    }),
                )
        })
        .await;
        assert_eq!(
            probe_result(Handler::HttpGet(get(port, "/in"))).await.0,
            503
        );
        assert_eq!(
            probe_result(Handler::HttpGet(get(port, "/out"))).await.0,
            200
        );
        assert!(elsewhere.seen.lock().unwrap().is_empty());
    });
}

#[test]
fn every_kind_of_probe_detects_a_dead_program() {
    run(async {
        let gone = ports::refusing();
        let port = gone.address().port();
        let service = String::new();
        for handler in [
            Handler::HttpGet(get(port, "/")),
            Handler::TcpSocket(TcpSocket { port }),
            Handler::Grpc(Grpc { port, service }),
        ] {
            let (status, text) = probe_result(handler).await;
            assert_eq!(status, 503, "{text}");
            assert!(text.contains("refused"), "{text}");
        }
    });
}

#[test]
fn a_program_that_accepts_connections_and_never_responds_fails_the_probe() {
    run(async {
        let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = hung.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = hung.accept().await {
                open.push(stream);
            }
        });
        let here = listener_of("/hung", Handler::HttpGet(get(port, "/")), 1).await;
        let (status, text) = response(here, "/hung", Method::GET).await;
        assert_eq!(
            (status, text.as_str()),
            (503, "the program did not respond within 1 s\n")
        );
        assert_eq!(
            probe_result(Handler::TcpSocket(TcpSocket { port })).await.0,
            200
        );
    });
}

#[test]
fn a_truncated_body_fails_and_an_endless_one_succeeds() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 512];
                let length = stream.read(&mut head).await.unwrap();
                let endless = head[..length].starts_with(b"GET /endless ");
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nbegun";
                stream.write_all(answer).await.unwrap();
                tokio::spawn(async move {
                    while endless && stream.write_all(&[0; 1024]).await.is_ok() {}
                });
            }
        });
        let (status, text) = probe_result(Handler::HttpGet(get(port, "/"))).await;
        assert_eq!(status, 503, "{text}");
        let (status, text) = probe_result(Handler::HttpGet(get(port, "/endless"))).await;
        assert_eq!(status, 200, "{text}");
    });
}

#[test]
fn no_path_leads_to_another_host() {
    run(async {
        let (elsewhere, other) = Program::start(|routes| routes.fallback(async || "seen")).await;
        let (program, port) = Program::start(|routes| routes.fallback(async || "fine")).await;
        for path in [
            format!("@127.0.0.1:{other}/"),
            format!("//127.0.0.1:{other}/"),
            format!("http://127.0.0.1:{other}/"),
            format!("\\@127.0.0.1:{other}/"),
        ] {
            let (status, text) = probe_result(Handler::HttpGet(get(port, &path))).await;
            assert_eq!(status, 200, "`{path}`: {text}");
        }
        assert!(elsewhere.seen.lock().unwrap().is_empty());
        assert_eq!(program.seen.lock().unwrap().len(), 4);
    });
}

#[test]
fn many_requests_of_a_hanging_probe_do_not_delay_others() {
    run(async {
        let hung = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let slow = Handler::HttpGet(get(hung.local_addr().unwrap().port(), "/"));
        let (_, port) = Program::start(|routes| routes.fallback(async || "fine")).await;
        let probe = |handler, timeout_seconds| Probe {
            handler,
            timeout_seconds,
        };
        let probes = BTreeMap::from([
            ("/probe/slow/liveness".to_owned(), probe(slow, 600)),
            (
                "/probe/web/liveness".to_owned(),
                probe(Handler::HttpGet(get(port, "/")), 1),
            ),
        ]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, probes, Arc::new(Metrics::default())));
        let many: Vec<_> = (0..4 * CONCURRENT)
            .map(|_| tokio::spawn(response(here, "/probe/slow/liveness", Method::GET)))
            .collect();
        // The concurrency limit of the slow probe is used up.
        let mut held = Vec::new();
        while held.len() < CONCURRENT {
            held.push(hung.accept().await.unwrap());
        }
        assert_eq!(
            response(here, "/probe/web/liveness", Method::GET).await.0,
            200
        );
        // The others wait until one of them has ended.
        let ninth = std::pin::pin!(hung.accept());
        let mut ninth = ninth.fuse();
        assert!(futures_util::poll!(&mut ninth).is_pending());
        drop(held.pop());
        limit("the ninth request of the probe", ninth)
            .await
            .unwrap();
        for one in many {
            one.abort();
        }
    });
}

#[test]
fn a_reason_is_a_short_single_line() {
    let reason = one_line(&format!("a\r\nb{}", "ü".repeat(5000)));
    assert!(!reason.contains(['\r', '\n']), "{reason}");
    assert_eq!(reason.chars().count(), REASON_LENGTH);
}

#[test]
fn the_certificate_of_the_program_is_not_verified() {
    run(async {
        let made = rcgen::generate_simple_self_signed(vec!["other.test".to_owned()]).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::clone(merlon_certs::provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![made.cert.der().clone()],
                    rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der())
                        .into(),
                )
                .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = [0; 512];
            let _ = stream.read(&mut head).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut handler = get(port, "/");
        handler.scheme = Scheme::Https;
        let (status, text) = probe_result(Handler::HttpGet(handler)).await;
        assert_eq!(status, 200, "{text}");
    });
}

#[test]
fn only_configured_probes_are_made() {
    run(async {
        let reached = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reached);
        let (_, port) = Program::start(|routes| {
            routes.fallback(async move || {
                counted.fetch_add(1, Ordering::Relaxed);
            })
        })
        .await;
        let here = listener(Handler::HttpGet(get(port, "/"))).await;
        let path = "/probe/web/liveness";
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            assert_eq!(response(here, path, method).await.0, 405);
        }
        for other in [
            "/",
            "/probe/web/readiness",
            "/probe/web/liveness/",
            "//probe/web/liveness",
        ] {
            let (status, text) = response(here, other, Method::GET).await;
            assert_eq!(status, 404, "{other}");
            assert_eq!(text, "there is no such probe\n");
        }
        assert_eq!(reached.load(Ordering::Relaxed), 0);
        assert_eq!(response(here, path, Method::HEAD).await.0, 200);
        assert_eq!(reached.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_hook_requires_its_key() {
    run(async {
        let (program, port) = Program::start(|routes| routes.fallback(any(async || "bye"))).await;
        let key = HookKey::new(0xabc0_u128 << 64);
        let path = hook_path("web", ProbeKind::PreStop, &key);
        let here = listener_at(&path, Handler::HttpGet(get(port, "/quit"))).await;
        let keyless = path.strip_suffix(&key.to_string()).unwrap();
        for guess in [
            keyless.to_owned(),
            keyless.trim_end_matches('/').to_owned(),
            format!("{keyless}{}", HookKey::new(0)),
            path.to_uppercase(),
            format!("{path}/"),
        ] {
            let (status, text) = response(here, &guess, Method::GET).await;
            assert_eq!(status, 404, "{guess}");
            assert!(!text.contains(&key.to_string()), "{text}");
        }
        assert!(program.seen.lock().unwrap().is_empty());
        assert_eq!(response(here, &path, Method::GET).await.0, 200);
        assert_eq!(program.seen.lock().unwrap().len(), 1);
    });
}

/// A writer that keeps the log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_log_contains_no_key() {
    run(async {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let _logged = tracing::subscriber::set_default(subscriber.finish());
        let gone = ports::refusing();
        let key = HookKey::new(0x5ec3_u128 << 64);
        let path = hook_path("web", ProbeKind::PreStop, &key);
        let here = listener_at(&path, Handler::HttpGet(get(gone.address().port(), "/quit"))).await;
        assert_eq!(response(here, &path, Method::GET).await.0, 503);
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let own = log.lines().filter(|line| line.contains("merlon_"));
        let own: Vec<_> = own.collect();
        let failed = own.iter().find(|line| line.contains("probe.failed"));
        let failed = failed.unwrap_or_else(|| panic!("no line in:\n{log}"));
        assert!(failed.contains("probe=\"/probe/web/preStop\""), "{failed}");
        let key = key.to_string();
        assert!(own.iter().all(|line| !line.contains(&key)), "{own:#?}");
    });
}
