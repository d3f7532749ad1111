//! Programs behind sidecars: they run in the test's process and remember what they saw.

mod chat;
mod http;
mod tcp;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use ::http::{HeaderMap, Method, Version};
use tokio::{net::TcpListener, task::JoinHandle};

/// A program that listens on a loopback port of its own.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    seen: RequestLog,
    task: JoinHandle<()>,
}

/// A request that a program saw, as it saw it.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// The version that it was spoken to in.
    pub version: Version,
    /// The headers.
    pub headers: HeaderMap,
}

/// What a program saw so far.
#[derive(Debug, Clone, Default)]
pub struct RequestLog(Arc<Mutex<Vec<Request>>>);

impl RequestLog {
    fn add(&self, request: Request) {
        self.lock().push(request);
    }

    /// Everything.
    pub fn all(&self) -> Vec<Request> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Request>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl App {
    /// A program that speaks HTTP/1.1, HTTP/2 with prior knowledge and WebSocket.
    ///
    /// It answers with what it saw, as JSON (`method`, `target`, `version`, `headers`, `body`), but for some paths:
    /// `/stream` gives each piece of the body back as it comes, `/status/503` answers with that status, `/trailers` with
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

    /// A program that says `220 ready` before it is asked anything, then echoes: as mail and database servers do.
    pub async fn tcp_server_first() -> Self {
        Self::serve(tcp::banner_and_echo).await
    }

    /// A program that accepts connections and closes them at once.
    pub async fn that_closes_connections() -> Self {
        Self::serve(tcp::break_off).await
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

    /// As [`App::http`], where somebody listens already.
    pub fn http_on(listener: std::net::TcpListener) -> Self {
        Self::serve_on(listener, http::serve)
    }

    /// As [`App::grpc`], where somebody listens already.
    pub fn grpc_on(listener: std::net::TcpListener) -> Self {
        Self::serve_on(listener, chat::serve)
    }

    /// As [`App::tcp_server_first`], where somebody listens already.
    pub fn tcp_server_first_on(listener: std::net::TcpListener) -> Self {
        Self::serve_on(listener, tcp::banner_and_echo)
    }

    // What the listener belongs to must outlive the test.
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests (HTTP, gRPC) or connections (TCP) that it saw.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.all()
    }

    /// Ends it: its port refuses connections from now on.
    pub fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop();
    }
}
