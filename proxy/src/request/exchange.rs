//! One request from its first byte to its last: the data for the access log, the metrics and the trace.

use std::{
    borrow::Cow,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, Uri, Version, request::Parts, uri::Authority};
use jiff::Timestamp;
use merlon_config::clock;
use merlon_policy::{authn::User, decision::Permit};

use super::{
    open_requests::OpenRequest,
    worker_context::{CurrentSnapshot, WorkerContext},
};
use crate::{
    config::AccessLogMode,
    protocol::{
        denial::Denial,
        trace_context::{self, TraceContext},
    },
    telemetry::{
        access_log::Line,
        decision_log::{DecisionId, RequestSummary},
        metrics::{Direction, Label as _, StatusClass, Way},
        spans::{FinishedSpan, SpanValue},
    },
    upstream::body::BodyProgress,
};

/// What is known about a request so far. [`Exchange::conclude`] reports it, once.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) local: Rc<WorkerContext>,
    pub(crate) direction: Direction,
    pub(crate) at: Timestamp,
    started: Instant,
    trace: Option<Trace>,
    pub(crate) decision_id: DecisionId,
    /// The peer's SPIFFE ID.
    pub(crate) src: Option<Rc<str>>,
    pub(crate) src_address: SocketAddr,
    /// Service and port.
    pub(crate) dst: Option<Rc<str>>,
    pub(crate) protocol: &'static str,
    /// `None` when the head could not be read, or for a tunnel.
    method: Option<Method>,
    pub(crate) host: Option<Authority>,
    pub(crate) uri: Uri,
    pub(crate) route: Option<String>,
    pub(crate) user: Option<Rc<User>>,
    pub(crate) permit: Option<Permit>,
    denial: Option<Denial>,
    status: u16,
    pub(crate) current: Option<Rc<CurrentSnapshot>>,
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) progress: Option<Rc<BodyProgress>>,
    /// Keeps the connection that it came on from being idle.
    pub(crate) open_request: Option<OpenRequest>,
    bytes_in: u64,
    pub(crate) bytes_out: u64,
    counted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Trace {
    trace_id: u128,
    /// The proxy's span and the caller's, when the trace is sampled here.
    span: Option<(u64, u64)>,
}

impl Exchange {
    /// Starts a request.
    pub(crate) fn begin(
        local: &Rc<WorkerContext>,
        direction: Direction,
        src: Option<Rc<str>>,
        address: SocketAddr,
        version: Version,
    ) -> Box<Self> {
        local.metrics.active_requests.add(direction, 1);
        Box::new(Self {
            local: Rc::clone(local),
            direction,
            at: clock::now(),
            started: Instant::now(),
            trace: None,
            decision_id: local.shared.decisions.next_id(),
            src,
            src_address: address,
            dst: None,
            protocol: match version {
                Version::HTTP_10 => "http/1.0",
                Version::HTTP_11 => "http/1.1",
                _ => "h2",
            },
            method: None,
            host: None,
            uri: Uri::default(),
            route: None,
            user: None,
            permit: None,
            denial: None,
            status: 0,
            current: None,
            upstream: None,
            progress: None,
            open_request: None,
            bytes_in: 0,
            bytes_out: 0,
            counted: true,
        })
    }

    /// Keeps method and URI for the log line. Cheap: both are reference-counted.
    pub(crate) fn set_head(&mut self, method: &Method, uri: &Uri) {
        self.method = Some(method.clone());
        self.uri = uri.clone();
    }

    /// Replaces URI and host by what the checks read, and joins the caller's trace.
    pub(crate) fn set_parsed_head(&mut self, head: &mut Parts, authority: &Authority) {
        self.trace(&mut head.headers);
        self.uri = head.uri.clone();
        self.host = Some(authority.clone());
    }

    /// Joins the caller's trace or starts one. When it is sampled, the proxy's span becomes the parent of the next hop.
    fn trace(&mut self, headers: &mut HeaderMap) {
        let given = headers.contains_key(trace_context::TRACEPARENT);
        let context = TraceContext::take(headers, &self.local.random);
        let caller = given.then(|| context.sampled());
        let span = self
            .local
            .shared
            .spans
            .samples(context.trace_id, caller)
            .then(|| {
                let own = self.local.random.next();
                let mut next = context.child(own);
                next.flags |= 1;
                if let Some(value) = next.header() {
                    headers.insert(trace_context::TRACEPARENT, value);
                }
                (own, if given { context.parent_id } else { 0 })
            });
        self.trace = Some(Trace {
            trace_id: context.trace_id,
            span,
        });
    }

    /// Sets the number of bytes that came from downstream.
    pub(crate) fn set_bytes_in(&mut self, bytes: u64) {
        self.bytes_in = bytes;
    }

    /// Sets the status of an upstream's response.
    pub(crate) fn set_status(&mut self, status: u16) {
        self.status = status;
    }

    /// Sets the denial of a request that the proxy refused.
    pub(crate) fn refuse(&mut self, denial: Denial) {
        self.status = denial.status().as_u16();
        let decisions = &self.local.shared.decisions;
        decisions.refuse(self.decision_id, self.summary(), &denial);
        self.denial = Some(denial);
    }

    /// Sets the denial that ended a permitted request. The status stays, because it was already sent.
    pub(crate) fn end_with(&mut self, denial: Denial) {
        self.denial = Some(denial);
    }

    fn summary(&self) -> RequestSummary {
        let path = self.method.as_ref().map(|_| self.uri.path());
        RequestSummary {
            ts: self.at,
            direction: self.direction.text(),
            src: self.src.as_deref().map(str::to_owned),
            src_address: self.src_address,
            dst: self.dst.as_deref().map(str::to_owned),
            protocol: self.protocol,
            method: self.method.as_ref().map(ToString::to_string),
            host: self.host.as_ref().map(ToString::to_string),
            path: path.map(|path| path.chars().take(MAX_PATH_CHARS).collect()),
        }
    }

    /// Discards the exchange of a connection that turns out to carry requests, which have their own.
    pub(crate) fn discard(mut self: Box<Self>) {
        self.uncount();
    }

    fn uncount(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.local.metrics.active_requests.add(self.direction, -1);
        }
    }

    /// Reports the finished request: its last byte has passed, or one side aborted.
    pub(crate) fn conclude(mut self: Box<Self>, aborted: bool) {
        self.report(aborted);
    }

    fn report(&mut self, aborted: bool) {
        if !std::mem::take(&mut self.counted) {
            return;
        }
        let took = self.started.elapsed();
        let local = Rc::clone(&self.local);
        let metrics = &local.metrics;
        let bytes_in = self
            .progress
            .as_ref()
            .map_or(self.bytes_in, |progress| progress.bytes.get());
        metrics.active_requests.add(self.direction, -1);
        metrics
            .requests
            .inc(self.direction, StatusClass::of(self.status));
        metrics.durations.observe(self.direction, took);
        metrics.traffic.add(self.direction, Way::Received, bytes_in);
        metrics
            .traffic
            .add(self.direction, Way::Sent, self.bytes_out);
        if let Some(denial) = &self.denial {
            metrics.refusals.inc(self.direction, denial.reason());
        }
        self.log(&local, took, bytes_in, aborted);
        self.span(&local, took);
    }

    fn log(&self, local: &WorkerContext, took: Duration, bytes_in: u64, aborted: bool) {
        match local.shared.access_log {
            AccessLogMode::Off => return,
            AccessLogMode::Refusals if self.denial.is_none() => return,
            _ => {}
        }
        let refusal = self.denial.as_ref().map(Denial::refusal);
        let refusal = refusal.as_ref();
        let cause = refusal.and_then(|refusal| Some(refusal.cause?.to_string()));
        let policy = refusal
            .and_then(|refusal| refusal.policy)
            .or(self.permit.as_ref().map(Permit::policy));
        let snapshot = self.current.as_ref().and_then(|current| current.snapshot());
        local.log.write(&Line {
            at: self.at,
            trace_id: self.trace.map(|trace| trace.trace_id),
            decision_id: Some(self.decision_id),
            direction: self.direction.text(),
            src: self.src.as_deref(),
            src_address: Some(self.src_address),
            dst: self.dst.as_deref(),
            protocol: self.protocol,
            method: self.method.as_ref().map(Method::as_str),
            host: self.host.as_ref().map(Authority::as_str),
            path: self.method.as_ref().map(|_| self.uri.path()),
            route: self.route.as_deref(),
            user: self.user.as_deref().map(|user| user.id.as_str()),
            status: self.status,
            reason: refusal.map(|refusal| refusal.reason),
            cause: cause.as_deref(),
            policy,
            snapshot: snapshot.map(|snapshot| snapshot.version.short()),
            upstream: self.upstream,
            bytes_in,
            bytes_out: self.bytes_out,
            duration: took,
            aborted,
        });
    }

    fn span(&mut self, local: &WorkerContext, took: Duration) {
        let Some(Trace {
            trace_id,
            span: Some((span_id, parent_id)),
        }) = self.trace
        else {
            return;
        };
        let end = clock::system_time();
        let method = self.method.as_ref().map_or("-", Method::as_str).to_owned();
        let name = match &self.route {
            Some(route) => Cow::Owned(format!("{method} {route}")),
            None => Cow::Owned(method.clone()),
        };
        let mut attributes = vec![
            ("http.request.method", SpanValue::Text(method.into())),
            (
                "http.response.status_code",
                SpanValue::Number(self.status.into()),
            ),
        ];
        if let Some(route) = self.route.take() {
            attributes.push(("http.route", SpanValue::Text(route.into())));
        }
        if let Some(dst) = &self.dst {
            attributes.push(("server.address", SpanValue::Text(dst.to_string().into())));
        }
        if let Some(denial) = &self.denial {
            attributes.push(("error.type", SpanValue::Text(denial.reason().into())));
        }
        let server = self.direction != Direction::Outbound;
        local.shared.spans.finish(FinishedSpan {
            trace_id,
            span_id,
            parent_id,
            name,
            server,
            start: end.checked_sub(took).unwrap_or(end),
            end,
            attributes,
            error: self.status >= 500 || (!server && self.status >= 400),
        });
    }
}

/// Maximum length of the recorded path of a refused request, in characters.
const MAX_PATH_CHARS: usize = 1_024;

impl Drop for Exchange {
    /// A request whose caller disconnects before the response is logged too.
    fn drop(&mut self) {
        // After a panic, the response has an exchange of its own.
        if std::thread::panicking() {
            self.uncount();
        }
        self.report(true);
    }
}
