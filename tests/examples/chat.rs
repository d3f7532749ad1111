//! A gRPC program for pods, and its client.
//!
//! `chat serve PORT` prints the method of each call. `chat say|count|fail URL NUMBER` calls a method and prints a line for
//! each message of the response, then `status CODE`.

use std::{io::Write as _, net::TcpListener, process::ExitCode};

use merlon_tests::{
    app::App,
    chat::{ChatClient, Line},
};
use tonic::Status;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parts: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["serve", port] => serve(port).await,
        [method, url, number] => {
            let number = number.parse().unwrap_or(0);
            let code = match call(method, url, number).await {
                Ok(()) => 0,
                Err(status) => i32::from(status.code()),
            };
            print(&format!("status {code}"));
            ExitCode::SUCCESS
        }
        _ => ExitCode::FAILURE,
    }
}

async fn serve(port: &str) -> ExitCode {
    let port = port.parse().unwrap_or(9090);
    let Ok(listener) = TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port)) else {
        return ExitCode::FAILURE;
    };
    if listener.set_nonblocking(true).is_err() {
        return ExitCode::FAILURE;
    }
    let app = App::grpc_on(listener);
    let mut printed = 0;
    loop {
        let seen = app.seen_more_than(printed).await;
        for request in seen.iter().skip(printed) {
            print(&request.target);
        }
        printed = seen.len();
    }
}

async fn call(method: &str, url: &str, number: u64) -> Result<(), Status> {
    let client = ChatClient::connect(url.to_owned()).await;
    let mut client = client.map_err(|error| Status::unknown(error.to_string()))?;
    let line = Line::new("hello", number);
    match method {
        "say" => print(&client.say(line).await?.into_inner().text),
        "count" => {
            let mut lines = client.count(line).await?.into_inner();
            while let Some(line) = lines.message().await? {
                print(&format!("{} {}", line.text, line.number));
            }
        }
        _ => drop(client.fail(line).await?),
    }
    Ok(())
}

fn print(line: &str) {
    // The reader may have exited.
    let _ = writeln!(std::io::stdout(), "{line}");
}
