//! Certificates that OpenBao signs.

use http::{Method, StatusCode};
use merlon_tests::{
    Mesh, folder,
    openbao::{OpenBao, prepare_for_merlon},
    until,
};
use serde_json::{Value, json};

#[tokio::test]
async fn certificates_are_signed_by_openbao_with_a_token_that_has_no_other_rights() {
    let bao = OpenBao::shared().await;
    let folder = folder::fresh();
    let (token, spec) = prepare_for_merlon(bao, folder.path()).await;
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .mesh(&spec)
        .start()
        .await;
    mesh.as_workload("web").get("orders", "/").await.is_ok();

    let (old, new) = mesh.rotate("orders").await;
    assert_ne!(old, new);
    mesh.as_workload("web").get("orders", "/").await.is_ok();

    // The token that Merlon holds is not a root token and cannot become one.
    let token = std::fs::read_to_string(token).unwrap();
    let http = reqwest::Client::new();
    for (method, path) in [
        (Method::GET, "sys/mounts"),
        (Method::POST, "auth/token/create"),
        (Method::POST, "pki-root/root/generate/internal"),
    ] {
        let url = format!("{}/v1/{path}", bao.address());
        let answer = http
            .request(method, url)
            .header("x-vault-token", token.trim())
            .json(&json!({}))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 403, "{path}");
    }
}

#[tokio::test]
async fn while_openbao_is_sealed_or_down_traffic_continues_and_renewal_resumes_on_its_own() {
    let bao = OpenBao::start().await;
    let folder = folder::fresh();
    let (_, spec) = prepare_for_merlon(&bao, folder.path()).await;
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .mesh(&spec)
        .start()
        .await;
    let web = mesh.as_workload("web");
    web.get("orders", "/").await.is_ok();
    let id = mesh.proxy_id("orders").await;
    let rotate = format!("/v1/proxies/{id}/rotate");
    let try_rotation = async || {
        mesh.control_plane()
            .call(Method::POST, &rotate, &Value::Null)
            .await
            .status
    };

    // OpenBao needs a moment to become active; until then the cause is still OpenBao, and nothing else fails.
    let resumed = async || {
        let status = try_rotation().await;
        assert!(
            [StatusCode::OK, StatusCode::BAD_GATEWAY].contains(&status),
            "{status}"
        );
        status == StatusCode::OK
    };
    bao.seal().await;
    assert_eq!(try_rotation().await, StatusCode::BAD_GATEWAY);
    web.get("orders", "/").await.is_ok();
    bao.unseal().await;
    until("renewal resumes", resumed).await;

    bao.kill9();
    assert_eq!(try_rotation().await, StatusCode::BAD_GATEWAY);
    web.get("orders", "/").await.is_ok();
    bao.restart().await;
    until("renewal resumes", resumed).await;
    web.get("orders", "/").await.is_ok();
}

#[tokio::test]
async fn after_openbao_revokes_a_token_the_new_one_is_read_from_its_file() {
    let bao = OpenBao::start().await;
    let folder = folder::fresh();
    let (file, spec) = prepare_for_merlon(&bao, folder.path()).await;
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "GET", "/**")
        .mesh(&spec)
        .start()
        .await;
    let old = std::fs::read_to_string(&file).unwrap();
    let found = bao
        .call(
            Method::POST,
            "auth/token/lookup",
            json!({ "token": old.trim() }),
        )
        .await;
    let policies = found.body["data"]["policies"].clone();
    let request = json!({ "policies": policies, "no_default_policy": true, "no_parent": true });
    let made = bao.call(Method::POST, "auth/token/create", request).await;
    bao.revoke(old.trim()).await;
    std::fs::write(&file, made.body["auth"]["client_token"].as_str().unwrap()).unwrap();
    let (before, after) = mesh.rotate("orders").await;
    assert_ne!(before, after);
}
