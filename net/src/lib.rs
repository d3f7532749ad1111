//! HTTP for whoever watches: probes, scrapers, the API server.
#![doc = include_str!("../README.md")]

mod answer;
mod files;

use std::{collections::VecDeque, convert::Infallible, fmt::Debug, sync::Arc, time::Duration};

use axum::{Router, body::Body, serve::Listener};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, timeout},
};
use tower::ServiceExt as _;

use self::answer::Answer;
pub use self::files::allow_all_files;

/// What one listener lends to strangers.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections open at once. Default: 128. Who comes when all are taken gets the place of the oldest.
    pub at_once: usize,
    /// From the beginning of a connection, or the end of an answer, to the end of the next head. Default: 30 seconds.
    pub head: Duration,
    /// From the beginning of an answer to its end. Default: 30 seconds. Who does not take it loses the connection.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            at_once: 128,
            head: Duration::from_secs(30),
            answer: Duration::from_secs(30),
        }
    }
}

/// How large a head may be, in bytes. A probe's and a scraper's are some hundreds.
const HEAD: usize = 16 << 10;
/// How often it is told that places run out, however fast somebody takes them.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// How long answers that were begun are waited for after the end.
const FAREWELL: Duration = Duration::from_secs(10);

/// Serves HTTP/1.1 until `shutdown`, and then until what was begun is answered, for 10 seconds at most. `routes` are asked
/// for at each connection.
pub async fn serve<L>(
    mut listener: L,
    limits: Limits,
    routes: impl Fn(&L::Io) -> Router,
    shutdown: impl Future<Output = ()>,
) where
    L: Listener,
    L::Addr: Debug,
{
    // The oldest first.
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    let mut told: Option<Instant> = None;
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= limits.at_once
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
                told = Some(Instant::now());
                tracing::warn!(
                    at = listener.local_addr().ok().map(tracing::field::debug),
                    newest = ?from,
                    open = limits.at_once,
                    "too many connections of strangers at once: each new one ends the oldest"
                );
            }
        }
        let routes = routes(&stream);
        let late = Arc::new(Notify::new());
        let to_tell = Arc::clone(&late);
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (routes, late) = (routes.clone(), Arc::clone(&to_tell));
            async move {
                let answer = routes.oneshot(request).await?;
                let whole = |body: Body| Answer::new(body, limits.answer, late);
                Ok::<_, Infallible>(answer.map(whole))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let connection = graceful.watch(connection);
        let served = tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection of a stranger broke");
                },
                () = late.notified() => tracing::debug!("a stranger does not take its answer"),
            }
        });
        open.push_back(served.abort_handle());
    }
    drop(listener);
    if timeout(FAREWELL, graceful.shutdown()).await.is_err() {
        open.iter().for_each(AbortHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::{body::Bytes, routing::get};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        sync::oneshot,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET /live HTTP/1.1\r\nhost: pod\r\n\r\n";

    async fn start(limits: Limits) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let routes = |_: &TcpStream| Router::new().route("/live", get(async || "live"));
        tokio::spawn(serve(listener, limits, routes, std::future::pending()));
        here
    }

    /// What comes before the other end closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut read = Vec::new();
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut read).await;
        String::from_utf8(read).unwrap()
    }

    /// Asks for `path`, and waits for the answer. The connection stays open.
    async fn asked(stream: &mut TcpStream, path: &str, answer: &str) -> String {
        let request = format!("GET /{path} HTTP/1.1\r\nhost: pod\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(answer.as_bytes()) {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "it is closed");
        }
        String::from_utf8(read).unwrap()
    }

    #[tokio::test]
    async fn a_connection_answers_one_request_after_the_other() {
        let mut stream = TcpStream::connect(start(Limits::default()).await)
            .await
            .unwrap();
        for _ in 0..3 {
            assert!(
                asked(&mut stream, "live", "live")
                    .await
                    .starts_with("HTTP/1.1 200 ")
            );
        }
    }

    #[tokio::test]
    async fn who_does_not_end_a_head_is_not_waited_for() {
        let limits = Limits {
            head: Duration::from_millis(50),
            ..Limits::default()
        };
        let here = start(limits).await;
        for begun in [&b""[..], b"GET /li", b"GET /live HTTP/1.1\r\nhost: pod\r\n"] {
            let mut stream = TcpStream::connect(here).await.unwrap();
            stream.write_all(begun).await.unwrap();
            let said = rest(stream).await;
            assert!(!said.contains("200"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let mut stream = TcpStream::connect(start(Limits::default()).await)
            .await
            .unwrap();
        let long = [&REQUEST[..REQUEST.len() - 2], b"x: ", &[b'a'; HEAD]].concat();
        stream.write_all(&long).await.unwrap();
        let said = rest(stream).await;
        assert!(!said.contains("200"), "{said}");
    }

    #[tokio::test]
    async fn who_does_not_take_an_answer_loses_the_connection_and_who_takes_it_gets_all_of_it() {
        // More than all buffers on the way.
        let length = 32 << 20;
        let answering = async |answer: Duration| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let here = listener.local_addr().unwrap();
            let (given, let_go) = tokio::sync::mpsc::unbounded_channel();
            let large =
                async move || Body::from(Bytes::from_owner(Large(vec![b'x'; length], given)));
            let routes = Router::new().route("/live", get(large));
            let limits = Limits {
                answer,
                ..Limits::default()
            };
            let forever = std::future::pending();
            tokio::spawn(serve(listener, limits, move |_| routes.clone(), forever));
            let mut stream = TcpStream::connect(here).await.unwrap();
            let once = b"GET /live HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n";
            stream.write_all(once).await.unwrap();
            (stream, let_go)
        };
        let (deaf, mut let_go) = answering(Duration::from_millis(100)).await;
        let_go.recv().await.unwrap();
        assert!(rest(deaf).await.len() < length);
        let (asking, _) = answering(Duration::from_secs(600)).await;
        assert!(rest(asking).await.len() > length);
    }

    /// Says when it is let go of.
    struct Large(Vec<u8>, tokio::sync::mpsc::UnboundedSender<()>);

    impl AsRef<[u8]> for Large {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Large {
        fn drop(&mut self) {
            let _ = self.1.send(());
        }
    }

    #[tokio::test]
    async fn when_all_places_are_taken_the_oldest_makes_way_and_the_newest_is_answered() {
        let limits = Limits {
            at_once: 2,
            ..Limits::default()
        };
        let here = start(limits).await;
        let mut all = Vec::new();
        for _ in 0..3 {
            let mut stream = TcpStream::connect(here).await.unwrap();
            // It is taken before the next one comes.
            asked(&mut stream, "live", "live").await;
            all.push(stream);
        }
        let oldest = all.remove(0);
        assert_eq!(rest(oldest).await, "");
        for mut stream in all {
            assert!(
                asked(&mut stream, "live", "live")
                    .await
                    .starts_with("HTTP/1.1 200 ")
            );
        }
    }

    #[tokio::test]
    async fn what_was_begun_is_answered_after_the_end_and_nobody_else_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let (begun, has_begun) = oneshot::channel();
        let (finish, may_finish) = oneshot::channel::<()>();
        let both = std::sync::Mutex::new(Some((begun, may_finish)));
        let slow = async move || {
            let (begun, may_finish) = both.lock().unwrap().take().unwrap();
            begun.send(()).unwrap();
            may_finish.await.unwrap();
            "done"
        };
        let slow = Arc::new(slow);
        let routes = Router::new()
            .route("/live", get(async move || slow().await))
            .route("/other", get(async || "there"));
        let (end, ended) = oneshot::channel::<()>();
        let ended = async {
            let _ = ended.await;
        };
        let served = tokio::spawn(serve(
            listener,
            Limits::default(),
            move |_| routes.clone(),
            ended,
        ));
        let mut asking = TcpStream::connect(here).await.unwrap();
        asking.write_all(REQUEST).await.unwrap();
        has_begun.await.unwrap();
        let mut idle = TcpStream::connect(here).await.unwrap();
        asked(&mut idle, "other", "there").await;
        end.send(()).unwrap();
        // It has seen the end when it closes what nobody uses.
        assert_eq!(rest(idle).await, "");
        finish.send(()).unwrap();
        assert!(rest(asking).await.ends_with("done"));
        served.await.unwrap();
        assert!(TcpStream::connect(here).await.is_err());
    }
}
