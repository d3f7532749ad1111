//! The access log when its reader is too slow.

use std::{
    io::{BufRead as _, BufReader},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use merlon_tests::{Client, app::App, limit, mesh::Standalone, until};

use super::standalone::OPEN_READS;

/// More than the pipe and the proxy's queue hold, at 7 KiB a line.
const REQUESTS: usize = 2_000;

#[tokio::test]
async fn lines_that_no_reader_takes_are_dropped_and_counted_and_requests_continue() {
    let app = App::http().await;
    let proxy = Standalone::sidecar_of("orders", &app, OPEN_READS);
    let output = proxy.proxy().pipe_output();
    let proxy = proxy.start().await;
    let client = Client::new(proxy.proxy().inbound(), "shop");

    let (mut sender, connection) = http1::handshake(TokioIo::new(client.tcp().await))
        .await
        .unwrap();
    tokio::spawn(connection);
    let target = format!("/open/{}", "x".repeat(7_000));
    for _ in 0..REQUESTS {
        let request = Request::get(&target)
            .header(header::HOST, client.host("orders"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        limit("the connection", sender.ready()).await.unwrap();
        let response = limit("a response", sender.send_request(request)).await;
        let response = response.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        limit("its body", response.into_body().collect())
            .await
            .unwrap();
    }
    assert_eq!(app.seen().len(), REQUESTS);

    // Once a reader takes them, the lines that were kept arrive, and later lines follow.
    let lines = Arc::new(Mutex::new(Vec::new()));
    let read = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            read.lock().unwrap().push(line.unwrap());
        }
    });
    let mut requests = REQUESTS;
    until("later lines follow", async || {
        client.get("orders", "/open/after").await.is_ok();
        requests += 1;
        let lines = lines.lock().unwrap();
        lines.iter().any(|line| line.contains("/open/after"))
    })
    .await;
    let dropped = async || {
        let name = "merlon_access_log_dropped_lines_total";
        proxy.proxy().metric(name, "").await
    };
    until("each line is either written or counted", async || {
        let written = lines.lock().unwrap().len();
        written as f64 + dropped().await == requests as f64
    })
    .await;
    assert!(dropped().await > 0.0);
    for line in lines.lock().unwrap().iter() {
        serde_json::from_str::<serde_json::Value>(line).expect("a whole line");
    }
}
