//! One JSON line per request, written by a separate thread: a slow disk or pipe never delays a request.

use std::{
    cell::RefCell,
    fmt::Write as _,
    io::{self, Write},
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use super::metrics::worker::WorkerMetrics;
use crate::limits::Limits;

/// The queue to the writer thread. Cheap to clone; one per process.
#[derive(Debug, Clone)]
pub struct AccessLog {
    blocks: SyncSender<Vec<u8>>,
    unwritten: Arc<Unwritten>,
}

static STDOUT: OnceLock<AccessLog> = OnceLock::new();

/// A worker queues a block when it reaches this size, or when the oldest line in it is [`FLUSH_AFTER`] old.
const BLOCK: usize = 32 << 10;
const FLUSH_AFTER: Duration = Duration::from_millis(20);

impl AccessLog {
    /// The log on standard output.
    pub fn stdout(limits: &Limits) -> Self {
        STDOUT
            .get_or_init(|| Self::to(io::stdout(), limits))
            .clone()
    }

    /// Waits until the log on standard output has written all queued lines. The process calls it before it exits, because
    /// the exit ends the writer. At most `limit`: a reader that has stopped reading must not keep the process.
    pub fn wait_until_stdout_is_written(limit: Duration) {
        if let Some(log) = STDOUT.get() {
            log.wait_until_written(limit);
        }
    }

    fn wait_until_written(&self, limit: Duration) -> bool {
        self.unwritten.wait_for_none(limit)
    }

    /// A log that is written to `out`. The thread ends when all clones are dropped.
    pub fn to(out: impl Write + Send + 'static, limits: &Limits) -> Self {
        let (blocks, incoming) = sync_channel(limits.access_log_queue);
        let unwritten = Arc::new(Unwritten::default());
        let counted = Arc::clone(&unwritten);
        // Without the thread every block is dropped and counted; requests are served.
        let _ = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_blocks(out, &incoming, &counted));
        Self { blocks, unwritten }
    }

    /// Queues a block. When the queue is full, its lines are dropped and counted: a worker must not wait.
    fn send(&self, block: Vec<u8>, metrics: &WorkerMetrics) {
        self.unwritten.add();
        if let Err(TrySendError::Full(block) | TrySendError::Disconnected(block)) =
            self.blocks.try_send(block)
        {
            self.unwritten.remove();
            let lines = block.iter().filter(|byte| **byte == b'\n').count();
            metrics.access_log_dropped.add(lines as u64);
        }
    }
}

fn write_blocks(mut out: impl Write, incoming: &Receiver<Vec<u8>>, unwritten: &Unwritten) {
    while let Ok(block) = incoming.recv() {
        // A closed pipe must not end the proxy, and there is no other place to report it.
        let _ = out.write_all(&block).and_then(|()| out.flush());
        unwritten.remove();
    }
}

/// The number of blocks that are queued or being written.
#[derive(Debug, Default)]
struct Unwritten {
    blocks: Mutex<usize>,
    none: Condvar,
}

impl Unwritten {
    fn add(&self) {
        *self.blocks.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn remove(&self) {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        *blocks -= 1;
        if *blocks == 0 {
            self.none.notify_all();
        }
    }

    /// Whether there was none within `limit`.
    fn wait_for_none(&self, limit: Duration) -> bool {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .none
            .wait_timeout_while(blocks, limit, |blocks| *blocks > 0);
        let (blocks, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *blocks == 0
    }
}

/// The line buffer of one worker. Not `Send`: no lock.
#[derive(Debug)]
pub(crate) struct WorkerLog {
    log: AccessLog,
    metrics: Arc<WorkerMetrics>,
    block: Rc<RefCell<Vec<u8>>>,
}

impl WorkerLog {
    pub(crate) fn new(log: AccessLog, metrics: Arc<WorkerMetrics>) -> Self {
        Self {
            log,
            metrics,
            block: Rc::default(),
        }
    }

    pub(crate) fn write(&self, line: &Line<'_>) {
        let mut block = self.block.borrow_mut();
        let first = block.is_empty();
        line.append_to(&mut block);
        if block.len() >= BLOCK {
            self.log.send(std::mem::take(&mut *block), &self.metrics);
        } else if first {
            drop(block);
            let (log, block) = (self.log.clone(), Rc::clone(&self.block));
            let metrics = Arc::clone(&self.metrics);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(FLUSH_AFTER).await;
                let lines = std::mem::take(&mut *block.borrow_mut());
                if !lines.is_empty() {
                    log.send(lines, &metrics);
                }
            });
        }
    }

    /// Queues the remaining lines when the worker ends.
    pub(crate) fn flush(&self) {
        let lines = std::mem::take(&mut *self.block.borrow_mut());
        if !lines.is_empty() {
            self.log.send(lines, &self.metrics);
        }
    }
}

/// The content of one line. Never contains a token, a cookie or a query.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) at: jiff::Timestamp,
    pub(crate) trace_id: Option<u128>,
    pub(crate) decision_id: Option<crate::telemetry::decision_log::DecisionId>,
    pub(crate) direction: &'static str,
    pub(crate) src: Option<&'a str>,
    pub(crate) src_address: Option<SocketAddr>,
    pub(crate) dst: Option<&'a str>,
    pub(crate) protocol: &'static str,
    pub(crate) method: Option<&'a str>,
    pub(crate) host: Option<&'a str>,
    pub(crate) path: Option<&'a str>,
    pub(crate) route: Option<&'a str>,
    pub(crate) user: Option<&'a str>,
    pub(crate) status: u16,
    pub(crate) reason: Option<&'a str>,
    pub(crate) cause: Option<&'a str>,
    pub(crate) policy: Option<&'a merlon_config::snapshot::PolicyName>,
    pub(crate) snapshot: Option<&'a str>,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) duration: Duration,
    pub(crate) aborted: bool,
}

impl Line<'_> {
    pub(crate) fn append_to(&self, block: &mut Vec<u8>) {
        let mut out = Json { out: block };
        // Writing to memory does not fail.
        let _ = out.line(self);
    }
}

struct Json<'a> {
    out: &'a mut Vec<u8>,
}

impl Json<'_> {
    fn line(&mut self, line: &Line<'_>) -> std::fmt::Result {
        write!(self.raw(), "{{\"ts\":\"{:.3}\"", line.at)?;
        if let Some(trace) = line.trace_id {
            write!(self.raw(), ",\"trace_id\":\"{trace:032x}\"")?;
        }
        if let Some(id) = line.decision_id {
            write!(self.raw(), ",\"decision_id\":\"{id}\"")?;
        }
        self.text("direction", Some(line.direction))?;
        self.text("src", line.src)?;
        if let Some(address) = line.src_address {
            write!(self.raw(), ",\"src_address\":\"{address}\"")?;
        }
        self.text("dst", line.dst)?;
        self.text("protocol", Some(line.protocol))?;
        self.text("method", line.method)?;
        self.text("host", line.host)?;
        self.text("path", line.path)?;
        self.text("route", line.route)?;
        self.text("user", line.user)?;
        write!(self.raw(), ",\"status\":{}", line.status)?;
        self.text("reason", line.reason)?;
        self.text("cause", line.cause)?;
        if let Some(policy) = line.policy {
            // Policy names contain no byte that needs an escape, except in an `@id`.
            self.text("policy", Some(&policy.to_string()))?;
        }
        self.text("snapshot", line.snapshot)?;
        if let Some(upstream) = line.upstream {
            write!(self.raw(), ",\"upstream\":\"{upstream}\"")?;
        }
        let millis = line.duration.as_secs_f64() * 1e3;
        write!(
            self.raw(),
            ",\"bytes_in\":{},\"bytes_out\":{},\"duration_ms\":{millis:.3}",
            line.bytes_in,
            line.bytes_out
        )?;
        if line.aborted {
            self.raw().write_str(",\"aborted\":true")?;
        }
        self.raw().write_str("}\n")
    }

    fn raw(&mut self) -> Raw<'_> {
        Raw(self.out)
    }

    /// A member. Escapes control characters, since clients choose the value (CWE-117).
    fn text(&mut self, name: &str, value: Option<&str>) -> std::fmt::Result {
        let Some(value) = value else { return Ok(()) };
        write!(self.raw(), ",\"{name}\":\"")?;
        for character in value.chars() {
            match character {
                '"' => self.out.extend_from_slice(b"\\\""),
                '\\' => self.out.extend_from_slice(b"\\\\"),
                // Terminals also interpret C1 controls and bidirectional overrides.
                control if control.is_control() || matches!(control, '\u{2028}'..='\u{202e}') => {
                    write!(self.raw(), "\\u{:04x}", u32::from(control))?;
                }
                other => {
                    let mut utf8 = [0; 4];
                    self.out
                        .extend_from_slice(other.encode_utf8(&mut utf8).as_bytes());
                }
            }
        }
        self.out.push(b'"');
        Ok(())
    }
}

struct Raw<'a>(&'a mut Vec<u8>);

impl std::fmt::Write for Raw<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn line<'a>() -> Line<'a> {
        Line {
            at: "2026-11-23T10:00:00.5Z".parse().unwrap(),
            trace_id: Some(7),
            decision_id: None,
            direction: "inbound",
            src: None,
            src_address: None,
            dst: None,
            protocol: "h2",
            method: Some("GET"),
            host: None,
            path: Some("/a"),
            route: None,
            user: None,
            status: 200,
            reason: None,
            cause: None,
            policy: None,
            snapshot: None,
            upstream: None,
            bytes_in: 1,
            bytes_out: 2,
            duration: Duration::from_micros(1500),
            aborted: false,
        }
    }

    #[test]
    fn the_readme_lists_exactly_the_fields_of_a_line() {
        let id = "1a2b3c4d-0g5".parse().unwrap();
        let address = Some("127.0.0.1:80".parse().unwrap());
        let text = Some("x");
        let policy = "shop/orders#read".parse().unwrap();
        let mut block = Vec::new();
        Line {
            decision_id: Some(id),
            src: text,
            src_address: address,
            dst: text,
            host: text,
            route: text,
            user: text,
            reason: text,
            cause: text,
            policy: Some(&policy),
            snapshot: text,
            upstream: address,
            aborted: true,
            ..line()
        }
        .append_to(&mut block);
        let value: serde_json::Value = serde_json::from_slice(&block).unwrap();
        let written: BTreeSet<_> = value.as_object().unwrap().keys().cloned().collect();
        let readme = include_str!("../../README.md");
        let (_, section) = readme.split_once("\n### The access log\n").unwrap();
        let rows = section.lines().skip_while(|line| !line.starts_with("|---"));
        let rows = rows.skip(1).take_while(|line| line.starts_with('|'));
        let listed: BTreeSet<_> = rows
            .filter_map(|row| row.split('|').nth(1))
            .flat_map(|fields| fields.split('`').skip(1).step_by(2))
            .map(str::to_owned)
            .collect();
        assert_eq!(written, listed);
    }

    #[test]
    fn a_line_is_one_json_object() {
        let mut block = Vec::new();
        line().append_to(&mut block);
        let value: serde_json::Value = serde_json::from_slice(&block).unwrap();
        assert_eq!(value["ts"], "2026-11-23T10:00:00.500Z");
        assert_eq!(value["trace_id"], "00000000000000000000000000000007");
        assert_eq!(value["duration_ms"], 1.5);
        assert_eq!(value["status"], 200);
    }

    #[test]
    fn control_characters_of_a_client_do_not_break_the_line() {
        let mut block = Vec::new();
        let user = "a\"\\\n\r\u{1b}[31m\u{9b}\u{202e}é";
        Line {
            user: Some(user),
            ..line()
        }
        .append_to(&mut block);
        assert_eq!(block.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert!(block.iter().all(|byte| *byte >= 0x20 || *byte == b'\n'));
        let value: serde_json::Value = serde_json::from_slice(&block).unwrap();
        assert_eq!(value["user"], user);
    }

    /// A reader that reads nothing until the sender is dropped.
    struct Stalled {
        start: Option<Receiver<()>>,
        text: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(start) = self.start.take() {
                let _ = start.recv();
            }
            self.text.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_reader_that_stalls_delays_no_request_and_the_dropped_lines_are_counted() {
        let (resume, start) = std::sync::mpsc::channel();
        let text = Arc::<Mutex<Vec<u8>>>::default();
        let out = Stalled {
            start: Some(start),
            text: Arc::clone(&text),
        };
        let limits = Limits {
            access_log_queue: 2,
            ..Limits::default()
        };
        let metrics = Arc::<WorkerMetrics>::default();
        let queue = AccessLog::to(out, &limits);
        let log = WorkerLog::new(queue.clone(), Arc::clone(&metrics));
        let local = tokio::task::LocalSet::new();
        // At least 20 blocks, of which the thread holds one and the queue two.
        let path = "p".repeat(1_000);
        let lines = 20 * BLOCK / path.len();
        let write = async {
            for _ in 0..lines {
                log.write(&Line {
                    path: Some(&path),
                    ..line()
                });
            }
            log.flush();
        };
        local.run_until(write).await;
        let dropped = metrics.access_log_dropped.value();
        assert!(
            !queue.wait_until_written(Duration::ZERO),
            "the reader has stalled"
        );
        drop(resume);
        assert!(queue.wait_until_written(Duration::from_secs(60)));
        let text = text.lock().unwrap();
        let written = text.iter().filter(|byte| **byte == b'\n').count() as u64;
        assert!(dropped >= 10 * (BLOCK / 2_000) as u64, "{dropped}");
        assert_eq!(written + dropped, lines as u64);
    }
}
