//! Spans of finished requests, exported by OTLP as the standard `OTEL_*` variables configure.

use std::{
    borrow::Cow,
    env,
    sync::Arc,
    time::{Duration, SystemTime},
};

use merlon_config::causes::chain;
use opentelemetry::{
    InstrumentationScope, KeyValue, Value,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::SpanExporter as OtlpExporter;
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use tokio::{sync::mpsc, task::JoinHandle, time};
use tokio_util::sync::CancellationToken;

use super::metrics::{Metrics, counter::Counter};

/// The workers' side. Without a collector it is empty: [`Spans::samples`] is false and no span is built.
#[derive(Debug, Clone, Default)]
pub struct Spans(Option<Arc<Sink>>);

#[derive(Debug)]
struct Sink {
    finished: mpsc::Sender<FinishedSpan>,
    sampler: Sampler,
    metrics: Arc<Metrics>,
}

/// A finished request, in the terms of OpenTelemetry's HTTP conventions.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedSpan {
    /// The id of the trace.
    pub trace_id: u128,
    /// The id of this span, as forwarded in `traceparent`.
    pub span_id: u64,
    /// The id of the caller's span; 0 if this span is the root.
    pub parent_id: u64,
    /// The operation, with low cardinality: `GET /orders/{id}`.
    pub name: Cow<'static, str>,
    /// `Server` for inbound and gateway, `Client` for outbound.
    pub server: bool,
    /// When the head was read.
    pub start: SystemTime,
    /// When the response body was complete.
    pub end: SystemTime,
    /// Attributes such as `http.request.method`, `http.response.status_code`, `http.route`, `server.address`, `error.type`.
    pub attributes: Vec<(&'static str, SpanValue)>,
    /// Whether it failed: a 5xx, or any error for a client.
    pub error: bool,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpanValue {
    /// Text.
    Text(Cow<'static, str>),
    /// An integer.
    Number(i64),
}

/// Which traces are recorded (`OTEL_TRACES_SAMPLER`).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sampler {
    /// Use the caller's sampled flag if there is one.
    parent_based: bool,
    /// Otherwise sample this share of all trace ids, of 2^63.
    below: u64,
}

/// Maximum number of queued spans; further ones are dropped and counted.
const QUEUE: usize = 4_096;

impl Spans {
    /// Whether to record a request of this trace. `caller` is the sampled flag of its `traceparent`.
    pub fn samples(&self, trace_id: u128, caller: Option<bool>) -> bool {
        self.0
            .as_ref()
            .is_some_and(|sink| sink.sampler.samples(trace_id, caller))
    }

    /// Queues a finished span. Never waits: if the exporter cannot keep up, the span is dropped and counted.
    pub fn finish(&self, span: FinishedSpan) {
        if let Some(sink) = &self.0
            && sink.finished.try_send(span).is_err()
        {
            sink.metrics.spans_dropped.inc();
        }
    }
}

impl Sampler {
    /// From `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`; the default is `parentbased_always_on`.
    fn parse(name: Option<&str>, argument: Option<&str>) -> Self {
        const ALL: u64 = 1 << 63;
        let ratio = argument
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(1.0)
            .clamp(0.0, 1.0);
        // In millionths, which is precise enough.
        let millionths = (0..=1_000_000_u32)
            .rev()
            .find(|n| f64::from(*n) <= ratio * 1e6)
            .unwrap_or(0);
        let share = u64::from(millionths) * (ALL / 1_000_000);
        let share = if ratio >= 1.0 { ALL } else { share };
        let (parent_based, below) = match name.unwrap_or("parentbased_always_on") {
            "always_on" => (false, ALL),
            "always_off" => (false, 0),
            "traceidratio" => (false, share),
            "parentbased_always_off" => (true, 0),
            "parentbased_traceidratio" => (true, share),
            "parentbased_always_on" => (true, ALL),
            other => {
                tracing::warn!(
                    sampler = other,
                    used = "parentbased_always_on",
                    "otlp.sampler_unknown"
                );
                (true, ALL)
            }
        };
        Self {
            parent_based,
            below,
        }
    }

    fn samples(self, trace_id: u128, caller: Option<bool>) -> bool {
        match caller {
            Some(sampled) if self.parent_based => sampled,
            // The low 63 bits, like OpenTelemetry's ratio sampler, so that all services decide the same.
            _ => u64::try_from(trace_id & (u128::from(u64::MAX) >> 1))
                .is_ok_and(|low| low < self.below),
        }
    }
}

/// The control thread's side.
#[derive(Debug)]
pub(crate) struct Exporter {
    finished: Option<mpsc::Receiver<FinishedSpan>>,
    task: Option<JoinHandle<()>>,
    stop: CancellationToken,
}

/// Maximum number of spans in one export.
const BATCH: usize = 512;

/// How long spans are collected for one export.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Time limits of an export, and of the flush at shutdown.
const TIMEOUT: Duration = Duration::from_secs(10);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Enabled if `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) is set, unless `OTEL_SDK_DISABLED=true` or
/// `OTEL_TRACES_EXPORTER=none`.
pub(crate) fn from_environment(metrics: &Arc<Metrics>) -> (Spans, Exporter) {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let endpoint =
        set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| set("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let disabled = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let none = set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let stop = CancellationToken::new();
    if endpoint.is_none() || disabled || none {
        return (
            Spans::default(),
            Exporter {
                finished: None,
                task: None,
                stop,
            },
        );
    }
    let (sender, finished) = mpsc::channel(QUEUE);
    let sink = Sink {
        finished: sender,
        sampler: Sampler::parse(
            set("OTEL_TRACES_SAMPLER").as_deref(),
            set("OTEL_TRACES_SAMPLER_ARG").as_deref(),
        ),
        metrics: Arc::clone(metrics),
    };
    (
        Spans(Some(Arc::new(sink))),
        Exporter {
            finished: Some(finished),
            task: None,
            stop,
        },
    )
}

impl Exporter {
    /// Starts to export, in the control thread's runtime.
    pub(crate) fn start(&mut self, metrics: &Arc<Metrics>) {
        let Some(finished) = self.finished.take() else {
            return;
        };
        match OtlpExporter::builder().with_tonic().build() {
            Ok(mut exporter) => {
                exporter.set_resource(&resource());
                let task = export(exporter, finished, self.stop.clone(), Arc::clone(metrics));
                self.task = Some(tokio::spawn(task));
            }
            Err(error) => tracing::error!(error = chain(&error), "otlp.refused"),
        }
    }

    /// Exports the remaining spans, for at most 2 seconds.
    pub(crate) async fn flush(self) {
        self.stop.cancel();
        if let Some(task) = self.task {
            // The shutdown does not wait longer for spans.
            let _ = time::timeout(FLUSH_TIMEOUT, task).await;
        }
    }
}

/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`, with a default service name other than `unknown_service`.
fn resource() -> Resource {
    let named = env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|list| list.contains("service.name="));
    let builder = Resource::builder();
    let builder = if named {
        builder
    } else {
        builder.with_service_name("merlon-proxy")
    };
    builder
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
}

async fn export(
    exporter: OtlpExporter,
    mut finished: mpsc::Receiver<FinishedSpan>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let stopping = tokio::select! {
            () = time::sleep(EXPORT_INTERVAL), if finished.len() < BATCH => false,
            () = stop.cancelled() => true,
            () = std::future::ready(()), if finished.len() >= BATCH => false,
        };
        while let Ok(span) = finished.try_recv() {
            batch.push(span_data(span));
            if batch.len() == BATCH {
                send(&exporter, &mut batch, &metrics.spans_dropped).await;
            }
        }
        send(&exporter, &mut batch, &metrics.spans_dropped).await;
        if stopping {
            return;
        }
    }
}

async fn send(exporter: &OtlpExporter, batch: &mut Vec<SpanData>, dropped: &Counter) {
    if batch.is_empty() {
        return;
    }
    let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
    match time::timeout(TIMEOUT, exporter.export(std::mem::take(batch))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            dropped.add(count);
            tracing::warn!(count, error = chain(&error), "otlp.lost");
        }
        Err(_) => {
            dropped.add(count);
            tracing::warn!(
                count,
                error = "the collector did not respond in time",
                "otlp.lost"
            );
        }
    }
}

fn span_data(span: FinishedSpan) -> SpanData {
    let attributes = span.attributes.into_iter().map(|(name, value)| {
        let value = match value {
            SpanValue::Text(text) => Value::from(text),
            SpanValue::Number(number) => Value::from(number),
        };
        KeyValue::new(name, value)
    });
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(span.trace_id),
            SpanId::from(span.span_id),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from(span.parent_id),
        parent_span_is_remote: span.parent_id != 0,
        span_kind: if span.server {
            SpanKind::Server
        } else {
            SpanKind::Client
        },
        name: span.name,
        start_time: span.start,
        end_time: span.end,
        attributes: attributes.collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if span.error {
            Status::error("")
        } else {
            Status::Unset
        },
        instrumentation_scope: InstrumentationScope::builder("merlon-proxy").build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parent_based_samplers_use_the_callers_decision() {
        let follow = Sampler::parse(None, None);
        assert!(
            follow.samples(1, None)
                && follow.samples(1, Some(true))
                && !follow.samples(1, Some(false))
        );
        let always = Sampler::parse(Some("always_on"), None);
        assert!(always.samples(1, Some(false)));
        let never = Sampler::parse(Some("parentbased_always_off"), None);
        assert!(!never.samples(1, None) && never.samples(1, Some(true)));
    }

    #[test]
    fn a_ratio_samples_its_share_of_trace_ids() {
        let half = Sampler::parse(Some("traceidratio"), Some("0.5"));
        assert!(half.samples(1 << 61, None));
        assert!(!half.samples((1 << 63) - 1, None));
    }

    #[test]
    fn without_a_collector_nothing_is_sampled() {
        assert!(!Spans::default().samples(1, Some(true)));
    }
}
