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

/// Everything that arrives until the server closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut read = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut read).await;
    String::from_utf8(read).unwrap()
}

/// Requests `path` and waits for the response. The connection stays open.
async fn get_on(stream: &mut TcpStream, path: &str, answer: &str) -> String {
    let request = format!("GET /{path} HTTP/1.1\r\nhost: pod\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(answer.as_bytes()) {
        assert_ne!(
            stream.read_buf(&mut read).await.unwrap(),
            0,
            "the connection is closed"
        );
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
            get_on(&mut stream, "live", "live")
                .await
                .starts_with("HTTP/1.1 200 ")
        );
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_in_time_closes_the_connection() {
    let limits = Limits {
        head: Duration::from_millis(50),
        ..Limits::default()
    };
    let here = start(limits).await;
    for begun in [&b""[..], b"GET /li", b"GET /live HTTP/1.1\r\nhost: pod\r\n"] {
        let mut stream = TcpStream::connect(here).await.unwrap();
        stream.write_all(begun).await.unwrap();
        let text = rest(stream).await;
        assert!(!text.contains("200"), "{text}");
    }
}

#[tokio::test]
async fn a_head_above_the_size_limit_is_refused() {
    // Only its size can be the reason.
    let limits = Limits {
        head: Duration::from_secs(3_600),
        ..Limits::default()
    };
    let mut stream = TcpStream::connect(start(limits).await).await.unwrap();
    let begun = &REQUEST[..REQUEST.len() - 2];
    let long = [
        begun,
        b"connection: close\r\nx: ",
        &[b'a'; HEAD],
        b"\r\n\r\n",
    ]
    .concat();
    stream.write_all(&long).await.unwrap();
    let text = rest(stream).await;
    assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
}

#[tokio::test]
async fn a_client_that_does_not_read_the_response_is_disconnected_and_one_that_reads_gets_all_of_it()
 {
    // More than the socket buffers hold.
    let length = 32 << 20;
    let answering = async |answer: Duration| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let (given, let_go) = tokio::sync::mpsc::unbounded_channel();
        let large = async move || Body::from(Bytes::from_owner(Large(vec![b'x'; length], given)));
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

/// Reports when it is dropped.
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
async fn at_the_connection_limit_the_oldest_is_closed_and_the_newest_is_served() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let here = start(limits).await;
    let mut all = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(here).await.unwrap();
        // It is accepted before the next one connects.
        get_on(&mut stream, "live", "live").await;
        all.push(stream);
    }
    let oldest = all.remove(0);
    assert_eq!(rest(oldest).await, "");
    for mut stream in all {
        assert!(
            get_on(&mut stream, "live", "live")
                .await
                .starts_with("HTTP/1.1 200 ")
        );
    }
}

/// A writer that keeps the log.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn count(&self, event: &str) -> usize {
        let log = self.0.lock().unwrap();
        String::from_utf8_lossy(&log).matches(event).count()
    }
}

#[tokio::test]
async fn closed_connections_are_logged_at_most_once_a_minute_and_only_as_many_as_allowed_stay_open()
{
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
    let _logged = tracing::subscriber::set_default(subscriber.finish());
    let hour = Duration::from_secs(3_600);
    let limits = Limits {
        connections: 2,
        head: hour,
        answer: hour,
    };
    let here = start(limits).await;
    let mut open = VecDeque::new();
    let event = "connections.limit_reached";
    for expected in [1, 2] {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(here).await.unwrap();
            get_on(&mut stream, "live", "live").await;
            open.push_back(stream);
            if open.len() > limits.connections {
                let oldest = open.pop_front().unwrap();
                assert_eq!(rest(oldest).await, "");
            }
        }
        assert_eq!(log.count(event), expected);
        tokio::time::pause();
        tokio::time::advance(LOG_EVERY).await;
        tokio::time::resume();
    }
    for mut stream in open {
        get_on(&mut stream, "live", "live").await;
    }
}

#[tokio::test]
async fn shutdown_finishes_responses_in_progress_and_closes_idle_connections() {
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
    get_on(&mut idle, "other", "there").await;
    end.send(()).unwrap();
    // The server has seen the shutdown when it closes the idle connection.
    assert_eq!(rest(idle).await, "");
    finish.send(()).unwrap();
    assert!(rest(asking).await.ends_with("done"));
    served.await.unwrap();
    assert!(TcpStream::connect(here).await.is_err());
}
