//! Spans of finished requests, exported by OTLP when the standard `OTEL_*` variables say so.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use tokio::sync::mpsc;

/// The workers' end. Without a collector it is empty: [`Spans::samples`] is false and nothing is built.
#[derive(Debug, Clone, Default)]
pub struct Spans(Option<Arc<Sink>>);

#[derive(Debug)]
struct Sink {
    finished: mpsc::Sender<FinishedSpan>,
    sampler: Sampler,
    dropped: std::sync::atomic::AtomicU64,
}

/// A request as it went, in the names of OpenTelemetry's HTTP conventions.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedSpan {
    /// Of the whole trace.
    pub trace_id: u128,
    /// This span's, as it was passed on in `traceparent`.
    pub span_id: u64,
    /// The caller's; 0: this span begins the trace.
    pub parent_id: u64,
    /// What was asked for, with few values: `GET /orders/{id}`.
    pub name: Cow<'static, str>,
    /// Server for inbound and gateway, client for outbound.
    pub server: bool,
    /// When the head was read.
    pub start: SystemTime,
    /// When the body had passed.
    pub end: SystemTime,
    /// As `http.request.method`, `http.response.status_code`, `http.route`, `server.address`, `error.type`.
    pub attributes: Vec<(&'static str, SpanValue)>,
    /// Whether it failed: a 5xx, or for a client any error.
    pub error: bool,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpanValue {
    /// Text.
    Text(Cow<'static, str>),
    /// A whole number.
    Number(i64),
}

/// Which traces are recorded (`OTEL_TRACES_SAMPLER`).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sampler {
    /// Follow the caller's sampled flag where there is one.
    parent_based: bool,
    /// Otherwise this share of all trace ids, of 2^63.
    below: u64,
}

/// Finished spans that may wait for export; more are dropped and counted.
const WAITING: usize = 4_096;

impl Spans {
    /// Whether a request of this trace is to be recorded. `caller` is the sampled flag of its `traceparent`.
    pub fn samples(&self, trace_id: u128, caller: Option<bool>) -> bool {
        self.0
            .as_ref()
            .is_some_and(|sink| sink.sampler.samples(trace_id, caller))
    }

    /// Takes a finished span. Never waits: when the exporter cannot keep up, it is dropped and counted.
    pub fn finish(&self, span: FinishedSpan) {
        if let Some(sink) = &self.0
            && sink.finished.try_send(span).is_err()
        {
            sink.dropped
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

impl Sampler {
    fn samples(self, trace_id: u128, caller: Option<bool>) -> bool {
        match caller {
            Some(sampled) if self.parent_based => sampled,
            // The low 63 bits, as OpenTelemetry's own ratio sampler does: all services decide alike.
            _ => u64::try_from(trace_id & (u128::from(u64::MAX) >> 1))
                .is_ok_and(|low| low < self.below),
        }
    }
}
