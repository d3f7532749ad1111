//! Which requests the access log contains.

use crate::{config::AccessLogMode, limits::Limits, tests::harness::*};

const OPEN_ONLY: &str = r#"@id("open") permit (principal, action, resource) when { context has path && context.path == "/open" };"#;

/// The paths in the complete log of a proxy that permitted one request and refused another.
async fn logged(mode: AccessLogMode) -> Vec<String> {
    let program = Program::echo().await;
    let state = State::new("shop/orders").with_service(service(
        "shop/orders",
        80,
        program.port(),
        "http",
        OPEN_ONLY,
    ));
    let node = Node::with(None, &state, Limits::default(), mode);
    let permitted = http1(node.inbound, get("orders", "/open")).await;
    assert_eq!(permitted.status, 200);
    let refused = http1(node.inbound, get("orders", "/refused")).await;
    refused.assert_refused(403, "authz.denied");
    assert_eq!(program.requests.get(), 1);
    // The shutdown writes all lines.
    node.shutdown.drain.cancel();
    node.shutdown.end.cancel();
    node.worker.await.unwrap();
    let log = node.log;
    until("the end of the log", || log.is_complete()).await;
    let lines = log.lines();
    let path = |line: &serde_json::Value| line["path"].as_str().unwrap().to_owned();
    lines.iter().map(path).collect()
}

#[test]
fn the_access_log_contains_the_requests_of_its_mode() {
    run(async {
        assert_eq!(logged(AccessLogMode::All).await, ["/open", "/refused"]);
        assert_eq!(logged(AccessLogMode::Refusals).await, ["/refused"]);
        assert!(logged(AccessLogMode::Off).await.is_empty());
    });
}
