//! Probes, metrics and traces.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::StatusCode;
use merlon_tests::{
    Client, Mesh,
    app::App,
    client::connect,
    limit,
    mesh::{Guard, Shared, Standalone},
    ports, until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::OnceCell,
};

use super::standalone::OPEN_READS;

static MESH: Shared = Shared::new();

/// A mesh that exports its spans to [`collector`].
async fn mesh() -> Guard {
    let collector = collector().await;
    MESH.get(async || {
        Mesh::new()
            .service("orders")
            .allow("web", "GET", "/**")
            .service("counted")
            .allow("web", "GET", "/open")
            .env(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &format!("http://{}", collector.address),
            )
            .start()
            .await
    })
    .await
}

/// The collector of the shared mesh.
async fn collector() -> &'static Collector {
    static COLLECTOR: OnceCell<Collector> = OnceCell::const_new();
    COLLECTOR.get_or_init(Collector::start).await
}

#[tokio::test]
async fn every_process_serves_its_probes_and_metrics_and_no_other_page() {
    let mesh = mesh().await;
    mesh.as_workload("web").get("orders", "/").await.is_ok();
    for page in ["/live", "/ready", "/metrics"] {
        assert_eq!(mesh.control_plane().probe(page).await, 200, "{page}");
        for (name, sidecar) in mesh.sidecars() {
            assert_eq!(sidecar.probe(page).await, 200, "{name} {page}");
        }
    }
    for page in [
        "/config",
        "/decisions/1",
        "/",
        "/debug/pprof",
        "/quitquitquit",
    ] {
        assert_eq!(mesh.sidecar("orders").probe(page).await, 404, "{page}");
        assert_eq!(mesh.control_plane().probe(page).await, 404, "{page}");
    }
    for page in [
        mesh.control_plane().page("/metrics").await,
        mesh.sidecar("orders").page("/metrics").await,
    ] {
        assert!(page.contains("# TYPE merlon_"), "{page}");
        assert!(
            page.trim_end().ends_with("# EOF"),
            "OpenMetrics ends with `# EOF`: {page}"
        );
    }
}

#[tokio::test]
async fn requests_and_refusals_are_counted() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    web.get("counted", "/open").await.is_ok();
    web.get("counted", "/closed")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    let counted = mesh.sidecar("counted");
    let count = async |name: &str, labels: &str| counted.metric(name, labels).await;
    until("both are counted, by status and by reason", async || {
        count("merlon_requests_total", "direction=\"inbound\"").await == 2.0
            && count("merlon_requests_total", "2xx").await == 1.0
            && count("merlon_requests_total", "4xx").await == 1.0
            && count("merlon_refusals_total", "").await == 1.0
            && count("merlon_refusals_total", "reason=\"authz.denied\"").await == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_proxy_that_is_not_ready_reports_why() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .prepare()
        .await;
    // An invented token, and no control plane to present it to.
    let token = format!(
        "merlon-join.1.mesh.test.{}.{}",
        "A".repeat(43),
        "0".repeat(64)
    );
    std::fs::write(mesh.folder().join("web.token"), token).unwrap();
    let web = mesh.sidecar("web");
    web.launch();
    until("the proxy is live", async || {
        web.probe("/live").await == 200
    })
    .await;
    assert_eq!(web.probe("/ready").await, 503);
    let why = web.page("/ready").await;
    assert!(why.contains("tls.no_identity"), "{why}");
}

#[tokio::test]
async fn the_trace_context_of_a_caller_is_passed_on_to_the_program() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let reply = web
        .get("orders", "/traced")
        .header("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))
        .header("tracestate", "vendor=1")
        .await;
    let saw = &reply.is_ok().json()["headers"];
    let parent = saw["traceparent"].as_str().expect("a traceparent");
    assert!(parent.starts_with(&format!("00-{trace}-")), "{parent}");
    assert_eq!(saw["tracestate"], "vendor=1");
    mesh.log_where("orders", "trace_id", trace)
        .await
        .has("path", "/traced");
    mesh.log_where("web", "trace_id", trace)
        .await
        .has("path", "/traced");

    // An invalid trace context is not passed on.
    for bad in [
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "nonsense",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ] {
        let saw = web
            .get("orders", "/untraced")
            .header("traceparent", bad)
            .await
            .is_ok()
            .json();
        assert_ne!(saw["headers"]["traceparent"], bad);
    }
}

#[tokio::test]
async fn spans_are_exported_to_the_endpoint_in_the_standard_variables() {
    const TRACE: u128 = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c;
    let mesh = mesh().await;
    mesh.as_workload("web")
        .get("orders", "/exported")
        .header(
            "traceparent",
            &format!("00-{TRACE:032x}-00f067aa0ba902b7-01"),
        )
        .await
        .is_ok();
    let collector = collector().await;
    until(
        "both proxies have exported a span of this trace",
        async || collector.times_seen(&TRACE.to_be_bytes()) >= 2,
    )
    .await;
}

/// A proxy in front of `app` that exports its spans to this address.
async fn proxy_with_collector(app: &App, collector: SocketAddr) -> Standalone {
    let endpoint = format!("http://{collector}");
    plain_proxy(app)
        .env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)])
        .start()
        .await
}

/// A proxy without identities in front of `app`.
fn plain_proxy(app: &App) -> Standalone {
    Standalone::sidecar_of("orders", app, OPEN_READS)
}

#[tokio::test]
async fn spans_for_a_collector_that_refuses_are_dropped_and_counted_and_fail_no_request() {
    let app = App::http().await;
    let refusing = ports::refusing();
    let proxy = proxy_with_collector(&app, refusing.address()).await;
    let client = Client::new(proxy.proxy().inbound(), "shop");
    for _ in 0..20 {
        client.get("orders", "/open/1").await.is_ok();
    }
    let dropped = async || proxy.proxy().metric("merlon_spans_dropped_total", "").await;
    until("each span is counted", async || dropped().await == 20.0).await;
    let log = proxy.proxy().process_log();
    assert!(log.contains("\"otlp.lost\""), "{log}");
    client.get("orders", "/open/1").await.is_ok();
}

#[tokio::test]
async fn requests_finish_while_a_silent_collector_holds_an_export() {
    let app = App::http().await;
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let proxy = proxy_with_collector(&app, silent.local_addr().unwrap()).await;
    let client = Client::new(proxy.proxy().inbound(), "shop");
    client.get("orders", "/open/first").await.is_ok();
    let accepted = limit("the export of the first span", silent.accept()).await;
    let (_held, _) = accepted.unwrap();

    for number in 0..20 {
        let path = format!("/open/{number}");
        client.get("orders", &path).await.is_ok();
    }
    let dropped = async || proxy.proxy().metric("merlon_spans_dropped_total", "").await;
    assert_eq!(dropped().await, 0.0, "the export is still waited for");
    until("the spans are given up and counted", async || {
        dropped().await >= 1.0
    })
    .await;
    let log = proxy.proxy().process_log();
    assert!(log.contains("\"otlp.lost\""), "{log}");
    client.get("orders", "/open/last").await.is_ok();
}

#[tokio::test]
async fn a_setting_with_which_peers_need_no_certificate_is_logged_when_it_takes_effect() {
    const EVENT: &str = "\"certificates.not_required\"";
    let app = App::http().await;
    let proxy = plain_proxy(&app).start().await;
    let log = proxy.proxy().process_log();
    let line = log.lines().find(|line| line.contains(EVENT));
    let line = line.unwrap_or_else(|| panic!("no {EVENT} in:\n{log}"));
    assert!(
        line.contains("--standalone without --certificate"),
        "{line}"
    );

    // Without interception, no plain text is accepted, so nothing is logged.
    let mesh = Mesh::new()
        .mesh("  permissiveNamespaces: [shop]\n")
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    mesh.as_workload("web").get("orders", "/").await.is_ok();
    let log = mesh.sidecar("orders").process_log();
    assert!(!log.contains(EVENT), "{log}");
}

#[tokio::test]
async fn clients_of_the_administration_address_cannot_hold_more_than_its_bounds() {
    const CONNECTIONS: usize = 128;
    let app = App::http().await;
    let proxy = plain_proxy(&app).start().await;
    let (admin, inbound) = (proxy.proxy().admin(), proxy.proxy().inbound());
    // Each has sent a part of a head.
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = connect(admin).await;
        stream.write_all(b"GET /live HTTP/1.1\r\n").await.unwrap();
        held.push(stream);
    }
    let log = proxy.proxy().process_log();
    assert!(!log.contains("connections.limit_reached"), "{log}");

    // A new one is served, and the oldest is closed.
    assert_eq!(proxy.proxy().probe("/ready").await, 200);
    let mut oldest = held.remove(0);
    let ended = oldest.read(&mut [0]).await;
    assert!(matches!(ended, Ok(0)), "{ended:?}");
    let log = proxy.proxy().process_log();
    assert!(
        log.contains("\"connections.limit_reached\"") && log.contains("\"limit\":128"),
        "{log}"
    );
    // The newest of the others is still open, and requests pass meanwhile.
    let mut newest = held.pop().unwrap();
    newest.write_all(b"host: x\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    newest.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    Client::new(inbound, "shop")
        .get("orders", "/open/1")
        .await
        .is_ok();

    let large = format!("GET /live HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(17 << 10));
    let answer = Client::new(admin, "shop").raw(large.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn only_the_owner_of_the_process_can_open_its_administration_socket() {
    use std::os::unix::fs::PermissionsExt as _;
    let app = App::http().await;
    let proxy = plain_proxy(&app).start().await;
    let socket = proxy.state_dir().join("admin.sock");
    let mode = |path: &std::path::Path| {
        let found = std::fs::metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        found.permissions().mode() & 0o777
    };
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(&proxy.state_dir()), 0o700);
}

/// Accepts OTLP over gRPC and keeps the bytes, in which a test searches for a trace id.
struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    async fn start() -> Self {
        use http_body_util::{BodyExt as _, Empty};
        use hyper::service::service_fn;
        use hyper_util::rt::{TokioExecutor, TokioIo};

        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&received);
        // It serves a mesh that outlives the test which starts it.
        let listener = {
            let _background = merlon_tests::runtime::enter();
            TcpListener::from_std(listener.into_std().unwrap()).unwrap()
        };
        merlon_tests::runtime::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let kept = Arc::clone(&kept);
                    async move {
                        let gzip = request
                            .headers()
                            .get("grpc-encoding")
                            .is_some_and(|encoding| encoding == "gzip");
                        assert!(!gzip, "compression is not configured");
                        let bytes = request.into_body().collect().await?.to_bytes();
                        kept.lock().unwrap().extend_from_slice(&bytes);
                        let response = http::Response::builder()
                            .header("content-type", "application/grpc")
                            .header("grpc-status", "0")
                            .body(Empty::<bytes::Bytes>::new())
                            .unwrap();
                        Ok::<_, hyper::Error>(response)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, received }
    }

    fn times_seen(&self, needle: &[u8]) -> usize {
        let received = self.received.lock().unwrap();
        received
            .windows(needle.len())
            .filter(|window| *window == needle)
            .count()
    }
}
