//! Meshes of several namespaces, replicas and gateways.

use http::StatusCode;
use merlon_tests::{Mesh, until};

#[tokio::test]
async fn services_of_one_name_in_two_namespaces_are_two_services_with_their_own_policies() {
    let mesh = Mesh::new()
        .service("ledger")
        .allow("web", "GET", "/own/**")
        .namespace("bank")
        .service("ledger")
        .allow("shop/web", "GET", "/bank/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("ledger", "/own/1").await.is_ok();
    web.get("bank/ledger", "/bank/1").await.is_ok();
    for (service, target) in [("ledger", "/bank/1"), ("bank/ledger", "/own/1")] {
        let refused = web.get(service, target).await;
        refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
        mesh.log_of(service, &refused)
            .await
            .has("reason", "authz.denied")
            .has("path", target);
    }
    for (service, target) in [("ledger", "/own/1"), ("bank/ledger", "/bank/1")] {
        let seen = mesh.app(service).seen();
        let targets: Vec<_> = seen.iter().map(|request| &request.target).collect();
        assert_eq!(targets, [target], "{service}");
    }
}

#[tokio::test]
async fn a_gateway_routes_by_host_and_prefix_and_its_policies_come_before_those_of_the_service() {
    let mesh = Mesh::new()
        .service("orders")
        .service("web")
        .gateway("edge")
        .route("shop.example", "/orders", "orders")
        .route("shop.example", "/", "web")
        .policy(
            "@id(\"public\")\npermit(principal, action in Action::\"http\", resource)\n\
             unless { context.path like \"/orders/internal*\" };\n",
        )
        .start()
        .await;
    let browser = mesh.at_gateway("edge");
    browser.get("shop.example", "/orders/1").await.is_ok();
    browser.get("shop.example", "/index").await.is_ok();

    let unknown = browser.get("other.example", "/index").await;
    unknown.is_problem(StatusCode::NOT_FOUND, "http.no_route");
    mesh.log_of("edge", &unknown)
        .await
        .has("reason", "http.no_route");
    let refused = browser.get("shop.example", "/orders/internal").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    mesh.log_of("edge", &refused)
        .await
        .has("reason", "authz.denied");

    assert_eq!(mesh.requests_seen_by("orders"), 1);
    assert_eq!(mesh.requests_seen_by("web"), 1);
}

#[tokio::test]
async fn a_replica_that_fails_is_skipped_and_used_again_when_it_is_back() {
    let mesh = Mesh::new()
        .service("orders")
        .replicas(2)
        .wire()
        .allow("web", "GET", "/**")
        .limits("failureCooldown: 100ms")
        .start()
        .await;
    let (web, wire) = (mesh.as_workload("web"), mesh.wire_to("orders"));
    let served_by_first = |path: &str| {
        let log = mesh.sidecar("orders").log();
        log.iter().any(|line| line.text("path") == path)
    };
    // Before the first connection: a request on an open connection that breaks is answered with 502.
    wire.cut();
    // Which replica the proxy tries first is random.
    until("the proxy tries the first replica", async || {
        web.get("orders", "/during").await.is_ok();
        wire.connections() > 0
    })
    .await;
    mesh.log_with("orders-2", &[("path", "/during")])
        .await
        .has("status", "200");
    assert!(!served_by_first("/during"));

    wire.heal();
    until("the first replica serves", async || {
        web.get("orders", "/after").await.is_ok();
        served_by_first("/after")
    })
    .await;
}

#[tokio::test]
#[should_panic(expected = "targetPrt")]
async fn a_typing_error_in_a_resource_of_the_builder_fails_before_any_process_starts() {
    Mesh::new()
        .service("orders")
        .file(
            "typo.yaml",
            "apiVersion: merlon.io/v1alpha1\nkind: Service\n\
            metadata: { name: typo, namespace: shop }\n\
            spec: { selector: { app: orders }, ports: [{ port: 80, targetPrt: 81 }] }\n",
        )
        .start()
        .await;
}
