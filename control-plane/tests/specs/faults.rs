//! A database and a directory of resources that fail.

use std::{fs, os::unix::fs::symlink, time::Duration};

use merlon_config::snapshot::ResourceKind;
use merlon_control_plane::{ControlPlaneConfig, app, app::StartError};
use rusqlite::Connection;
use serde_json::json;

use crate::harness::{Plane, follow, id, issue, service, until_port};

const DATABASE: &str = "state/control-plane.sqlite";
const TOKEN_REQUEST: &str = r#"{ "identity": "shop/web" }"#;

#[tokio::test]
async fn while_the_database_is_locked_no_token_is_created_and_the_state_is_still_pushed() {
    let busy = Duration::from_millis(20);
    let plane = Plane::with_limits(|limits| limits.store.busy = busy).await;
    let orders = plane.join("orders").await;
    let mut stream = orders.stream(&plane, "orders-1").await;
    follow(&mut stream).await;
    let other = Connection::open(plane.folder.path().join(DATABASE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    let (status, problem) = plane.ask("POST", "/v1/join-tokens", TOKEN_REQUEST).await;
    assert_eq!(status, 503, "{problem}");
    assert!(problem.get("token").is_none(), "{problem}");
    stream
        .subscribe(ResourceKind::Destination, &["shop/orders"])
        .await;
    stream.next_of(ResourceKind::Destination).await;

    other.execute_batch("ROLLBACK").unwrap();
    plane.token("web").await;
}

#[tokio::test]
async fn while_the_database_is_locked_no_certificate_is_issued_and_the_token_stays_valid() {
    let busy = Duration::from_millis(20);
    let plane = Plane::with_limits(|limits| limits.store.busy = busy).await;
    let token = plane.token("web").await;
    let channel = plane.without_certificate(&token).await;
    let other = Connection::open(plane.folder.path().join(DATABASE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    let csr = || {
        let key = merlon_certs::PrivateKey::generate().unwrap();
        key.csr(&id("web")).unwrap()
    };
    let refused = issue(channel.clone(), csr(), Some(&token)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    let counted = "merlon_certificates_refused_total{reason=\"store\"}";
    assert_eq!(plane.metric(counted).await, 1);

    other.execute_batch("ROLLBACK").unwrap();
    issue(channel, csr(), Some(&token)).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_cannot_be_recorded_is_issued_and_counted() {
    let plane = Plane::start().await;
    let token = plane.token("web").await;
    let channel = plane.without_certificate(&token).await;
    let other = Connection::open(plane.folder.path().join(DATABASE)).unwrap();
    // As if the disk were full for the ledger alone: a join token must be marked as used.
    let full = "CREATE TRIGGER full BEFORE INSERT ON ledger BEGIN SELECT RAISE(ABORT, 'full'); END";
    other.execute_batch(full).unwrap();
    let key = merlon_certs::PrivateKey::generate().unwrap();
    issue(channel, key.csr(&id("web")).unwrap(), Some(&token))
        .await
        .unwrap();
    assert_eq!(plane.metric("merlon_ledger_failures_total").await, 1);
    let path = format!("/v1/certificates?identity={}", id("web"));
    assert_eq!(plane.get(&path).await, json!([]));
}

#[tokio::test]
async fn a_database_that_is_damaged_or_no_file_prevents_the_start_and_is_left_as_it_is() {
    let damaged = "not a database, ".repeat(1_000);
    for text in [Some(damaged), None] {
        let plane = Plane::start().await;
        let folder = plane.stop().await;
        let database = folder.path().join(DATABASE);
        fs::remove_file(&database).unwrap();
        match &text {
            Some(text) => fs::write(&database, text).unwrap(),
            None => fs::create_dir(&database).unwrap(),
        }
        let path = |name: &str| folder.path().join(name);
        let config = ControlPlaneConfig::on_loopback(path("resources"), path("state"));
        let error = app::run(config).await.unwrap_err();
        assert!(matches!(error, StartError::Store(_)), "{error}");
        assert!(error.to_string().starts_with("database error: "), "{error}");
        if let Some(text) = text {
            assert_eq!(fs::read_to_string(&database).unwrap(), text);
        }
    }
}

#[tokio::test]
async fn resources_that_become_a_loop_of_links_change_nothing_and_apply_again_when_they_are_back() {
    let plane = Plane::start().await;
    let orders = plane.join("orders").await;
    let mut stream = orders.stream(&plane, "orders-1").await;
    follow(&mut stream).await;
    let path = |name: &str| plane.folder.path().join(name);

    fs::rename(path("resources"), path("before")).unwrap();
    symlink("resources", path("resources")).unwrap();
    let problem = plane.problem().await;
    assert!(
        problem["message"]
            .as_str()
            .unwrap()
            .contains("symbolic links"),
        "{problem}"
    );
    stream.expect_nothing_sent().await;

    fs::write(path("before/orders.yaml"), service("orders", 7_009)).unwrap();
    fs::remove_file(path("resources")).unwrap();
    fs::rename(path("before"), path("resources")).unwrap();
    stream
        .subscribe(ResourceKind::Destination, &["shop/orders"])
        .await;
    until_port(&mut stream, 7_009).await;
    plane
        .until_status(|status| status["source"]["problems"] == json!([]))
        .await;
}

#[tokio::test]
async fn links_in_a_loop_below_the_resources_are_reported_and_change_nothing() {
    let plane = Plane::start().await;
    let orders = plane.join("orders").await;
    let mut stream = orders.stream(&plane, "orders-1").await;
    follow(&mut stream).await;
    let link = plane.folder.path().join("resources/more");
    // A folder that contains itself.
    symlink(".", &link).unwrap();
    plane.problem().await;
    stream.expect_nothing_sent().await;
    fs::remove_file(&link).unwrap();
    plane
        .until_status(|status| status["source"]["problems"] == json!([]))
        .await;
}

/// A file that was written up to some byte is either not valid, or it means the same: never anything else.
#[tokio::test]
async fn a_half_written_file_changes_nothing_and_the_whole_one_is_applied() {
    let plane = Plane::start().await;
    let orders = plane.join("orders").await;
    let mut stream = orders.stream(&plane, "orders-1").await;
    follow(&mut stream).await;
    let whole = service("orders", 7_009);
    let half = whole.split_once("meshAddress").unwrap().0;
    plane.write("orders.yaml", &format!("{half}meshAddr"));
    let problem = plane.problem().await;
    assert_eq!(problem["file"], "orders.yaml");
    stream.expect_nothing_sent().await;

    plane.write("orders.yaml", &whole);
    stream
        .subscribe(ResourceKind::Destination, &["shop/orders"])
        .await;
    let changed = until_port(&mut stream, 7_009).await;
    assert!(changed > 0);
}
