//! Validation of requests.

use bytes::Bytes;
use http::{Method, StatusCode};
use merlon_tests::{
    Mesh, Reply,
    mesh::{Guard, Shared},
};
use serde_json::json;

static MESH: Shared = Shared::new();

const RULES: &str = r"
limits: { headers: 8KiB, uri: 1KiB, body: 64KiB }
unknownRoutes: refuse
routes:
  - path: /orders
    methods: [POST]
    contentTypes: [application/json]
    maxBody: 4KiB
    body:
      type: object
      required: [item, quantity]
      additionalProperties: false
      properties:
        item: { type: string, maxLength: 20 }
        quantity: { type: integer, minimum: 1, maximum: 10 }
        lines: { type: array, items: { type: object, properties: { sku: { type: string } } } }
        deep: true
  - path: /orders/{id}
    methods: [GET, DELETE]
  - path: /uploads/{name*}
    methods: [PUT]
";

async fn mesh() -> Guard {
    MESH.get(async || {
        Mesh::new()
            .service("orders")
            .allow("web", "http", "/**")
            .with("RequestValidation", RULES)
            .start()
            .await
    })
    .await
}

/// Posts a body to `/orders` and asserts that it is refused with 400 and this place.
async fn is_invalid_at(body: impl Into<Bytes>, place: &str) -> Reply {
    let mesh = mesh().await;
    let before = mesh.seen_at("orders", "/orders").len();
    let reply = post(&mesh, body).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{reply:?}");
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(
        reply.json()["place"].as_str().unwrap_or_default(),
        place,
        "{reply:?}"
    );
    mesh.log_of("orders", &reply).await.has("status", "400");
    // Other tests post valid orders at the same time; the program must not see this one.
    let after = mesh.seen_at("orders", "/orders");
    let id = reply.header("x-request");
    assert!(
        after.len() >= before && !after.iter().any(|seen| seen.headers.get("x-bad").is_some()),
        "{id}"
    );
    reply
}

async fn post(mesh: &Mesh, body: impl Into<Bytes>) -> Reply {
    mesh.as_workload("web")
        .post("orders", "/orders", body)
        .header("content-type", "application/json")
        .header("x-bad", "yes")
        .await
}

#[tokio::test]
async fn a_body_that_matches_its_schema_arrives_unchanged() {
    let mesh = mesh().await;
    let body = r#"{ "quantity": 2,  "item": "apple" }"#;
    let reply = mesh
        .as_workload("web")
        .post("orders", "/orders", body)
        .header("content-type", "application/json; charset=utf-8")
        .await;
    assert_eq!(reply.is_ok().json()["body"], body);
}

#[tokio::test]
async fn a_body_that_violates_its_schema_is_400_with_the_place() {
    is_invalid_at(r#"{"item":"apple","quantity":"two"}"#, "/quantity").await;
    is_invalid_at(r#"{"item":"apple","quantity":11}"#, "/quantity").await;
    is_invalid_at(
        r#"{"item":"apple","quantity":1,"lines":[{"sku":"a"},{"sku":7}]}"#,
        "/lines/1/sku",
    )
    .await;
    let reply = is_invalid_at(r#"{"item":"apple"}"#, "").await;
    assert!(
        reply.json()["detail"]
            .as_str()
            .unwrap()
            .contains("quantity"),
        "{reply:?}"
    );
    let reply = is_invalid_at(r#"{"item":"apple","quantity":1,"colour":"red"}"#, "").await;
    assert!(
        reply.json()["detail"].as_str().unwrap().contains("colour"),
        "{reply:?}"
    );
}

#[tokio::test]
async fn a_body_that_two_parsers_could_read_differently_is_400() {
    let mesh = mesh().await;
    let deep = format!(
        r#"{{"item":"a","quantity":1,"deep":{}{}}}"#,
        "[".repeat(80),
        "]".repeat(80)
    );
    for body in [
        r#"{"item":"apple","item":"pear","quantity":1}"#,
        r#"{"item":"apple","quantity":1} {"item":"pear"}"#,
        r#"{"item":"apple","quantity":1"#,
        r#"{"item":"apple","quantity":NaN}"#,
        "",
        "not json",
        &deep,
    ] {
        let reply = post(&mesh, body.to_owned()).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}: {reply:?}");
    }
    let invalid_utf8 = Bytes::from_static(b"{\"item\":\"\xff\",\"quantity\":1}");
    assert_eq!(
        post(&mesh, invalid_utf8).await.status,
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn a_body_larger_than_its_route_allows_is_413_with_a_length_and_chunked() {
    let mesh = mesh().await;
    let large = json!({ "item": "a", "quantity": 1, "deep": "x".repeat(5_000) }).to_string();
    let declared = post(&mesh, large.clone()).await;
    assert_eq!(
        declared.status,
        StatusCode::PAYLOAD_TOO_LARGE,
        "{declared:?}"
    );

    let chunked = format!(
        "POST /orders HTTP/1.1\r\nhost: orders.shop\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\nx-bad: yes\r\nconnection: close\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let answer = mesh.as_workload("web").raw(chunked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(
        !mesh
            .seen_by("orders")
            .iter()
            .any(|seen| seen.headers.contains_key("x-bad"))
    );
}

#[tokio::test]
async fn a_body_larger_than_the_service_allows_is_413() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    web.call(Method::PUT, "orders", "/uploads/small")
        .body("x".repeat(60 << 10))
        .await
        .is_ok();
    let reply = web
        .call(Method::PUT, "orders", "/uploads/large")
        .body("x".repeat(70 << 10))
        .await;
    assert_eq!(reply.status, StatusCode::PAYLOAD_TOO_LARGE, "{reply:?}");
    assert!(mesh.seen_at("orders", "/uploads/large").is_empty());
}

#[tokio::test]
async fn a_long_uri_is_414_and_many_headers_are_431() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let reply = web
        .get("orders", &format!("/orders/1?q={}", "x".repeat(1_100)))
        .await;
    assert_eq!(reply.status, StatusCode::URI_TOO_LONG, "{reply:?}");
    let reply = web
        .get("orders", "/orders/heavy")
        .header("x-heavy", &"x".repeat(9_000))
        .await;
    assert_eq!(
        reply.status,
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        "{reply:?}"
    );
    assert!(mesh.seen_at("orders", "/orders/heavy").is_empty());
}

#[tokio::test]
async fn a_method_that_the_route_does_not_list_is_405_with_the_allowed_ones() {
    let mesh = mesh().await;
    let reply = mesh
        .as_workload("web")
        .post("orders", "/orders/7", "")
        .await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{reply:?}");
    let allow = reply.header("allow");
    assert!(
        allow.contains("GET") && allow.contains("DELETE") && !allow.contains("POST"),
        "{reply:?}"
    );
    assert!(mesh.seen_at("orders", "/orders/7").is_empty());
}

#[tokio::test]
async fn a_media_type_that_the_route_does_not_list_is_415() {
    let mesh = mesh().await;
    for media_type in [
        "text/xml",
        "application/jsonx",
        "application/x-www-form-urlencoded",
    ] {
        let reply = mesh
            .as_workload("web")
            .post("orders", "/orders", "{}")
            .header("content-type", media_type)
            .header("x-bad", "yes")
            .await;
        assert_eq!(
            reply.status,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "{media_type}: {reply:?}"
        );
    }
    let reply = mesh
        .as_workload("web")
        .post("orders", "/orders", "{}")
        .header("x-bad", "yes")
        .await;
    assert_eq!(
        reply.status,
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "{reply:?}"
    );
}

#[tokio::test]
async fn an_unknown_route_is_404_where_the_rules_refuse_it() {
    let mesh = mesh().await;
    let reply = mesh.as_workload("web").get("orders", "/admin").await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND, "{reply:?}");
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert!(mesh.seen_at("orders", "/admin").is_empty());
}

#[tokio::test]
async fn a_body_is_validated_only_after_authorization() {
    let mesh = Mesh::new()
        .service("orders")
        .allow("web", "POST", "/**")
        .with("RequestValidation", RULES)
        .caller("batch")
        .start()
        .await;
    let reply = mesh
        .as_workload("batch")
        .post_json("orders", "/orders", &json!({ "wrong": true }))
        .await;
    reply.is_problem(StatusCode::FORBIDDEN, "authz.denied");
}

#[tokio::test]
async fn an_encoded_body_is_refused_where_it_must_be_validated() {
    let mesh = mesh().await;
    for coding in ["gzip", "br, identity", "GZIP"] {
        let reply = mesh
            .as_workload("web")
            .post("orders", "/orders", r#"{"item":"apple","quantity":1}"#)
            .header("content-type", "application/json")
            .header("content-encoding", coding)
            .header("x-bad", "yes")
            .await;
        reply.is_problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "http.media_type");
        assert_eq!(reply.header("accept-encoding"), "identity");
        mesh.log_of("orders", &reply).await.has("status", "415");
    }
    let seen = mesh.seen_at("orders", "/orders");
    assert!(!seen.iter().any(|seen| seen.headers.contains_key("x-bad")));
    mesh.as_workload("web")
        .post("orders", "/orders", r#"{"item":"apple","quantity":1}"#)
        .header("content-type", "application/json")
        .header("content-encoding", "identity")
        .await
        .is_ok();
}

#[tokio::test]
async fn a_number_that_rounding_would_change_before_comparison_is_refused() {
    for quantity in [
        "10.00000000000000000001",
        "9.9999999999999999999",
        "18446744073709551617",
    ] {
        is_invalid_at(format!(r#"{{"item":"apple","quantity":{quantity}}}"#), "").await;
    }
    // An exact number: the schema refuses it, with its place.
    is_invalid_at(
        r#"{"item":"apple","quantity":9007199254740993}"#,
        "/quantity",
    )
    .await;
}

#[tokio::test]
async fn the_name_of_an_unexpected_property_is_reported_shortened_and_escaped() {
    let name = format!("<b>\\u0007\\u202e{}", "x".repeat(2_000));
    let body = format!(r#"{{"item":"apple","quantity":1,"{name}":1,"zzz":2}}"#);
    let reply = is_invalid_at(body, "").await;
    let problem = reply.json();
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains(r"the property `<b>\u{7}\u{202e}xxx"),
        "{detail}"
    );
    assert!(detail.len() < 200, "{detail}");
    assert!(!detail.contains(['\u{7}', '\u{202e}']), "{detail}");
}
