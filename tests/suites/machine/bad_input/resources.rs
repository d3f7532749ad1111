//! Resource files that are written to exhaust who reads them: each is refused with its place, and ends no process.

use merlon_tests::{Client, Mesh, app::App, hostile, mesh::Standalone, ports, until};
use serde_json::json;

use crate::configuration::{MESH, WORKLOAD, run};

const FORBID: &str = "apiVersion: merlon.io/v1alpha1\nkind: AuthorizationPolicy\n\
                      metadata: { name: closed, namespace: shop }\nspec:\n  policies: |\n    \
                      @id(\"closed\")\n    forbid(principal, action, resource);\n";

const SERVICE: &str = "apiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: { name: orders, namespace: shop }\n\
                       spec: { selector: { app: orders }, ports: [{ port: 80 }] }\n";

#[tokio::test]
async fn each_program_reports_a_hostile_file_at_its_start_and_exits_with_2() {
    for hostile::Document {
        name,
        text,
        problem,
        ..
    } in hostile::documents()
    {
        for program in ["merlon", "merlon-control-plane", "merlon-proxy"] {
            let files = [
                ("mesh.yaml", MESH),
                ("service.yaml", SERVICE),
                ("workload.yaml", WORKLOAD),
                ("hostile.yaml", &text),
            ];
            let ended = run(program, &files).await;
            let said = format!("{}{}", ended.out, ended.err);
            let start: String = said.chars().take(2_000).collect();
            assert_eq!(ended.code(), 2, "{program}, {name}: {start}");
            assert!(said.contains("hostile.yaml"), "{program}, {name}: {start}");
            assert!(
                said.contains(problem),
                "{program}, {name}: no `{problem}` in {start}"
            );
        }
    }
}

#[tokio::test]
async fn a_running_mesh_refuses_hostile_files_and_follows_the_next_good_one() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .start()
        .await;
    let web = mesh.as_workload("web");
    for hostile::Document {
        name,
        text,
        problem,
        ..
    } in hostile::documents()
    {
        mesh.write("hostile.yaml", &text);
        until(format!("{name} is refused"), async || {
            let status = mesh.control_plane().get("/v1/status").await;
            let problems = status["source"]["problems"].to_string();
            problems.contains("hostile.yaml") && problems.contains(problem)
        })
        .await;
        web.get("orders", "/").await.is_ok();
        mesh.remove("hostile.yaml");
        until(format!("{name} is gone"), async || {
            let status = mesh.control_plane().get("/v1/status").await;
            status["source"]["problems"] == json!([])
        })
        .await;
    }
    let version = mesh.version_of("orders").await;
    mesh.write("forbid.yaml", FORBID);
    mesh.until_acknowledged_after("orders", &version).await;
    let refused = web.get("orders", "/last");
    mesh.refuses("orders", [("a forbid", refused, 403, "authz.denied")])
        .await;
}

#[tokio::test]
async fn a_standalone_gateway_refuses_hostile_files_and_follows_the_next_good_one() {
    let app = App::http().await;
    let port = ports::free().port();
    let gateway = Standalone::gateway_of("edge", port, "shop.example", ("orders", &app))
        .start()
        .await;
    let client = Client::new(([127, 0, 0, 1], port).into(), "");
    let refusals = || {
        gateway
            .proxy()
            .process_log()
            .matches("config.refused")
            .count()
    };
    for hostile::Document {
        name,
        text,
        problem,
        ..
    } in hostile::documents()
    {
        let before = refusals();
        gateway.write("hostile.yaml", &text);
        until(format!("{name} is refused"), async || refusals() > before).await;
        assert!(gateway.proxy().process_log().contains(problem), "{name}");
        client
            .get("shop.example", "/")
            .send()
            .await
            .expect("a response")
            .is_ok();
        std::fs::remove_file(gateway.resources().join("hostile.yaml")).expect("the file");
    }
    gateway.set_policy_of(
        "orders",
        "@id(\"closed\")\nforbid(principal, action, resource);\n",
    );
    until("the next file is in force", async || {
        let reply = client.get("shop.example", "/").send().await;
        reply.is_ok_and(|reply| reply.status == 403)
    })
    .await;
}
