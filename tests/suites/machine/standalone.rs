//! One proxy with its configuration in files, without a control plane.

use http::StatusCode;
use merlon_tests::{Client, app::App, mesh::Standalone, until};

/// A policy in Cedar: everyone may `GET` what is below `/open`.
pub(super) const OPEN_READS: &str = r#"@id("anyone-reads")
@reason("It is a trial on one machine.")
permit(principal, action == Action::"GET", resource) when { context.path like "/open/*" };
"#;

/// A policy in Cedar with this permit for everyone.
pub(super) fn everyone(permit: &str) -> String {
    format!("@id(\"everyone\")\n@reason(\"It is a trial on one machine.\")\n{permit}\n")
}

#[tokio::test]
async fn a_sidecar_from_files_protects_its_program() {
    let app = App::http().await;
    let proxy = Standalone::sidecar_of("orders", &app, OPEN_READS)
        .start()
        .await;
    let client = Client::new(proxy.proxy().inbound(), "shop");
    client.get("orders", "/open/1").await.is_ok();
    let refused = client.get("orders", "/closed/1").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    // An unauthenticated client sees no policy name.
    assert!(refused.json()["policy"].is_null(), "{refused:?}");
    assert_eq!(app.seen().len(), 1);
    proxy
        .log_of(&refused)
        .await
        .has("status", "403")
        .has("reason", "authz.denied")
        .has("path", "/closed/1");
}

#[tokio::test]
async fn a_changed_file_takes_effect_live_and_a_broken_one_is_rejected_and_the_old_state_stays() {
    let app = App::http().await;
    let proxy = Standalone::sidecar_of("orders", &app, OPEN_READS)
        .start()
        .await;
    let client = Client::new(proxy.proxy().inbound(), "shop");
    let status = async |path: &str| client.get("orders", path).await.status;
    assert_eq!(status("/closed/1").await, StatusCode::FORBIDDEN);

    proxy.set_policy_of("orders", &OPEN_READS.replace("/open/", "/closed/"));
    until("the change is live", async || {
        status("/closed/1").await == StatusCode::OK
    })
    .await;
    assert_eq!(status("/open/1").await, StatusCode::FORBIDDEN);

    let broken = OPEN_READS.replace("Action::\"GET\"", "Action::\"GTE\"");
    proxy.set_policy_of("orders", &broken);
    until("the broken file is logged", async || {
        proxy.proxy().process_log().contains("GTE")
    })
    .await;
    assert_eq!(status("/closed/1").await, StatusCode::OK);
    assert_eq!(status("/open/1").await, StatusCode::FORBIDDEN);

    proxy.set_policy_of("orders", OPEN_READS);
    until("the fixed file is live", async || {
        status("/open/1").await == StatusCode::OK
    })
    .await;
    assert_eq!(status("/closed/1").await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_gateway_from_files_routes_by_host_path_and_header() {
    let (orders, web) = (App::http().await, App::http().await);
    let port = merlon_tests::ports::free();
    let service = |name: &str, app: &App| {
        format!(
            "---\napiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec:\n  selector: {{ app: {name} }}\n  ports: [{{ port: 80, targetPort: {} }}]\n\
             ---\napiVersion: merlon.io/v1alpha1\nkind: Workload\n\
             metadata: {{ name: {name}, namespace: shop, labels: {{ app: {name} }} }}\nspec: {{ serviceAccount: {name}, meshAddress: {} }}\n",
            app.address().port(),
            app.address(),
        )
    };
    let gateway = format!(
        r#"apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: edge, namespace: shop }}
spec:
  gatewayClassName: merlon
  listeners: [{{ name: http, port: {}, protocol: HTTP, hostname: shop.example }}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ name: shop, namespace: shop }}
spec:
  parentRefs: [{{ name: edge }}]
  rules:
    - matches: [{{ path: {{ type: PathPrefix, value: /orders }} }}]
      backendRefs: [{{ name: orders, port: 80 }}]
    - matches: [{{ headers: [{{ name: x-beta, value: "yes" }}] }}]
      backendRefs: [{{ name: orders, port: 80 }}]
    - matches: [{{ path: {{ type: Exact, value: /index }} }}]
      backendRefs: [{{ name: web, port: 80 }}]
---
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: {{ name: edge, namespace: shop }}
spec:
  targetRefs: [{{ kind: Gateway, name: edge }}]
  policies: |
    @id("public")
    @reason("The shop is public.")
    permit(principal, action in Action::"http", resource) unless {{ context.path like "/orders/internal*" }};
"#,
        port.port()
    );
    let files = service("orders", &orders) + &service("web", &web);
    let proxy = Standalone::gateway(
        "edge",
        &[("gateway.yaml", &gateway), ("services.yaml", &files)],
    )
    .start()
    .await;
    let browser = Client::new(port, "shop");

    browser.get("shop.example", "/orders/1").await.is_ok();
    browser.get("shop.example", "/index").await.is_ok();
    browser
        .get("shop.example", "/anything")
        .header("x-beta", "yes")
        .await
        .is_ok();
    assert_eq!((orders.seen().len(), web.seen().len()), (2, 1));

    for (host, path) in [("shop.example", "/nothing"), ("other.example", "/index")] {
        let refused = browser.get(host, path).await;
        refused.is_problem(StatusCode::NOT_FOUND, "http.no_route");
    }
    let refused = browser.get("shop.example", "/orders/internal").await;
    refused.is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert!(
        refused.json()["policy"].is_null(),
        "a client outside sees no policy name: {refused:?}"
    );
    assert_eq!((orders.seen().len(), web.seen().len()), (2, 1));
    assert_eq!(proxy.proxy().probe("/ready").await, 200);
}

/// A gateway on this port, open to all clients, in front of `orders`.
fn gateway_on(port: u16, orders: &App) -> Standalone {
    Standalone::gateway_of("edge", port, "shop.example", ("orders", orders))
}

#[tokio::test]
async fn a_gateway_whose_port_is_in_use_is_not_ready_logs_it_once_and_listens_when_it_is_free() {
    let app = App::http().await;
    let (port, other) = (merlon_tests::ports::free(), merlon_tests::ports::free());
    let taken = std::net::TcpListener::bind(("0.0.0.0", port.port())).unwrap();
    let gateway = gateway_on(port.port(), &app).workers(2);
    let listeners = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: edge, namespace: shop }}\nspec:\n  \
         gatewayClassName: merlon\n  listeners:\n    - {{ name: http, port: {}, protocol: HTTP }}\n    \
         - {{ name: other, port: {}, protocol: HTTP }}\n",
        port.port(),
        other.port()
    );
    gateway.write("gateway.yaml", &listeners);
    let proxy = gateway.proxy();
    proxy.launch();
    until("it runs", async || proxy.probe("/live").await == 200).await;
    let name = format!("listener `http` (port {})", port.port());
    until("the page names the listener", async || {
        let page = proxy.page("/ready").await;
        // Both workers have tried.
        page.contains("listener.failed") && page.contains(&name) && !page.contains("not open yet")
    })
    .await;
    assert_eq!(proxy.probe("/ready").await, 503);
    let page = proxy.page("/ready").await;
    assert!(
        page.contains("stop the other listener"),
        "how to fix it: {page}"
    );
    // The other listener serves meanwhile.
    let elsewhere = Client::new(other, "shop");
    elsewhere.get("shop.example", "/").await.is_ok();
    assert_eq!(app.seen().len(), 1);
    let browser = Client::new(port, "shop");
    // The port's other owner has the connection, and no worker.
    let refused = tokio::net::TcpStream::connect(port).await;
    assert!(refused.is_ok(), "{refused:?}");
    drop((refused, taken));
    proxy.until_ready().await;
    browser.get("shop.example", "/").await.is_ok();
    assert_eq!(app.seen().len(), 2);
    let log = proxy.process_log();
    let logged = log.matches("\"listener.open_failed\"").count();
    assert_eq!(logged, 1, "once, however many workers tried: {log}");
    assert!(log.contains(&name), "{log}");
}

#[tokio::test]
async fn two_gateways_never_share_a_port_and_the_second_takes_over_after_the_first_has_ended() {
    let (one, other) = (App::http().await, App::http().await);
    let port = merlon_tests::ports::free();
    let first = gateway_on(port.port(), &one).start().await;
    let second = gateway_on(port.port(), &other);
    second.proxy().launch();
    until("the second runs", async || {
        second.proxy().probe("/live").await == 200
    })
    .await;
    until("the second reports the listener", async || {
        let page = second.proxy().page("/ready").await;
        page.contains("listener `http`")
    })
    .await;
    let browser = Client::new(port, "shop");
    for number in 0..20 {
        browser
            .get("shop.example", &format!("/{number}"))
            .await
            .is_ok();
    }
    assert_eq!((one.seen().len(), other.seen().len()), (20, 0));
    first.proxy().kill9();
    second.proxy().until_ready().await;
    browser.get("shop.example", "/then").await.is_ok();
    assert_eq!((one.seen().len(), other.seen().len()), (20, 1));
}
