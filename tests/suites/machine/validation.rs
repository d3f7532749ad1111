//! Validation of requests.

use std::fmt;

use bytes::Bytes;
use http::Method;
use merlon_tests::{
    Mesh,
    client::Call,
    mesh::{Guard, Shared},
    refusals::{Attempt, Refused},
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

/// Bodies that take long.
const LONG: &str = r"
routes:
  - path: /trees
    methods: [POST]
    maxBody: 64KiB
    body:
      $ref: '#/$defs/node'
      $defs:
        node:
          anyOf:
            - { type: 'null' }
            - { type: object, properties: { a: { $ref: '#/$defs/node' }, b: { type: number } }, required: [a] }
            - { type: object, properties: { a: { $ref: '#/$defs/node' }, b: { type: string } }, required: [a] }
  - path: /lists
    methods: [POST]
    maxBody: 1MiB
    body: { type: array, items: { type: integer, maximum: 7 } }
";

async fn mesh() -> Guard {
    MESH.get(async || {
        Mesh::new()
            .service("orders")
            .allow("web", "http", "/**")
            .with("RequestValidation", RULES)
            .service("archive")
            .allow("web", "http", "/**")
            .with("RequestValidation", LONG)
            .start()
            .await
    })
    .await
}

/// Asserts that each body, sent to `/orders` as JSON, is refused with 400 and this place.
async fn are_invalid_at<B: Into<Bytes> + fmt::Debug>(
    table: impl IntoIterator<Item = (B, &str)>,
) -> Vec<Refused> {
    let mesh = mesh().await;
    let (bodies, places): (Vec<_>, Vec<_>) = table.into_iter().unzip();
    let rows = bodies.into_iter().map(|body| {
        let name = format!("{body:?}");
        (name, order(&mesh, body), 400, "validate.body")
    });
    let refused = mesh.refuses("orders", rows).await;
    let found: Vec<_> = refused
        .iter()
        .map(|refused| {
            let place = refused.reply.json()["place"].clone();
            place.as_str().unwrap_or_default().to_owned()
        })
        .collect();
    assert_eq!(found, places);
    refused
}

fn order(mesh: &Mesh, body: impl Into<Bytes>) -> Call {
    mesh.as_workload("web")
        .post("orders", "/orders", body)
        .header("content-type", "application/json")
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
    let refused = are_invalid_at([
        (r#"{"item":"apple","quantity":"two"}"#, "/quantity"),
        (r#"{"item":"apple","quantity":11}"#, "/quantity"),
        (
            r#"{"item":"apple","quantity":1,"lines":[{"sku":"a"},{"sku":7}]}"#,
            "/lines/1/sku",
        ),
        (r#"{"item":"apple"}"#, ""),
        (r#"{"item":"apple","quantity":1,"colour":"red"}"#, ""),
    ])
    .await;
    for (refused, name) in refused[3..].iter().zip(["quantity", "colour"]) {
        let problem = refused.reply.json();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(name), "{detail}");
    }
}

#[tokio::test]
async fn a_body_that_two_parsers_could_read_differently_is_400() {
    let deep = format!(
        r#"{{"item":"a","quantity":1,"deep":{}{}}}"#,
        "[".repeat(80),
        "]".repeat(80)
    );
    let innermost = format!("/deep{}", "/0".repeat(63));
    are_invalid_at([
        (r#"{"item":"apple","item":"pear","quantity":1}"#, "/item"),
        (r#"{"item":"apple","quantity":1} {"item":"pear"}"#, ""),
        (r#"{"item":"apple","quantity":1"#, ""),
        (r#"{"item":"apple","quantity":NaN}"#, "/quantity"),
        ("", ""),
        ("not json", ""),
    ])
    .await;
    are_invalid_at([(deep, innermost.as_str())]).await;
    let invalid_utf8 = b"{\"item\":\"\xff\",\"quantity\":1}".as_slice();
    are_invalid_at([(invalid_utf8, "/item")]).await;
}

#[tokio::test]
async fn a_body_larger_than_its_route_allows_is_413_with_a_length_and_chunked() {
    let mesh = mesh().await;
    let large = json!({ "item": "a", "quantity": 1, "deep": "x".repeat(5_000) }).to_string();
    let declared = order(&mesh, large.clone());
    mesh.refuses("orders", [("declared", declared, 413, "http.limit")])
        .await;

    // `/orders` in another spelling, which no other test uses.
    let chunked = format!(
        "POST /orders?chunked HTTP/1.1\r\nhost: orders.shop\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\nconnection: close\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
        large.len()
    );
    let to = mesh.sidecar("web").outbound();
    let chunked = Attempt::raw(to, "/orders?chunked", chunked);
    mesh.refuses("orders", [("chunked", chunked, 413, "http.limit")])
        .await;
}

#[tokio::test]
async fn a_body_larger_than_the_service_allows_is_413() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    web.call(Method::PUT, "orders", "/uploads/small")
        .body("x".repeat(60 << 10))
        .await
        .is_ok();
    let large = web
        .call(Method::PUT, "orders", "/uploads/large")
        .body("x".repeat(70 << 10));
    mesh.refuses("orders", [("70 KiB", large, 413, "http.limit")])
        .await;
}

#[tokio::test]
async fn a_long_uri_is_414_and_many_headers_are_431() {
    let mesh = mesh().await;
    let web = mesh.as_workload("web");
    let long = web.get("orders", &format!("/orders/1?q={}", "x".repeat(1_100)));
    let heavy = web
        .get("orders", "/orders/heavy")
        .header("x-heavy", &"x".repeat(9_000));
    mesh.refuses(
        "orders",
        [
            ("a long target", long, 414, "http.limit"),
            ("a large header", heavy, 431, "http.limit"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_method_that_the_route_does_not_list_is_405_with_the_allowed_ones() {
    let mesh = mesh().await;
    let post = mesh.as_workload("web").post("orders", "/orders/7", "");
    let refused = mesh
        .refuses("orders", [("POST", post, 405, "http.method")])
        .await;
    let mut allowed: Vec<_> = refused[0].reply.header("allow").split(", ").collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["DELETE", "GET"]);
}

#[tokio::test]
async fn a_media_type_that_the_route_does_not_list_is_415() {
    let mesh = mesh().await;
    let untyped = || {
        mesh.as_workload("web")
            .post("orders", "/orders", r#"{"item":"apple","quantity":1}"#)
    };
    let typed = [
        "text/xml",
        "application/jsonx",
        "application/x-www-form-urlencoded",
    ]
    .map(|media_type| {
        let call = untyped().header("content-type", media_type);
        (media_type, call, 415, "http.media_type")
    });
    let none = [("no media type", untyped(), 415, "http.media_type")];
    mesh.refuses("orders", typed.into_iter().chain(none)).await;
}

#[tokio::test]
async fn an_unknown_route_is_404_where_the_rules_refuse_it() {
    let mesh = mesh().await;
    let unknown = mesh.as_workload("web").get("orders", "/admin");
    mesh.refuses("orders", [("/admin", unknown, 404, "validate.route")])
        .await;
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
    let wrong = json!({ "wrong": true });
    let rows = [
        ("web", 400, "validate.body"),
        ("batch", 403, "authz.denied"),
    ]
    .map(|(workload, status, reason)| {
        let client = mesh.as_workload(workload);
        let call = client.post_json("orders", "/orders", &wrong);
        (workload, call, status, reason)
    });
    mesh.refuses("orders", rows).await;
}

#[tokio::test]
async fn an_encoded_body_is_refused_where_it_must_be_validated() {
    let mesh = mesh().await;
    let rows = ["gzip", "br, identity", "GZIP"].map(|coding| {
        let body = r#"{"item":"apple","quantity":1}"#;
        let call = order(&mesh, body).header("content-encoding", coding);
        (coding, call, 415, "http.media_type")
    });
    for refused in mesh.refuses("orders", rows).await {
        assert_eq!(refused.reply.header("accept-encoding"), "identity");
    }
    mesh.as_workload("web")
        .post("orders", "/orders", r#"{"item":"apple","quantity":1}"#)
        .header("content-type", "application/json")
        .header("content-encoding", "identity")
        .await
        .is_ok();
}

#[tokio::test]
async fn a_number_that_rounding_would_change_before_comparison_is_refused() {
    let order = |quantity: &str| format!(r#"{{"item":"apple","quantity":{quantity}}}"#);
    are_invalid_at([
        (order("10.00000000000000000001"), ""),
        (order("9.9999999999999999999"), ""),
        (order("18446744073709551617"), ""),
        // An exact number: the schema refuses it, with its place.
        (order("9007199254740993"), "/quantity"),
    ])
    .await;
}

#[tokio::test]
async fn the_name_of_an_unexpected_property_is_reported_shortened_and_escaped() {
    let name = format!("<b>\\u0007\\u202e{}", "x".repeat(2_000));
    let body = format!(r#"{{"item":"apple","quantity":1,"{name}":1,"zzz":2}}"#);
    let refused = are_invalid_at([(body, "")]).await;
    let problem = refused[0].reply.json();
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(
        detail.contains(r"the property `<b>\u{7}\u{202e}xxx"),
        "{detail}"
    );
    assert!(detail.len() < 200, "{detail}");
    assert!(!detail.contains(['\u{7}', '\u{202e}']), "{detail}");
}

fn json_to(mesh: &Mesh, path: &str, body: impl Into<Bytes>) -> Call {
    mesh.as_workload("web")
        .post("archive", path, body)
        .header("content-type", "application/json")
}

#[tokio::test]
async fn a_body_that_is_too_costly_for_its_schema_is_refused() {
    let mesh = mesh().await;
    let tree = |depth: usize, end: &str| {
        let open = r#"{"a":"#.repeat(depth);
        format!("{open}{end}{}", "}".repeat(depth))
    };
    json_to(&mesh, "/trees", tree(60, "null")).await.is_ok();
    // With two alternatives for each level, 2^60 comparisons.
    let wrong = json_to(&mesh, "/trees", tree(60, "7"));
    mesh.refuses("archive", [("a wrong leaf", wrong, 400, "validate.body")])
        .await;
}

#[tokio::test]
async fn a_large_body_is_validated_off_the_worker() {
    let mesh = mesh().await;
    let list = |items: usize, last: &str| format!("[{}{last}]", "7,".repeat(items));
    json_to(&mesh, "/lists", list(100_000, "7")).await.is_ok();
    let wrong = json_to(&mesh, "/lists", list(100_000, "8"));
    let long = json_to(&mesh, "/lists", list(400_000, "7"));
    let no_json = json_to(&mesh, "/lists", list(100_000, ""));
    let refused = mesh
        .refuses(
            "archive",
            [
                ("a wrong item", wrong, 400, "validate.body"),
                ("more visits than allowed", long, 400, "validate.body"),
                ("no JSON", no_json, 400, "validate.body"),
            ],
        )
        .await;
    let details: Vec<_> = refused
        .iter()
        .map(|refused| refused.reply.json()["detail"].clone())
        .collect();
    assert!(
        details[1]
            .as_str()
            .expect("a text")
            .contains("visited more than 1000000 times"),
        "{details:?}"
    );
}
