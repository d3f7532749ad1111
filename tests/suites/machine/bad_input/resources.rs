//! Resource files that are written to exhaust who reads them: each is refused with its place, and ends no process.

use merlon_tests::{
    Client, Mesh,
    app::App,
    folder, hostile,
    mesh::Standalone,
    ports,
    process::{Output, Plan},
    tools, until,
};
use serde_json::json;

const FORBID: &str = "apiVersion: merlon.io/v1alpha1\nkind: AuthorizationPolicy\n\
                      metadata: { name: closed, namespace: shop }\nspec:\n  policies: |\n    \
                      @id(\"closed\")\n    forbid(principal, action, resource);\n";

const FILES: [(&str, &str); 3] = [
    (
        "mesh.yaml",
        "apiVersion: merlon.io/v1alpha1\nkind: MeshConfig\nmetadata: { name: mesh, namespace: merlon-system }\n\
         spec: { trustDomain: mesh.test }\n",
    ),
    (
        "service.yaml",
        "apiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: { name: orders, namespace: shop }\n\
         spec: { selector: { app: orders }, ports: [{ port: 80 }] }\n",
    ),
    (
        "workload.yaml",
        "apiVersion: merlon.io/v1alpha1\nkind: Workload\n\
         metadata: { name: orders, namespace: shop, labels: { app: orders } }\nspec: { serviceAccount: orders }\n",
    ),
];

async fn run(program: &str, hostile: &str) -> Output {
    let folder = folder::fresh();
    let directory = folder.path().join("resources");
    std::fs::create_dir(&directory).expect("a folder");
    for (name, text) in FILES {
        std::fs::write(directory.join(name), text).expect("a file");
    }
    std::fs::write(directory.join("hostile.yaml"), hostile).expect("a file");
    let plan = Plan::new(program, tools::binary(program), folder.path());
    let plan = match program {
        "merlon" => plan.args(["policy", "check"]).arg(&directory),
        "merlon-control-plane" => plan
            .arg("--config")
            .arg(&directory)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .arg("--admin-socket")
            .arg(folder.path().join("admin.sock"))
            .arg("--state-dir")
            .arg(folder.path().join("state")),
        _ => plan
            .arg("--standalone")
            .arg(&directory)
            .args(["--identity", "shop/orders", "--inbound", "127.0.0.1:0"])
            .args(["--outbound", "127.0.0.1:0", "--admin", "127.0.0.1:0"]),
    };
    plan.run().await
}

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
            let ended = run(program, &text).await;
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
