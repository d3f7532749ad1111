//! A change reaches the proxies that it concerns, and no others.

mod rejected;

use std::collections::BTreeSet;

use futures_util::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use merlon_tests::{
    Mesh, OpenRequest,
    client::connect,
    mesh::{Guard, Shared, identity},
    until,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

static CHANGES: Shared = Shared::new();

/// A mesh for changes that the control plane accepts. Each test changes resources of its own.
async fn mesh_of_changes() -> Guard {
    CHANGES
        .get(async || {
            Mesh::new()
                .service("edited")
                .allow("web", "GET", "/open/**")
                .service("sockets")
                .allow("web", "GET", "/socket")
                .allow("web", "POST", "/stream/**")
                .tcp_service("echo")
                .allow_tcp("web")
                .tcp_service("untouched")
                .allow_tcp("web")
                .service("template")
                .allow("web", "GET", "/**")
                .start()
                .await
        })
        .await
}

static STATUS: Shared = Shared::new();

/// A mesh in which one test breaks the policy of `broken` for a time, so that no other resource can change.
async fn mesh_of_statuses() -> Guard {
    STATUS
        .get(async || {
            Mesh::new()
                .service("orders")
                .allow("web", "GET", "/**")
                .service("broken")
                .allow("batch", "GET", "/**")
                .start()
                .await
        })
        .await
}

/// Kind and name of each resource in a proxy's dump.
fn resources(dump: &Value, kind: &str) -> BTreeSet<String> {
    let list = dump["snapshot"]["resources"].as_array().expect("resources");
    list.iter()
        .filter(|resource| resource["kind"] == kind)
        .filter_map(|resource| resource["name"].as_str().map(str::to_owned))
        .collect()
}

fn versions(dump: &Value) -> BTreeSet<(String, String, String)> {
    let list = dump["snapshot"]["resources"].as_array().expect("resources");
    let text =
        |resource: &Value, field: &str| resource[field].as_str().unwrap_or_default().to_owned();
    list.iter()
        .map(|resource| {
            (
                text(resource, "kind"),
                text(resource, "name"),
                text(resource, "version"),
            )
        })
        .collect()
}

/// The line of a table that contains this text.
#[track_caller]
fn line_with<'t>(table: &'t str, text: &str) -> &'t str {
    let mut lines = table.lines().filter(|line| line.contains(text));
    let line = lines.next();
    line.unwrap_or_else(|| panic!("no `{text}` in\n{table}"))
}

fn thousand_services() -> String {
    (0..1_000)
        .map(|number| {
            format!(
                "---\napiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: {{ name: other-{number}, namespace: shop }}\n\
                 spec:\n  selector: {{ app: other-{number} }}\n  ports: [{{ port: 80 }}]\n"
            )
        })
        .collect()
}

#[tokio::test]
async fn a_proxy_that_uses_three_of_a_thousand_services_holds_three_and_receives_no_other() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .service("payments")
        .allow("web", "GET", "/**")
        .service("stock")
        .allow("web", "GET", "/**")
        .file("thousand.yaml", &thousand_services())
        .start()
        .await;
    let web = mesh.as_workload("web");
    for service in ["orders", "payments", "stock"] {
        web.get(service, "/").await.is_ok();
    }
    let used: BTreeSet<_> = ["shop/orders", "shop/payments", "shop/stock"]
        .map(str::to_owned)
        .into();
    until("the three are in the dump", async || {
        resources(&mesh.dump_of("web").await, "destination") == used
    })
    .await;
    assert!(
        resources(&mesh.dump_of("web").await, "service").is_empty(),
        "it serves nothing"
    );

    // A change to a service that it does not use sends it nothing.
    let received = async || {
        mesh.sidecar("web")
            .metric("merlon_snapshot_updates_total", "")
            .await
    };
    let (state, updates) = (versions(&mesh.dump_of("web").await), received().await);
    mesh.edit("thousand.yaml", "other-7 }", "other-8 }");
    // A later change that concerns the proxy shows when the first one has been distributed.
    mesh.edit("orders-service.yaml", "port: 80", "port: 81");
    until("the other change has arrived", async || {
        mesh.dump_of("web")
            .await
            .to_string()
            .contains("\"port\":81")
    })
    .await;
    let after = versions(&mesh.dump_of("web").await);
    let changed: BTreeSet<_> = after
        .difference(&state)
        .map(|(kind, name, _)| (kind.as_str(), name.as_str()))
        .collect();
    assert!(
        changed
            .iter()
            .all(|(kind, name)| *kind == "manifest" || *name == "shop/orders"),
        "{changed:?}"
    );
    assert_eq!(received().await, updates + 1.0);

    // A reconnect sends no resource, because the proxy's state is current.
    let sent = async || {
        let control_plane = mesh.control_plane();
        control_plane
            .metric("merlon_push_resources_sent_total", "")
            .await
    };
    assert!(sent().await > 0.0, "the metric counts what is sent");
    let acknowledged = async || {
        let status = mesh.status().await;
        let current = status
            .iter()
            .filter(|proxy| proxy["state"] == "acknowledged");
        current.count() == 4
    };
    until("all proxies have the change", acknowledged).await;
    let state = versions(&mesh.dump_of("web").await);
    mesh.control_plane().kill9();
    mesh.control_plane().restart().await;
    until("all proxies are back", acknowledged).await;
    assert_eq!(sent().await, 0.0);
    assert_eq!(versions(&mesh.dump_of("web").await), state);
    web.get("orders.shop:81", "/").await.is_ok();
}

#[tokio::test]
async fn a_policy_edited_on_disk_takes_effect_without_a_restart() {
    let mesh = mesh_of_changes().await;
    let web = mesh.as_workload("web");
    web.get("edited", "/open/1").await.is_ok();
    web.get("edited", "/closed/1")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert!(mesh.seen_at("edited", "/closed/1").is_empty());

    mesh.edit("edited-policy.yaml", "/open/", "/closed/");
    until("the change is live", async || {
        web.get("edited", "/closed/1").await.status == StatusCode::OK
    })
    .await;
    web.get("edited", "/open/1")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
    assert_eq!(mesh.seen_at("edited", "/open/1").len(), 1);
}

#[tokio::test]
async fn a_broken_edit_is_rejected_with_its_place_and_the_old_state_stays() {
    let mesh = mesh_of_statuses().await;
    let batch = mesh.as_workload("batch");
    let version = mesh.version_of("broken").await;
    mesh.edit("broken-policy.yaml", "Action::\"GET\"", "Action::\"GTE\"");
    until("the control plane logs the error", async || {
        let log = mesh.control_plane().log();
        log.contains("broken-policy.yaml") && log.contains("GTE")
    })
    .await;
    batch.get("broken", "/").await.is_ok();
    assert_eq!(mesh.version_of("broken").await, version);
    // The status reports the error too.
    let status = mesh.control_plane().get("/v1/status").await;
    assert!(
        status["source"].to_string().contains("broken-policy.yaml"),
        "{status}"
    );

    // Once the folder is valid again, its state takes effect.
    mesh.edit("broken-policy.yaml", "Action::\"GTE\"", "Action::\"POST\"");
    until("the fixed file is live", async || {
        batch.post("broken", "/", "1").await.status == StatusCode::OK
    })
    .await;
    batch
        .get("broken", "/")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
}

#[tokio::test]
async fn a_control_plane_that_starts_with_a_broken_folder_exits_with_2_and_changes_nothing() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    mesh.as_workload("web").get("orders", "/").await.is_ok();
    mesh.control_plane().kill9();
    mesh.edit("orders-policy.yaml", "Action::\"GET\"", "Action::\"GTE\"");
    mesh.control_plane().launch();
    assert_eq!(mesh.control_plane().until_ended().await, 2);
    mesh.as_workload("web").get("orders", "/").await.is_ok();
}

#[tokio::test]
async fn the_status_lists_every_proxy_with_identity_version_certificate_and_age() {
    let mesh = mesh_of_statuses().await;
    let workloads = ["orders", "web"];
    for workload in workloads {
        until(format!("`{workload}` has its state"), async || {
            mesh.status_of(workload).await["state"] == "acknowledged"
        })
        .await;
    }
    let ended = mesh.merlon(&["proxy", "status"]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    for workload in workloads {
        let line = line_with(&ended.out, &identity(workload));
        assert!(line.contains("acknowledged"), "{line}");
    }
    let ended = mesh.merlon(&["proxy", "status", "--output", "json"]).await;
    let list: Value = serde_json::from_str(&ended.out).expect("JSON");
    let list = list.as_array().expect("a list");
    for workload in workloads {
        let mut mine = list
            .iter()
            .filter(|proxy| proxy["identity"] == identity(workload).as_str());
        let proxy = mine.next().unwrap_or_else(|| panic!("no `{workload}`"));
        assert!(mine.next().is_none(), "one line for each proxy");
        assert_eq!(proxy["state"], "acknowledged", "{proxy}");
        assert!(
            proxy["snapshotVersion"]
                .as_str()
                .is_some_and(|version| version.len() == 64),
            "{proxy}"
        );
        assert!(
            !proxy["certificateNotAfter"].is_null() && !proxy["snapshotAgeSeconds"].is_null(),
            "{proxy}"
        );
    }
}

#[tokio::test]
async fn proxy_status_shows_a_refusal_with_its_reason() {
    const REASON: &str = "policy `shop/orders#read` does not compile here";
    const NODE: &str = "older-build";
    let mesh = mesh_of_statuses().await;
    // A proxy of this version rejects nothing that its control plane could compile; one of another version may.
    let _refuser = mesh
        .test_peer("batch")
        .await
        .reject_snapshot(NODE, REASON)
        .await;
    until("the refusal of this proxy is reported", async || {
        let list = mesh.status().await;
        let mut mine = list.iter().filter(|proxy| proxy["id"] == NODE);
        mine.any(|proxy| proxy["state"] == "refused")
    })
    .await;
    let ended = mesh.merlon(&["proxy", "status"]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    let line = line_with(&ended.out, NODE);
    for text in [&identity("batch"), "refused", REASON] {
        assert!(line.contains(text), "no `{text}` in\n{line}");
    }
    // The proxy beside it, of the same identity, has refused nothing.
    let list = mesh.status().await;
    let mut others = list
        .iter()
        .filter(|proxy| proxy["identity"] == identity("batch").as_str() && proxy["id"] != NODE);
    let own = others.next().expect("the sidecar of `batch`")["id"].as_str();
    let line = line_with(&ended.out, own.unwrap_or_default());
    assert!(!line.contains("refused"), "{line}");
}

#[tokio::test]
async fn a_cold_proxy_without_a_control_plane_is_not_ready_and_refuses_everything() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .prepare()
        .await;
    mesh.control_plane().start().await;
    for workload in ["orders", "web"] {
        let token = mesh.control_plane().join_token(workload).await;
        std::fs::write(mesh.folder().join(format!("{workload}.token")), token).unwrap();
    }
    // The program and its proxy run, so that only the caller's proxy can be what refuses.
    mesh.sidecar("orders").start().await;
    mesh.control_plane().kill9();
    let cold = mesh.sidecar("web");
    cold.launch();
    until("the proxy is live", async || {
        cold.probe("/live").await == 200
    })
    .await;
    assert_eq!(cold.probe("/ready").await, 503);
    let why = cold.page("/ready").await;
    assert!(why.contains("config.unavailable"), "{why}");
    let web = mesh.as_workload("web");
    let refused = web.get("orders", "/").await;
    refused.is_problem(StatusCode::SERVICE_UNAVAILABLE, "config.unavailable");
    assert_eq!(mesh.requests_seen_by("orders"), 0);
    mesh.log_of("web", &refused)
        .await
        .has("status", "503")
        .has("reason", "config.unavailable");

    // The proxy needs no restart when the control plane starts.
    mesh.control_plane().restart().await;
    cold.until_ready().await;
    web.get("orders", "/").await.is_ok();
    assert_eq!(mesh.requests_seen_by("orders"), 1);
}

#[tokio::test]
async fn open_web_sockets_and_tcp_sessions_end_when_their_permit_is_removed() {
    let mesh = mesh_of_changes().await;
    let web = mesh.as_workload("web");
    let mut socket = web.web_socket("sockets", "/socket").await.unwrap();
    socket.send(Message::text("open")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("open"));
    let mut session = connect(mesh.outbound("web", "echo")).await;
    let mut untouched = connect(mesh.outbound("web", "untouched")).await;
    for session in [&mut session, &mut untouched] {
        session.write_all(b"x").await.unwrap();
        assert_eq!(session.read_u8().await.unwrap(), b'x');
    }
    let mut stream = OpenRequest::start(&web, "sockets", "/stream/kept").await;

    mesh.edit("sockets-policy.yaml", "\"/socket\"", "\"/elsewhere\"");
    mesh.edit("echo-policy.yaml", "shop/web", "shop/echo");
    // Neither gets a close frame or a last byte: the proxy cuts them.
    let ended = socket.next().await;
    assert!(!matches!(ended, Some(Ok(_))), "{ended:?}");
    let mut rest = Vec::new();
    // With or without a reset.
    let _ = session.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "{rest:?}");
    for (workload, field, value) in [("sockets", "path", "/socket"), ("echo", "protocol", "tcp")] {
        mesh.log_where(workload, field, value)
            .await
            .has("reason", "authz.denied")
            .has("aborted", "true");
    }

    // What is still permitted stays open, also at the same proxy and after the same change.
    assert!(stream.passes("more").await);
    untouched.write_all(b"y").await.unwrap();
    assert_eq!(untouched.read_u8().await.unwrap(), b'y');
    // And a new one is refused.
    let refused = web.web_socket("sockets", "/socket").await.unwrap_err();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_new_service_is_found_without_a_restart_and_a_removed_one_is_gone() {
    let mesh = mesh_of_changes().await;
    let web = mesh.as_workload("web");
    let read = |file: &str| std::fs::read_to_string(mesh.resources().join(file)).unwrap();
    let service = read("template-service.yaml");
    mesh.write(
        "second.yaml",
        &service.replace("name: template\n", "name: second\n"),
    );
    let policy = read("template-policy.yaml");
    mesh.write("second-policy.yaml", &policy.replace("template", "second"));
    until("the new service answers", async || {
        web.get("second", "/new").await.status == StatusCode::OK
    })
    .await;

    mesh.remove("second-policy.yaml");
    mesh.remove("second.yaml");
    // Only a service can have a name that ends in `.svc`.
    until("the service is gone", async || {
        web.get("second.shop.svc", "/going").await.status == StatusCode::NOT_FOUND
    })
    .await;
    let refused = web.get("second.shop.svc", "/gone").await;
    refused.is_problem(StatusCode::NOT_FOUND, "http.no_route");
    assert!(mesh.seen_at("template", "/gone").is_empty());
    mesh.log_of("web", &refused)
        .await
        .has("reason", "http.no_route");
    web.get("template", "/").await.is_ok();
}

#[tokio::test]
async fn a_service_never_called_before_is_refused_with_the_cause_while_the_control_plane_is_down() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .service("payments")
        .allow("web", "GET", "/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/").await.is_ok();
    mesh.control_plane().kill9();
    until("the proxy notices", async || {
        let connected = "merlon_control_plane_connected";
        mesh.sidecar("web").metric(connected, "").await == 0.0
    })
    .await;
    web.get("orders", "/").await.is_ok();
    let reply = web.get("payments", "/").await;
    reply.is_problem(StatusCode::SERVICE_UNAVAILABLE, "config.unavailable");
    let detail = reply.json()["detail"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        detail.contains("does not know this service yet"),
        "{detail}"
    );
    assert_eq!(mesh.requests_seen_by("payments"), 0);

    mesh.control_plane().restart().await;
    until("the service is known", async || {
        web.get("payments", "/").await.status == StatusCode::OK
    })
    .await;
}
