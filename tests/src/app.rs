//! Programs behind sidecars. They run in the test's process and record the requests that they receive.

mod chat;
mod http;
mod requests;
mod tcp;

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{net::TcpListener, task::JoinHandle};

use requests::RequestLog;
pub use requests::{BodyState, Request};

/// A program that listens on its own loopback port.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    seen: RequestLog,
    task: JoinHandle<()>,
}

impl App {
    /// A program that speaks HTTP/1.1, HTTP/2 with prior knowledge and WebSocket.
    ///
    /// It responds with the request as JSON (`method`, `target`, `version`, `headers`, `body`), except for some paths:
    /// `/stream` and below echo each chunk of the body as it arrives, `/status/503` responds with that status, `/trailers` with
    /// trailers, `/early` before it has read the body, `/socket` is a WebSocket that echoes.
    pub async fn http() -> Self {
        Self::serve(http::serve).await
    }

    /// A program that speaks gRPC: the service `merlon.test.v1.Chat`.
    pub async fn grpc() -> Self {
        Self::serve(chat::serve).await
    }

    /// A program that echoes bytes.
    pub async fn tcp() -> Self {
        Self::serve(tcp::echo).await
    }

    /// A server-first protocol, as of mail and database servers: sends `220 ready` on connect, then echoes.
    pub async fn tcp_server_first() -> Self {
        Self::serve(tcp::banner_and_echo).await
    }

    /// A program that accepts connections and closes them at once.
    pub async fn that_closes_connections() -> Self {
        Self::serve(tcp::close).await
    }

    async fn serve<F>(run: impl FnOnce(TcpListener, RequestLog) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        Self::serve_on(listener.into_std().expect("a listener"), run)
    }

    /// [`App::http`] on an existing listener.
    pub fn http_on(listener: std::net::TcpListener) -> Self {
        Self::serve_on(listener, http::serve)
    }

    /// [`App::grpc`] on an existing listener.
    pub fn grpc_on(listener: std::net::TcpListener) -> Self {
        Self::serve_on(listener, chat::serve)
    }

    /// [`App::tcp_server_first`] on an existing listener.
    pub fn tcp_server_first_on(listener: std::net::TcpListener) -> Self {
        Self::serve_on(listener, tcp::banner_and_echo)
    }

    // The listener's runtime must outlive the test.
    fn serve_on<F>(
        listener: std::net::TcpListener,
        run: impl FnOnce(TcpListener, RequestLog) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().expect("an address");
        let seen = RequestLog::default();
        let listener = {
            let _background = crate::runtime::enter();
            TcpListener::from_std(listener).expect("a listener")
        };
        let task = crate::runtime::spawn(run(listener, seen.clone()));
        Self {
            address,
            seen,
            task,
        }
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests (HTTP, gRPC) or connections (TCP) that it received.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.all()
    }

    /// [`App::seen`], as soon as there are more than `known`.
    pub async fn seen_more_than(&self, known: usize) -> Vec<Request> {
        self.seen.more_than(known).await
    }

    /// Stops it: its port refuses connections from now on.
    pub fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop();
    }
}
