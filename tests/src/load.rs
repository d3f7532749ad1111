//! Continuous traffic during a test, counted at both ends.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    chat::Line,
    client::{Client, connect},
    wait,
};

/// Requests at a constant rate regardless of their outcome, one gRPC stream and one TCP session.
#[derive(Debug, Clone)]
pub struct Load {
    client: Client,
    http: Vec<String>,
    chat: Option<String>,
    tcp: Option<SocketAddr>,
}

/// Running traffic.
#[derive(Debug)]
pub struct Running {
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

/// The counts and failures of the traffic.
#[derive(Debug, Default)]
pub struct Tally {
    begun: Mutex<Option<Instant>>,
    sent: AtomicU64,
    answered: AtomicU64,
    lines: AtomicU64,
    echoes: AtomicU64,
    failures: Mutex<Vec<Failure>>,
}

/// A failed request or session.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The number of the request; none for a session.
    pub number: Option<u64>,
    /// What was sent, and the error.
    pub what: String,
    /// What kind of failure it is.
    pub kind: FailureKind,
}

/// The kinds of failure, as the client sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection: the port refused it.
    Refused,
    /// The connection ended before the end of the answer.
    Broken,
    /// An answer other than 200.
    Answer,
    /// No answer in time, or an error of a session.
    Other,
}

/// Requests on new connections, per second.
const NEW: u64 = 60;
/// Keep-alive connections, and requests per second on each of them.
const KEEP_ALIVE: u64 = 8;
const KEEP_ALIVE_RATE: u64 = 20;
/// Lines on the gRPC stream and messages on the TCP session, per second.
const SESSION: u64 = 10;

/// Total requests per second.
pub const RATE: u64 = NEW + KEEP_ALIVE * KEEP_ALIVE_RATE;

impl Load {
    /// Load from this client.
    pub fn from(client: Client) -> Self {
        Self {
            client,
            http: Vec::new(),
            chat: None,
            tcp: None,
        }
    }

    /// Sends `GET /load/<number>` to this service.
    #[must_use]
    pub fn http(mut self, service: &str) -> Self {
        self.http.push(service.to_owned());
        self
    }

    /// Keeps one stream to this gRPC service open.
    #[must_use]
    pub fn grpc_stream(mut self, service: &str) -> Self {
        self.chat = Some(service.to_owned());
        self
    }

    /// Keeps one connection through this address to an echo program open.
    #[must_use]
    pub fn tcp_session(mut self, outbound: SocketAddr) -> Self {
        self.tcp = Some(outbound);
        self
    }

    /// Starts the traffic, and returns when each kind has succeeded once.
    pub async fn begin(self) -> Running {
        let tally = Arc::new(Tally::default());
        *tally.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for service in &self.http {
            let worker = Worker::new(&self.client, service, &tally, &stop);
            tasks.spawn(worker.clone().new_connections());
            for _ in 0..KEEP_ALIVE {
                tasks.spawn(worker.clone().keep_alive_connection());
            }
        }
        if let Some(service) = &self.chat {
            tasks.spawn(Worker::new(&self.client, service, &tally, &stop).stream());
        }
        if let Some(address) = self.tcp {
            tasks.spawn(Worker::new(&self.client, "", &tally, &stop).session(address));
        }
        let running = Running { tally, stop, tasks };
        let enabled = (
            !self.http.is_empty(),
            self.chat.is_some(),
            self.tcp.is_some(),
        );
        wait::until("load flows", async || {
            let Tally {
                answered,
                lines,
                echoes,
                ..
            } = &*running.tally;
            let flows =
                |enabled: bool, count: &AtomicU64| !enabled || count.load(Ordering::Relaxed) > 0;
            flows(enabled.0, answered) && flows(enabled.1, lines) && flows(enabled.2, echoes)
        })
        .await;
        running
    }
}

impl Running {
    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.tally.age()
    }

    /// Lets it run until this age.
    pub async fn until_age(&self, age: Duration) {
        tokio::time::sleep(age.saturating_sub(self.age())).await;
    }

    /// The number of requests sent so far, which is the number of the next one.
    pub fn sent(&self) -> u64 {
        self.tally.sent()
    }

    /// The number of successful requests so far.
    pub fn answered(&self) -> u64 {
        self.tally.answered.load(Ordering::Relaxed)
    }

    /// The failures so far.
    pub fn failures(&self) -> Vec<Failure> {
        self.tally.failures()
    }

    /// Stops sending, waits for open requests, and returns the result.
    pub async fn end(mut self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        wait::limit("the end of all open requests and sessions", async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.expect("a task that does not panic");
            }
        })
        .await;
        self.tally
    }
}

impl Tally {
    /// The number of requests that were sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The number of requests that got 200.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// The number of lines received on the gRPC stream.
    pub fn lines(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    /// The number of messages received on the TCP session.
    pub fn echoes(&self) -> u64 {
        self.echoes.load(Ordering::Relaxed)
    }

    /// The failures.
    pub fn failures(&self) -> Vec<Failure> {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Asserts that nothing failed.
    #[track_caller]
    pub fn assert_no_failures(&self) {
        let failures = self.failures();
        let shown: Vec<_> = failures.iter().take(10).collect();
        assert!(
            failures.is_empty(),
            "{} of {} failed: {shown:#?}",
            failures.len(),
            self.sent()
        );
        assert_eq!(self.sent(), self.answered());
    }

    fn age(&self) -> Duration {
        let begun = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.map(|begun| begun.elapsed()).unwrap_or_default()
    }

    fn session_failed(&self, what: String) {
        self.failed(Failure {
            number: None,
            what,
            kind: FailureKind::Other,
        });
    }

    fn failed(&self, failure: Failure) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(failure);
    }
}

#[derive(Debug, Clone)]
struct Worker {
    to: SocketAddr,
    host: String,
    service: String,
    client: Client,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
}

type Sender = SendRequest<Empty<bytes::Bytes>>;

impl Worker {
    fn new(client: &Client, service: &str, tally: &Arc<Tally>, stop: &Arc<AtomicBool>) -> Self {
        Self {
            to: client.address(),
            host: client.host(service),
            service: service.to_owned(),
            client: client.clone(),
            tally: Arc::clone(tally),
            stop: Arc::clone(stop),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Open loop: a slow request does not delay the next one.
    async fn new_connections(self) {
        let mut open = JoinSet::new();
        let mut tick = every(NEW);
        while !self.stopped() {
            tick.tick().await;
            let this = self.clone();
            open.spawn(async move {
                let number = this.next();
                let outcome = match this.dial().await {
                    Ok(mut sender) => this.get(&mut sender, number).await,
                    Err(failed) => Err(failed),
                };
                this.count("a new connection", number, outcome);
            });
            while open.try_join_next().is_some() {}
        }
        while open.join_next().await.is_some() {}
    }

    async fn keep_alive_connection(self) {
        let mut tick = every(KEEP_ALIVE_RATE);
        let mut idle: Option<Sender> = None;
        while !self.stopped() {
            tick.tick().await;
            // The proxy may close a keep-alive connection between two requests; that is not a failed request.
            if idle.as_ref().is_some_and(SendRequest::is_closed) {
                idle = None;
            }
            let number = self.next();
            let sender = match idle.take() {
                Some(sender) => Ok(sender),
                None => self.dial().await,
            };
            let outcome = match sender {
                Ok(mut sender) => {
                    let outcome = self.get(&mut sender, number).await;
                    idle = outcome.is_ok().then_some(sender);
                    outcome
                }
                Err(error) => Err(error),
            };
            self.count("a keep-alive connection", number, outcome);
        }
    }

    fn next(&self) -> u64 {
        self.tally.sent.fetch_add(1, Ordering::Relaxed)
    }

    fn count(&self, on: &str, number: u64, outcome: Result<(), (FailureKind, String)>) {
        match outcome {
            Ok(()) => {
                self.tally.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err((kind, error)) => self.tally.failed(Failure {
                number: Some(number),
                what: format!("/load/{number} on {on}: {error}"),
                kind,
            }),
        }
    }

    async fn dial(&self) -> Result<Sender, (FailureKind, String)> {
        let stream = TcpStream::connect(self.to).await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => FailureKind::Refused,
                io::ErrorKind::ConnectionReset => FailureKind::Broken,
                _ => FailureKind::Other,
            };
            (kind, error.to_string())
        })?;
        // Fails if the peer has reset the connection already.
        stream.set_nodelay(true).map_err(broken)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn get(&self, sender: &mut Sender, number: u64) -> Result<(), (FailureKind, String)> {
        timeout(wait::TIMEOUT, self.get_without_limit(sender, number))
            .await
            .unwrap_or_else(|_| {
                let what = format!("no response within {:?}", wait::TIMEOUT);
                Err((FailureKind::Other, what))
            })
    }

    async fn get_without_limit(
        &self,
        sender: &mut Sender,
        number: u64,
    ) -> Result<(), (FailureKind, String)> {
        let request = Request::get(format!("/load/{number}"))
            .header(header::HOST, &self.host)
            .body(Empty::new())
            .map_err(|error| (FailureKind::Other, error.to_string()))?;
        sender.ready().await.map_err(broken)?;
        let response = sender.send_request(request).await.map_err(|error| {
            // An answer that is not HTTP is no broken connection.
            let kind = if error.is_parse() {
                FailureKind::Other
            } else {
                FailureKind::Broken
            };
            (kind, format!("{error:?}"))
        })?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(broken)?;
        if status == StatusCode::OK {
            Ok(())
        } else {
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            Err((FailureKind::Answer, format!("{status} {body}")))
        }
    }

    async fn stream(self) {
        let mut chat = self.client.chat(&self.service).await;
        let (lines, outgoing) = mpsc::channel(1);
        let answers = match chat.talk(ReceiverStream::new(outgoing)).await {
            Ok(answers) => answers,
            Err(status) => {
                return self
                    .tally
                    .session_failed(format!("the gRPC stream did not open: {status}"));
            }
        };
        let mut answers = answers.into_inner();
        let mut tick = every(SESSION);
        let mut number = 0;
        while !self.stopped() {
            tick.tick().await;
            number += 1;
            if lines.send(Line::new("load", number)).await.is_err() {
                return self
                    .tally
                    .session_failed("the gRPC stream is closed".to_owned());
            }
            match answers.next().await {
                Some(Ok(line)) if line.number == number => {
                    self.tally.lines.fetch_add(1, Ordering::Relaxed);
                }
                other => {
                    return self
                        .tally
                        .session_failed(format!("line {number} of the gRPC stream: {other:?}"));
                }
            }
        }
        drop(lines);
        if let Some(more) = answers.next().await {
            self.tally
                .session_failed(format!("the end of the gRPC stream: {more:?}"));
        }
    }

    async fn session(self, address: SocketAddr) {
        let mut stream = connect(address).await;
        let mut tick = every(SESSION);
        let mut number = 0_u64;
        while !self.stopped() {
            tick.tick().await;
            number += 1;
            let sent = number.to_be_bytes();
            let mut echo = [0; 8];
            let exchange = async {
                stream.write_all(&sent).await?;
                stream.read_exact(&mut echo).await
            };
            match exchange.await {
                Ok(_) if echo == sent => {
                    self.tally.echoes.fetch_add(1, Ordering::Relaxed);
                }
                other => {
                    return self
                        .tally
                        .session_failed(format!("message {number} of the TCP session: {other:?}"));
                }
            }
        }
    }
}

fn broken(error: impl std::fmt::Display) -> (FailureKind, String) {
    (FailureKind::Broken, error.to_string())
}

fn every(per_second: u64) -> tokio::time::Interval {
    let mut ticks = interval(Duration::from_micros(1_000_000 / per_second));
    // After a pause of the machine, missed requests are sent at once to keep the rate.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}
