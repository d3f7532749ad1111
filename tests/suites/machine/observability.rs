//! Probes, metrics, traces and termination.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use merlon_tests::{Client, Mesh, until};
use tokio::net::TcpListener;

#[tokio::test]
async fn every_process_serves_its_probes_and_metrics_and_no_other_page() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
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
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/open")
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/open").await.is_ok();
    web.get("orders", "/closed").await;
    let orders = mesh.sidecar("orders");
    until("both are counted", async || {
        orders
            .metric("merlon_requests_total", "direction=\"inbound\"")
            .await
            == 2.0
            && orders
                .metric("merlon_refusals_total", "reason=\"authz.denied\"")
                .await
                == 1.0
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
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
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
    let collector = Collector::start().await;
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .env(
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            &format!("http://{}", collector.address),
        )
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start()
        .await;
    mesh.as_workload("web")
        .get("orders", "/traced")
        .header(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        .await
        .is_ok();
    let trace = [
        0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47,
        0x36,
    ];
    until(
        "both proxies have exported a span of this trace",
        async || collector.times_seen(&trace) >= 2,
    )
    .await;
}

#[tokio::test]
async fn an_unavailable_collector_fails_no_request() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .start()
        .await;
    for _ in 0..20 {
        mesh.as_workload("web").get("orders", "/").await.is_ok();
    }
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
        tokio::spawn(async move {
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

#[tokio::test]
async fn a_terminated_proxy_exits_with_0_and_accepts_nothing_new() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    let orders = mesh.sidecar("orders");
    orders.terminate();
    assert_eq!(orders.until_ended().await, 0);
    let refused = Client::new(orders.inbound(), "shop")
        .get("orders", "/")
        .send()
        .await;
    assert!(refused.is_err());
}
