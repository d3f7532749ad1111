//! Errors in a configuration end the program at startup and are reported with their place.

use std::net::TcpListener;

use merlon_tests::{
    folder,
    process::{Output, Plan},
    tools,
};

pub(crate) const MESH: &str = "apiVersion: merlon.io/v1alpha1\nkind: MeshConfig\n\
                    metadata: { name: mesh, namespace: merlon-system }\nspec:\n  trustDomain: mesh.test\n";

pub(crate) const WORKLOAD: &str = "apiVersion: merlon.io/v1alpha1\nkind: Workload\n\
    metadata: { name: orders, namespace: shop, labels: { app: orders } }\nspec: { serviceAccount: orders }\n";

/// Runs `program` on a folder with these files until it ends. `merlon` checks them.
pub(crate) async fn run(program: &str, files: &[(&str, &str)]) -> Output {
    let folder = folder::fresh();
    let resources = folder.path().join("resources");
    std::fs::create_dir(&resources).unwrap();
    for (name, text) in files {
        std::fs::write(resources.join(name), text).unwrap();
    }
    let plan = Plan::new(program, tools::binary(program), folder.path());
    let plan = match program {
        "merlon" => plan.args(["policy", "check"]).arg(&resources),
        "merlon-control-plane" => plan
            .arg("--config")
            .arg(&resources)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .arg("--admin-socket")
            .arg(folder.path().join("admin.sock"))
            .arg("--state-dir")
            .arg(folder.path().join("state")),
        _ => plan
            .arg("--standalone")
            .arg(&resources)
            .args(["--identity", "shop/orders", "--inbound", "127.0.0.1:0"])
            .args(["--outbound", "127.0.0.1:0", "--admin", "127.0.0.1:0"]),
    };
    plan.run().await
}

/// Both programs read the same files and report the same errors.
async fn both_refuse(files: &[(&str, &str)], expected: &[&str]) {
    for program in ["merlon-control-plane", "merlon-proxy"] {
        let ended = run(program, files).await;
        assert_eq!(ended.code(), 2, "{program}: {ended:?}");
        for text in expected {
            assert!(
                ended.err.contains(text),
                "{program}: no `{text}` in\n{}",
                ended.err
            );
        }
    }
}

#[tokio::test]
async fn an_unknown_field_is_named_with_file_line_column_and_the_nearest_known_name() {
    let service = "apiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: { name: orders, namespace: shop }\n\
                   spec:\n  selectr: { app: orders }\n  ports: [{ port: 80 }]\n";
    both_refuse(
        &[("mesh.yaml", MESH), ("orders.yaml", service)],
        &["orders.yaml:5:3", "selectr", "selector"],
    )
    .await;
}

#[tokio::test]
async fn every_problem_of_every_file_is_reported_at_once() {
    let limit = "apiVersion: merlon.io/v1alpha1\nkind: RateLimit\nmetadata: { name: a, namespace: shop }\n\
                 spec:\n  limits: [{ name: x, rate: { requests: many, per: 1s } }]\n";
    let unknown = "apiVersion: merlon.io/v1alpha1\nkind: RateLimits\nmetadata: { name: b, namespace: shop }\nspec: {}\n";
    let field = "apiVersion: merlon.io/v1alpha1\nkind: RateLimit\nmetadata: { name: c, namespace: shop }\n\
                 spec:\n  limts: []\n  limits: [{ name: x, rate: { requests: 1, per: soon } }]\n";
    both_refuse(
        &[
            ("mesh.yaml", MESH),
            ("a.yaml", limit),
            ("b.yaml", unknown),
            ("c.yaml", field),
        ],
        &[
            "a.yaml:5:",
            "many",
            "b.yaml:2:",
            "RateLimits",
            "c.yaml:5:",
            "limts",
            "c.yaml:6:",
            "soon",
        ],
    )
    .await;
}

#[tokio::test]
async fn invalid_yaml_is_reported_with_its_place() {
    both_refuse(
        &[
            ("mesh.yaml", MESH),
            ("broken.yaml", "kind: Service\nmetadata: { name: [\n"),
        ],
        &["broken.yaml:"],
    )
    .await;
    both_refuse(
        &[("mesh.yaml", MESH), ("tabs.yaml", "kind:\n\t- x\n")],
        &["tabs.yaml:2:"],
    )
    .await;
}

#[tokio::test]
async fn an_invalid_cedar_policy_is_reported_with_its_place_in_the_file() {
    let service = "apiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: { name: orders, namespace: shop }\n\
                   spec:\n  selector: { app: orders }\n  ports: [{ port: 80 }]\n---\n\
                   apiVersion: merlon.io/v1alpha1\nkind: Workload\n\
                   metadata: { name: orders, namespace: shop, labels: { app: orders } }\nspec: { serviceAccount: orders }\n";
    let policy = "apiVersion: merlon.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: p, namespace: shop }\n\
                  spec:\n  policies: |\n    @id(\"one\")\n    permit(principal, action == Action::\"PSOT\", resource)\n    \
                  when { context.usr has x };\n";
    both_refuse(
        &[
            ("mesh.yaml", MESH),
            ("orders.yaml", service),
            ("p.yaml", policy),
        ],
        &["p.yaml:7:", "PSOT", "did you mean `Action::"],
    )
    .await;
}

#[tokio::test]
async fn a_folder_without_a_mesh_config_is_refused() {
    both_refuse(&[("empty.yaml", "")], &["MeshConfig"]).await;
    let second = MESH.replace("name: mesh", "name: other");
    both_refuse(
        &[("mesh.yaml", MESH), ("other.yaml", &second)],
        &["MeshConfig", "other.yaml:"],
    )
    .await;
}

#[tokio::test]
async fn a_folder_without_the_workload_of_a_proxy_is_refused_with_those_that_it_contains() {
    for (files, hint) in [
        (
            [("mesh.yaml", MESH), ("other.yaml", "")],
            "the files contain no Workload and no Gateway",
        ),
        (
            [
                ("mesh.yaml", MESH),
                ("other.yaml", &WORKLOAD.replace("orders", "stock")),
            ],
            "the files contain `shop/stock`",
        ),
    ] {
        let ended = run("merlon-proxy", &files).await;
        assert_eq!(ended.code(), 2, "{ended:?}");
        for text in ["runs as `spiffe://mesh.test/ns/shop/sa/orders`", hint] {
            assert!(ended.err.contains(text), "no `{text}` in {ended:?}");
        }
    }
}

#[tokio::test]
async fn values_out_of_range_are_reported_with_the_range() {
    let mesh = format!("{MESH}  certificates: {{ lifetime: 5s }}\n");
    both_refuse(&[("mesh.yaml", &mesh)], &["mesh.yaml:6:", "30s"]).await;
    let mesh = MESH.replace("mesh.test", "Mesh_Test");
    both_refuse(&[("mesh.yaml", &mesh)], &["mesh.yaml:5:", "Mesh_Test"]).await;
}

#[tokio::test]
async fn flags_that_contradict_each_other_or_do_not_exist_exit_with_2_and_are_named() {
    let folder = folder::fresh();
    for (arguments, expected) in [
        (
            "--identity shop/a --standalone . --control-plane https://127.0.0.1:1",
            "`--standalone` and `--control-plane` exclude each other",
        ),
        (
            "--identity shop --standalone .",
            "`shop` is not a workload: write it as `namespace/service-account`",
        ),
        (
            "--identity shop/a --control-plane http://127.0.0.1:1 --join-token-file token",
            "`http://127.0.0.1:1/` is not a valid control plane address",
        ),
        (
            "--identity shop/a --control-plane https://127.0.0.1:1",
            "a join token or a state directory is required",
        ),
        (
            "--standalone .",
            "set `--identity shop/orders` for a sidecar, or `--gateway shop/edge` for a gateway",
        ),
        (
            "--inbund 127.0.0.1:0",
            "a similar argument exists: '--inbound'",
        ),
        (
            "--inbound somewhere",
            "invalid value 'somewhere' for '--inbound",
        ),
        ("--config nowhere.yaml", "nowhere.yaml"),
        ("", "the source of the state is missing"),
    ] {
        let ended = Plan::new("proxy", tools::binary("merlon-proxy"), folder.path())
            .args(arguments.split_whitespace())
            .current_dir(folder.path())
            .run()
            .await;
        assert_eq!(ended.code(), 2, "{arguments}: {ended:?}");
        assert!(ended.err.contains(expected), "{arguments}: {ended:?}");
    }
}

#[tokio::test]
async fn an_error_in_a_bootstrap_file_is_reported_like_one_in_a_resource() {
    let folder = folder::fresh();
    let file = folder.path().join("proxy.yaml");
    std::fs::write(
        &file,
        "identity: shop/orders\ncontrol_plane: https://127.0.0.1:7564\nworkers: 0\n",
    )
    .unwrap();
    let ended = Plan::new("proxy", tools::binary("merlon-proxy"), folder.path())
        .arg("--config")
        .arg(&file)
        .run()
        .await;
    assert_eq!(ended.code(), 2, "{ended:?}");
    assert!(
        ended.err.contains("proxy.yaml:2:1") && ended.err.contains("controlPlane"),
        "{ended:?}"
    );
}

#[tokio::test]
async fn an_address_that_is_in_use_ends_the_process_with_an_error_that_names_it() {
    let folder = folder::fresh();
    std::fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
    std::fs::write(folder.path().join("workload.yaml"), WORKLOAD).unwrap();
    let owner = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = owner.local_addr().unwrap().to_string();
    let ended = Plan::new("second", tools::binary("merlon-proxy"), folder.path())
        .arg("--standalone")
        .arg(folder.path())
        .args([
            "--identity",
            "shop/orders",
            "--inbound",
            "127.0.0.1:0",
            "--outbound",
            "127.0.0.1:0",
        ])
        .args(["--admin", &taken])
        .run()
        .await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    let error = format!("cannot listen on `{taken}`");
    assert!(ended.err.contains(&error), "{ended:?}");
}
