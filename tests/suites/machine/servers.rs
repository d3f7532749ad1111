//! The servers and programs of the harness itself, on which the other suites depend.

use futures_util::{SinkExt as _, StreamExt as _};
use http::Method;
use merlon_tests::{
    Client, app::App, chat::Line, client::connect, limit, openbao::OpenBao, openid::OpenIdProvider,
    postgres::Postgres, redis::Redis,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn openbao_keeps_its_data_across_a_kill() {
    let bao = OpenBao::start().await;
    bao.write("sys/mounts/kv", json!({ "type": "kv" })).await;
    bao.write("kv/one", json!({ "value": "1" })).await;

    bao.kill9();
    bao.restart().await;
    assert_eq!(
        bao.call(Method::GET, "kv/one", Value::Null).await.body["data"]["value"],
        "1"
    );

    bao.seal().await;
    assert_eq!(
        bao.call(Method::GET, "kv/one", Value::Null).await.status,
        503
    );
    bao.unseal().await;
    assert_eq!(
        bao.call(Method::GET, "kv/one", Value::Null).await.status,
        200
    );
}

#[tokio::test]
async fn the_openid_provider_issues_jwt_access_tokens_and_rotates_its_keys() {
    let provider = OpenIdProvider::new().await;
    let token = provider.token_of("alice").await;
    assert_eq!(token.split('.').count(), 3);

    let (_, before) = provider.public_key().await;
    let after = provider.rotate_keys().await;
    assert_ne!(before, after);
    assert_ne!(provider.token_of("alice").await, token);
    assert_ne!(provider.sign_with_retired_key().await, token);
}

#[tokio::test]
async fn redis_answers_its_client() {
    let redis = Redis::start().await;
    assert_eq!(redis.cli(redis.address(), &["PING"]).await.out, "PONG\n");
}

#[tokio::test]
async fn postgres_answers_its_client() {
    let postgres = Postgres::start().await;
    let answer = postgres.psql(postgres.address(), "select 6 * 7").await;
    assert_eq!(answer.out, "42\n", "{answer:?}");
}

#[tokio::test]
async fn the_http_program_reports_what_it_saw_in_both_versions() {
    let app = App::http().await;
    let client = Client::new(app.address(), "shop");
    let reply = client
        .post("orders", "/orders?id=1", "hello")
        .header("x-one", "1")
        .await;
    let saw = reply.is_ok().json();
    assert_eq!(saw["method"], "POST");
    assert_eq!(saw["target"], "/orders?id=1");
    assert_eq!(saw["version"], "HTTP/1.1");
    assert_eq!(saw["headers"]["x-one"], "1");
    assert_eq!(saw["body"], "hello");

    let saw = client.get("orders", "/").over_http2().await.is_ok().json();
    assert_eq!(saw["version"], "HTTP/2.0");
    assert_eq!(app.seen().len(), 2);
    let reply = client
        .get("orders", "/trailers")
        .header("te", "trailers")
        .await;
    assert_eq!(reply.trailers["x-checksum"], "c0ffee");
}

#[tokio::test]
async fn the_http_program_echoes_web_socket_messages() {
    let app = App::http().await;
    let client = Client::new(app.address(), "shop");
    let mut socket = client
        .web_socket("orders", "/socket")
        .await
        .expect("a WebSocket");
    socket.send("hello".into()).await.unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap().into_text().unwrap(),
        "hello"
    );
}

#[tokio::test]
async fn the_grpc_program_answers() {
    let app = App::grpc().await;
    let client = Client::new(app.address(), "shop");
    let mut chat = client.chat("chat").await;
    assert_eq!(
        chat.say(Line::new("hello", 7)).await.unwrap().into_inner(),
        Line::new("heard hello", 7)
    );
    let lines = chat.count(Line::new("n", 3)).await.unwrap().into_inner();
    let lines: Vec<_> = limit("all lines", lines.collect()).await;
    assert_eq!(lines.len(), 3);
}

#[tokio::test]
async fn the_tcp_program_greets_and_echoes() {
    let app = App::tcp_server_first().await;
    let mut stream = connect(app.address()).await;
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}
