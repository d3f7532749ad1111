//! gRPC calls.

use std::time::Duration;

use futures_util::StreamExt as _;
use merlon_tests::{chat::Line, limit};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::mesh;

#[tokio::test]
async fn grpc_calls_of_all_four_kinds_are_answered() {
    let mesh = mesh().await;
    let mut chat = mesh.as_workload("web").chat("chat").await;

    let reply = chat.say(Line::new("hello", 1)).await.unwrap().into_inner();
    assert_eq!(reply, Line::new("heard hello", 1));

    let counted = chat.count(Line::new("n", 100)).await.unwrap().into_inner();
    assert_eq!(limit("all lines", counted.count()).await, 100);

    let lines = tokio_stream::iter((1..=10).map(|n| Line::new("", n)));
    assert_eq!(chat.collect(lines).await.unwrap().into_inner().number, 55);

    let (lines, outgoing) = mpsc::channel(1);
    let mut answers = chat
        .talk(ReceiverStream::new(outgoing))
        .await
        .unwrap()
        .into_inner();
    for number in 1..=5 {
        lines.send(Line::new("you", number)).await.unwrap();
        let answer = limit("an answer", answers.message()).await;
        let answer = answer.unwrap().unwrap();
        assert_eq!(answer, Line::new("heard you", number));
    }
    drop(lines);
    let end = limit("the end of the stream", answers.message()).await;
    assert!(end.unwrap().is_none());
}

#[tokio::test]
async fn a_grpc_error_arrives_with_its_code_and_message() {
    let mesh = mesh().await;
    let mut chat = mesh.as_workload("web").chat("chat").await;
    let error = chat
        .fail(Line::new("no such order: 50 % off", 5))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(error.message(), "no such order: 50 % off");
}

#[tokio::test]
async fn a_grpc_deadline_reaches_the_program() {
    let mesh = mesh().await;
    let mut chat = mesh.as_workload("web").chat("chat").await;
    let mut request = tonic::Request::new(Line::new("soon", 1));
    request.set_timeout(Duration::from_secs(30));
    request
        .metadata_mut()
        .insert("x-tenant", "green".parse().unwrap());
    chat.say(request).await.unwrap();
    let seen = mesh.seen_by("chat");
    let seen = seen.iter().find(|seen| {
        seen.headers
            .get("x-tenant")
            .is_some_and(|tenant| tenant == "green")
    });
    assert!(seen.expect("the call").headers.contains_key("grpc-timeout"));
}
