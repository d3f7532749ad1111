//! A proxy with two workers is one proxy: its workers share ports, limits, metrics and changes of policy.

use futures_util::future::join_all;
use merlon_tests::{
    Client, OpenRequest, app::App, client::connect, folder, limit, mesh::Standalone, until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

use super::standalone::everyone;

/// The kernel spreads connections over the listeners by a hash of both addresses: all of them at one worker would be
/// one case in 2^63.
const CONNECTIONS: usize = 64;

const OPEN: &str =
    r#"permit(principal, action in Action::"http", resource) when { context.path like "/*" };"#;

async fn proxy(app: &App, more: &[(&str, &str)]) -> Standalone {
    proxy_with(app, more, &[]).await
}

async fn proxy_with(app: &App, more: &[(&str, &str)], args: &[&str]) -> Standalone {
    let proxy = Standalone::sidecar_of("orders", app, &everyone(OPEN));
    for (name, text) in more {
        proxy.write(name, text);
    }
    proxy.workers(2).args(args).start().await
}

async fn open(client: &Client, target: impl Fn(usize) -> String) -> Vec<OpenRequest> {
    let target = &target;
    join_all((0..CONNECTIONS).map(|number| async move {
        let target = target(number);
        OpenRequest::start(client, "orders", &target).await
    }))
    .await
}

#[tokio::test]
async fn workers_share_a_port_and_the_metrics_count_the_requests_of_all() {
    let app = App::http().await;
    let proxy = proxy(&app, &[]).await;
    let inbound = proxy.proxy().inbound();
    let requests = open(&Client::new(inbound, "shop"), |_| "/stream".to_owned()).await;

    let served = proxy.proxy().connections_of_workers(inbound);
    assert_eq!(served.len(), 2, "each worker has some: {served:?}");
    assert_eq!(served.iter().sum::<usize>(), CONNECTIONS, "{served:?}");
    let metric = async |name: &str| proxy.proxy().metric(name, "direction=\"inbound\"").await;
    let all = CONNECTIONS as f64;
    assert_eq!(metric("merlon_active_requests").await, all);
    assert_eq!(metric("merlon_open_connections").await, all);
    for request in requests {
        request.finish().await;
    }
    until("the requests of both are counted", async || {
        metric("merlon_requests_total").await == all
            && metric("merlon_active_requests").await == 0.0
    })
    .await;
    assert_eq!(app.seen().len(), CONNECTIONS);
}

#[tokio::test]
async fn a_rate_limit_holds_across_workers() {
    const LIMIT: &str = "apiVersion: merlon.io/v1alpha1\nkind: RateLimit\n\
        metadata: { name: few, namespace: shop }\nspec:\n  targetRefs: [{ kind: Service, name: orders }]\n  \
        limits: [{ name: few, per: address, rate: { requests: 10, per: 1h } }]\n";
    let app = App::http().await;
    let proxy = proxy(&app, &[("limit.yaml", LIMIT)]).await;
    let inbound = proxy.proxy().inbound();
    let connections = join_all((0..CONNECTIONS).map(|_| connect(inbound))).await;
    until("each worker has some of the connections", async || {
        let served = proxy.proxy().connections_of_workers(inbound);
        served.len() == 2 && served.iter().sum::<usize>() == CONNECTIONS
    })
    .await;

    let statuses = join_all(connections.into_iter().map(|mut connection| async move {
        let request = b"GET /x HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n";
        connection.write_all(request).await.unwrap();
        let mut response = String::new();
        connection.read_to_string(&mut response).await.unwrap();
        response.get(9..12).unwrap_or_default().to_owned()
    }))
    .await;
    let with = |status: &str| statuses.iter().filter(|found| *found == status).count();
    assert_eq!((with("200"), with("429")), (10, CONNECTIONS - 10));
    assert_eq!(app.seen().len(), 10);
    until("the refusals of both are counted", async || {
        let refusals = proxy
            .proxy()
            .metric("merlon_refusals_total", "reason=\"rate.limited\"")
            .await;
        refusals == (CONNECTIONS - 10) as f64
    })
    .await;
}

#[tokio::test]
async fn the_limit_on_requests_in_flight_is_one_of_each_worker() {
    let app = App::http().await;
    let folder = folder::fresh();
    let limits = folder.path().join("limits.json");
    std::fs::write(&limits, r#"{ "inFlight": 3 }"#).unwrap();
    let limits = limits.display().to_string();
    let proxy = proxy_with(&app, &[], &["--test-limits", &limits]).await;
    let inbound = proxy.proxy().inbound();
    let refused = CONNECTIONS - 6;

    // The program responds when it has the whole body, and a request is in flight until then.
    let (statuses, mut read) = mpsc::channel(CONNECTIONS);
    let mut bodies = Vec::new();
    for connection in join_all((0..CONNECTIONS).map(|_| connect(inbound))).await {
        let (mut response, mut body) = tokio::io::split(connection);
        let head = b"POST /x HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 2\r\n\r\n1";
        body.write_all(head).await.unwrap();
        bodies.push(body);
        let statuses = statuses.clone();
        tokio::spawn(async move {
            let mut line = [0; 12];
            response.read_exact(&mut line).await.unwrap();
            statuses.send(line).await.unwrap();
        });
    }
    for _ in 0..refused {
        let line = limit("a response", read.recv()).await.unwrap();
        assert_eq!(&line, b"HTTP/1.1 503");
    }
    until("the program has the others", async || app.seen().len() == 6).await;
    for body in &mut bodies {
        // The proxy may have closed the connection of a request that it refused.
        let _ = body.write_all(b"2").await;
    }
    for _ in 0..6 {
        let line = limit("a response", read.recv()).await.unwrap();
        assert_eq!(&line, b"HTTP/1.1 200");
    }
    assert_eq!(app.seen().len(), 6);
    until("each refusal has its line in the log", async || {
        let log = proxy.proxy().log();
        let lines = log.iter().filter(|line| line.text("reason") == "overload");
        lines.count() == refused
    })
    .await;
}

#[tokio::test]
async fn a_change_of_policy_ends_the_open_requests_of_every_worker_that_it_no_longer_permits() {
    let app = App::http().await;
    let proxy = proxy(&app, &[]).await;
    let inbound = proxy.proxy().inbound();
    let client = Client::new(inbound, "shop");
    let mut kept = open(&client, |number| format!("/stream/kept/{number}")).await;
    let mut revoked = open(&client, |number| format!("/stream/revoked/{number}")).await;
    let served = proxy.proxy().connections_of_workers(inbound);
    assert_eq!(served.len(), 2, "each worker has some: {served:?}");

    let narrower = OPEN.replace("/*", "/stream/kept/*");
    proxy.set_policy_of("orders", &everyone(&narrower));
    for request in &mut revoked {
        request.until_cut().await;
    }
    let ended = async || {
        let log = proxy.proxy().log();
        let lines = log.iter().filter(|line| {
            line.text("path").starts_with("/stream/revoked/")
                && line.text("reason") == "authz.denied"
                && line.text("aborted") == "true"
        });
        lines.count()
    };
    until("each has its line in the log", async || {
        ended().await == CONNECTIONS
    })
    .await;
    for request in &mut kept {
        assert!(request.passes("more").await, "it is still permitted");
    }
}
