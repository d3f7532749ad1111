//! A state that a proxy cannot compile. The control plane compiles all resources before it sends them, so a fake one sends
//! it.

use http::StatusCode;
use merlon_config::snapshot::ResourceKind;
use merlon_tests::{
    Mesh,
    mesh::{FakeControlPlane, Sidecar, TRUST_DOMAIN, identity},
    until,
};
use serde_json::json;

/// The events of this name in a proxy's process log.
fn events(proxy: &Sidecar, name: &str) -> Vec<String> {
    let log = proxy.process_log();
    let named = format!("\"event\":\"{name}\"");
    let lines = log.lines().filter(|line| line.contains(&named));
    lines.map(str::to_owned).collect()
}

/// A mesh whose control plane has ended.
async fn mesh_without_control_plane() -> Mesh {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/open/**")
        .start()
        .await;
    mesh.as_workload("web")
        .get("orders", "/open/before")
        .await
        .is_ok();
    mesh.control_plane().kill9();
    mesh
}

/// A fake control plane that sends the proxy of `orders` a state with a policy that permits everything and another that is
/// no policy.
async fn broken_state(mesh: &Mesh) -> FakeControlPlane {
    let orders = json!({
        "name": "shop/orders",
        "ports": [{ "port": 80, "targetPort": mesh.app("orders").address().port() }],
        "policies": [
            { "name": "shop/all", "text": "@id(\"all\") @reason(\"a test\") permit (principal, action, resource);" },
            { "name": "shop/broken", "origin": "broken.yaml:7:3", "text": "permit (oops" },
        ],
    });
    let workload = json!({ "identity": identity("orders"), "services": ["shop/orders"] });
    let settings = json!({ "trustDomain": TRUST_DOMAIN, "rootNamespace": "merlon-system" });
    let state = [
        (ResourceKind::Mesh, merlon_api::MESH_NAME, settings),
        (ResourceKind::Workload, "shop/orders", workload),
        (ResourceKind::Service, "shop/orders", orders),
    ];
    mesh.fake_control_plane(&state).await
}

#[tokio::test]
async fn a_state_that_does_not_compile_is_logged_and_the_last_good_one_stays_in_force() {
    let mesh = mesh_without_control_plane().await;
    let _fake = broken_state(&mesh).await;
    let (proxy, web) = (mesh.sidecar("orders"), mesh.as_workload("web"));
    until("the proxy logs the rejection", async || {
        !events(proxy, "snapshot.rejected").is_empty()
    })
    .await;
    let rejected = &events(proxy, "snapshot.rejected")[0];
    assert!(rejected.contains("\"level\":\"ERROR\""), "{rejected}");
    assert!(rejected.contains("broken.yaml:7:3"), "{rejected}");
    let refused = ("merlon_snapshot_updates_total", "result=\"refused\"");
    assert!(proxy.metric(refused.0, refused.1).await >= 1.0);

    // The policy of the rejected state that compiles is not in force either.
    let denied = web.get("orders", "/closed").await;
    denied.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    let logged = mesh.log_of("orders", &denied).await;
    logged.has("status", "403").has("reason", "authz.denied");
    web.get("orders", "/open/after").await.is_ok();
    assert_eq!(mesh.requests_seen_by("orders"), 2);
    assert_eq!(proxy.probe("/ready").await, 200);
}

#[tokio::test]
async fn a_proxy_whose_first_state_does_not_compile_is_not_ready_and_refuses_everything() {
    let mesh = mesh_without_control_plane().await;
    let (proxy, web) = (mesh.sidecar("orders"), mesh.as_workload("web"));
    let accepted = events(proxy, "snapshot.accepted").len();
    proxy.kill9();
    // It has its certificate, and no saved state.
    std::fs::remove_file(mesh.folder().join("orders/snapshot.json")).unwrap();
    let _fake = broken_state(&mesh).await;
    proxy.launch();
    until("the proxy logs the rejection", async || {
        !events(proxy, "snapshot.rejected").is_empty()
    })
    .await;
    assert_eq!(proxy.probe("/ready").await, 503);
    let page = proxy.page("/ready").await;
    assert!(page.contains("config.unavailable"), "{page}");
    let refused = web.get("orders", "/open/after").await;
    refused.is_problem(StatusCode::SERVICE_UNAVAILABLE, "config.unavailable");
    let logged = mesh.log_of("orders", &refused).await;
    logged
        .has("status", "503")
        .has("reason", "config.unavailable");
    assert_eq!(mesh.requests_seen_by("orders"), 1);
    assert_eq!(events(proxy, "snapshot.accepted").len(), accepted);
}
