//! Tables of refusals. Each row asserts the same five things: the status, the reason, a decision id, that the program
//! received nothing of the request, and exactly one line in the access log of the proxy that refused it.

use std::{
    fmt,
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use http::StatusCode;

use crate::{
    app::App,
    client::{Call, Client, Reply},
    mesh::{LogLine, Mesh, PeerCall, Sidecar},
    wait,
};

/// The proxy that must refuse the requests of a table, and the program that must not receive them.
#[derive(Debug, Clone, Copy)]
pub struct Refusals<'a> {
    proxy: &'a Sidecar,
    program: &'a App,
}

/// A request that must be refused.
#[derive(Debug)]
pub enum Attempt {
    /// A request of a program, through its sidecar or directly to a listener.
    Call(Box<Call>),
    /// A request of a peer that has no proxy of its own.
    Peer(Box<PeerCall>),
    /// Bytes on a connection that the proxy must end.
    Raw {
        /// The listener.
        to: SocketAddr,
        /// The bytes.
        bytes: Vec<u8>,
        /// The path that no request which the program receives may start with. Tests that share a mesh use different paths.
        path: String,
    },
}

/// A refused request.
#[derive(Debug)]
pub struct Refused {
    /// The response.
    pub reply: Reply,
    /// The line of the access log.
    pub log: LogLine,
}

/// Marks the requests of tables, so that a program's records show which it received.
const MARKER: &str = "x-must-be-refused";
static ATTEMPTS: AtomicU32 = AtomicU32::new(0);

impl From<Call> for Attempt {
    fn from(call: Call) -> Self {
        Self::Call(Box::new(call))
    }
}

impl From<PeerCall> for Attempt {
    fn from(call: PeerCall) -> Self {
        Self::Peer(Box::new(call))
    }
}

impl Attempt {
    /// Bytes for the listener at `to`. The program must receive no request whose path starts with `path`.
    pub fn raw(to: SocketAddr, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self::Raw {
            to,
            bytes: bytes.into(),
            path: path.to_owned(),
        }
    }
}

impl Mesh {
    /// Asserts that the proxy of `workload` refuses each request of `table` with this status and reason: see [`Refusals`].
    pub async fn refuses<N: fmt::Display, A: Into<Attempt>>(
        &self,
        workload: &str,
        table: impl IntoIterator<Item = (N, A, u16, &str)>,
    ) -> Vec<Refused> {
        Refusals::by(self.sidecar(workload), self.app(workload))
            .each(table)
            .await
    }
}

impl<'a> Refusals<'a> {
    /// Requests that `proxy` refuses, and that `program` does not receive.
    pub fn by(proxy: &'a Sidecar, program: &'a App) -> Self {
        Self { proxy, program }
    }

    /// Sends each request of the table and asserts its refusal. Returns the responses and log lines in the same order.
    ///
    /// # Panics
    /// With the name of the row that is not refused as it says.
    pub async fn each<N: fmt::Display, A: Into<Attempt>>(
        self,
        table: impl IntoIterator<Item = (N, A, u16, &str)>,
    ) -> Vec<Refused> {
        let mut refused = Vec::new();
        for (name, attempt, status, reason) in table {
            let name = name.to_string();
            refused.push(self.one(&name, attempt.into(), status, reason).await);
        }
        assert!(!refused.is_empty(), "a table without rows");
        refused
    }

    async fn one(self, name: &str, attempt: Attempt, status: u16, reason: &str) -> Refused {
        let marker = ATTEMPTS.fetch_add(1, Ordering::Relaxed).to_string();
        let (reply, path) = match attempt {
            Attempt::Call(call) => (call.header(MARKER, &marker).send().await, None),
            Attempt::Peer(call) => (call.header(MARKER, &marker).send().await, None),
            Attempt::Raw { to, bytes, path } => {
                let answer = Client::new(to, "").raw(&bytes).await;
                (Ok(Reply::from_http1(&answer)), Some(path))
            }
        };
        let reply = reply.unwrap_or_else(|error| panic!("{name}: no response: {error}"));
        let problem = reply.json();
        let found = (reply.status.as_u16(), problem["reason"].as_str());
        assert_eq!(found, (status, Some(reason)), "{name}: {reply:?}");
        reply.is_problem(StatusCode::from_u16(status).expect("a status"), reason);
        let log = self.line_of(name, &reply).await;
        log.has("status", &status.to_string()).has("reason", reason);
        for request in self.program.seen() {
            let marked = request.headers.get(MARKER).is_some_and(|m| *m == marker);
            let is_it = match &path {
                Some(path) => marked || request.target.starts_with(path.as_str()),
                None => marked,
            };
            assert!(!is_it, "{name}: the program received {request:?}");
        }
        Refused { reply, log }
    }

    /// The only line of the proxy's log for this response.
    async fn line_of(self, name: &str, reply: &Reply) -> LogLine {
        let id = reply.decision_id();
        let lines = || {
            let mut lines = self.proxy.log();
            lines.retain(|line| line.text("decision_id") == id);
            lines
        };
        let what = format!("the log has a line for {name}: {reply:?}");
        wait::until(what, async || !lines().is_empty()).await;
        let mut lines = lines();
        assert_eq!(lines.len(), 1, "{name}: {lines:?}");
        lines.remove(0)
    }
}
