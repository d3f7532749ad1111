//! A gRPC program.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};

use super::requests::{self, BodyState, RequestLog};
use crate::chat::{
    Line,
    chat_server::{Chat, ChatServer},
};

struct Talker(RequestLog);

type Lines = Pin<Box<dyn Stream<Item = Result<Line, Status>> + Send>>;

pub(super) async fn serve(listener: TcpListener, seen: RequestLog) {
    // Returns when the program is stopped.
    let _ = Server::builder()
        .add_service(ChatServer::new(Talker(seen)))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await;
}

impl Talker {
    fn note<T>(&self, method: &str, request: &Request<T>) {
        self.0.add(requests::Request {
            method: http::Method::POST,
            target: format!("/merlon.test.v1.Chat/{method}"),
            version: http::Version::HTTP_2,
            headers: request.metadata().clone().into_headers(),
            body: BodyState::Open,
        });
    }
}

#[tonic::async_trait]
impl Chat for Talker {
    async fn say(&self, request: Request<Line>) -> Result<Response<Line>, Status> {
        self.note("Say", &request);
        let line = request.into_inner();
        Ok(Response::new(Line::new(
            &format!("heard {}", line.text),
            line.number,
        )))
    }

    type CountStream = Lines;

    async fn count(&self, request: Request<Line>) -> Result<Response<Lines>, Status> {
        self.note("Count", &request);
        let Line { text, number } = request.into_inner();
        let lines = futures_util::stream::iter(1..=number).map(move |n| Ok(Line::new(&text, n)));
        Ok(Response::new(lines.boxed()))
    }

    async fn collect(&self, request: Request<Streaming<Line>>) -> Result<Response<Line>, Status> {
        self.note("Collect", &request);
        let mut lines = request.into_inner();
        let mut number = 0;
        while let Some(line) = lines.message().await? {
            number += line.number;
        }
        Ok(Response::new(Line::new("sum", number)))
    }

    type TalkStream = Lines;

    async fn talk(&self, request: Request<Streaming<Line>>) -> Result<Response<Lines>, Status> {
        self.note("Talk", &request);
        let lines = request.into_inner();
        Ok(Response::new(
            lines
                .map(|line| {
                    line.map(|line| Line::new(&format!("heard {}", line.text), line.number))
                })
                .boxed(),
        ))
    }

    async fn fail(&self, request: Request<Line>) -> Result<Response<Line>, Status> {
        self.note("Fail", &request);
        let Line { text, number } = request.into_inner();
        let code = Code::from_i32(i32::try_from(number).unwrap_or_default());
        Err(Status::new(code, text))
    }
}
