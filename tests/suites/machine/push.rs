//! A change reaches the proxies that it concerns, and no others.

use std::collections::BTreeSet;

use futures_util::StreamExt as _;
use http::StatusCode;
use merlon_tests::{Mesh, mesh::identity, until};
use serde_json::Value;

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
    let sent = async || sent_resources(&mesh).await;
    let state = versions(&mesh.dump_of("web").await);
    mesh.control_plane().kill9();
    mesh.control_plane().restart().await;
    until("all proxies are back", async || {
        let status = mesh.status().await;
        status
            .iter()
            .filter(|proxy| proxy["state"] == "acknowledged")
            .count()
            == 4
    })
    .await;
    assert_eq!(sent().await, 0.0);
    assert_eq!(versions(&mesh.dump_of("web").await), state);
    web.get("orders.shop:81", "/").await.is_ok();
}

/// Resources that the control plane has sent since its start.
async fn sent_resources(mesh: &Mesh) -> f64 {
    let page = mesh.control_plane().page("/metrics").await;
    page.lines()
        .filter(|line| line.starts_with("merlon_resources_sent_total"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

#[tokio::test]
async fn a_policy_edited_on_disk_takes_effect_without_a_restart() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/open/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/open/1").await.is_ok();
    web.get("orders", "/closed/1")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");

    mesh.edit("orders-policy.yaml", "/open/", "/closed/");
    until("the change is live", async || {
        web.get("orders", "/closed/1").await.status == StatusCode::OK
    })
    .await;
    web.get("orders", "/open/1")
        .await
        .is_problem(StatusCode::FORBIDDEN, "authz.denied");
}

#[tokio::test]
async fn a_broken_edit_is_rejected_with_its_place_and_the_old_state_stays() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let version = mesh.version_of("orders").await;
    mesh.edit("orders-policy.yaml", "Action::\"GET\"", "Action::\"GTE\"");
    until("the control plane logs the error", async || {
        let log = mesh.control_plane().log();
        log.contains("orders-policy.yaml") && log.contains("GTE")
    })
    .await;
    web.get("orders", "/").await.is_ok();
    assert_eq!(mesh.version_of("orders").await, version);
    // The status reports the error too.
    let status = mesh.control_plane().get("/v1/status").await;
    assert!(
        status["source"].to_string().contains("orders-policy.yaml"),
        "{status}"
    );

    // Once the folder is valid again, its state takes effect.
    mesh.edit("orders-policy.yaml", "Action::\"GTE\"", "Action::\"POST\"");
    until("the fixed file is live", async || {
        web.post("orders", "/", "1").await.status == StatusCode::OK
    })
    .await;
    web.get("orders", "/")
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
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    for workload in ["orders", "web"] {
        mesh.version_of(workload).await;
    }
    let ended = mesh.merlon(&["proxy", "status"]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    for text in [&identity("orders"), &identity("web"), "acknowledged"] {
        assert!(ended.out.contains(text), "no {text} in\n{}", ended.out);
    }
    let ended = mesh.merlon(&["proxy", "status", "--output", "json"]).await;
    let list: Value = serde_json::from_str(&ended.out).expect("JSON");
    for proxy in list.as_array().expect("a list") {
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
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    // A proxy of this version rejects nothing that its control plane could compile; one of another version may.
    let _refuser = mesh
        .test_peer("web")
        .await
        .reject_snapshot("older-build", REASON)
        .await;
    until("the refusal is reported", async || {
        let list = mesh.status().await;
        list.iter().any(|proxy| proxy["state"] == "refused")
    })
    .await;
    let ended = mesh.merlon(&["proxy", "status"]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    let line = ended.out.lines().find(|line| line.contains("older-build"));
    let line = line.unwrap_or_else(|| panic!("no line of that proxy in\n{}", ended.out));
    for text in [&identity("web"), "refused", REASON] {
        assert!(line.contains(text), "no `{text}` in\n{line}");
    }
}

#[tokio::test]
async fn a_cold_proxy_without_a_control_plane_is_not_ready_and_refuses_everything() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .prepare()
        .await;
    std::fs::write(mesh.folder().join("web.token"), "nothing").unwrap();
    mesh.control_plane().start().await;
    let token = mesh.control_plane().join_token("web").await;
    std::fs::write(mesh.folder().join("web.token"), token).unwrap();
    mesh.control_plane().kill9();
    mesh.sidecar("web").launch();
    until("the proxy is live", async || {
        mesh.sidecar("web").probe("/live").await == 200
    })
    .await;
    assert_eq!(mesh.sidecar("web").probe("/ready").await, 503);
    let reply = mesh.as_workload("web").get("orders", "/").send().await;
    if let Ok(reply) = reply {
        reply.is_problem(StatusCode::SERVICE_UNAVAILABLE, "config.unavailable");
    }
    assert_eq!(mesh.requests_seen_by("orders"), 0);

    // The proxy needs no restart when the control plane starts.
    mesh.control_plane().restart().await;
    mesh.sidecar("web").until_ready().await;
}

#[tokio::test]
async fn open_web_sockets_and_tcp_sessions_end_when_their_permit_is_removed() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .tcp_service("echo")
        .allow_tcp("web")
        .start()
        .await;
    let mut socket = mesh
        .as_workload("web")
        .web_socket("orders", "/socket")
        .await
        .unwrap();
    let mut session = merlon_tests::client::connect(mesh.outbound("web", "echo")).await;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    session.write_all(b"x").await.unwrap();
    session.read_exact(&mut [0]).await.unwrap();

    mesh.edit("orders-policy.yaml", "shop/web", "shop/orders");
    mesh.edit("echo-policy.yaml", "shop/web", "shop/echo");
    // The proxy ends both.
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            break;
        }
    }
    let _ = session.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn a_new_service_is_found_without_a_restart_and_a_removed_one_is_gone() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    let service = std::fs::read_to_string(mesh.resources().join("orders-service.yaml")).unwrap();
    mesh.write(
        "second.yaml",
        &service.replace("name: orders,", "name: second,"),
    );
    let policy = std::fs::read_to_string(mesh.resources().join("orders-policy.yaml")).unwrap();
    mesh.write("second-policy.yaml", &policy.replace("orders", "second"));
    until("the new service answers", async || {
        web.get("second", "/").await.status == StatusCode::OK
    })
    .await;

    mesh.remove("second-policy.yaml");
    mesh.remove("second.yaml");
    until("the service is gone", async || {
        web.get("second", "/").await.status != StatusCode::OK
    })
    .await;
    web.get("orders", "/").await.is_ok();
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
