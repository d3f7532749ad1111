//! The metrics page: one table of all metrics. A scrape adds up the counters of the workers.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use super::{
    counter::{BUCKETS_MICROS, Counter, Counters, Counters2, Gauges, Histogram},
    label::{Direction, FetchResult, Label, Update},
    worker::WorkerMetrics,
};

/// All counters of the process.
#[derive(Debug, Default)]
pub struct Metrics {
    workers: RwLock<Vec<Arc<WorkerMetrics>>>,
    /// Expiry of the certificate in force, seconds since 1970; 0 without one.
    pub certificate_expiration: Value,
    /// Certificates put in force after the first.
    pub rotations: Counter,
    /// Attempts to get a certificate.
    pub issues: Counters<FetchResult>,
    /// State updates from the control plane or the directory.
    pub snapshots: Counters<Update>,
    /// Seconds since the snapshot in force was last confirmed.
    pub snapshot_age: Value,
    /// Resources in the snapshot in force.
    pub resources: Value,
    /// Whether the stream to the control plane is open.
    pub connected: Value,
    /// Attempts to connect to the control plane.
    pub connects: Counters<FetchResult>,
    /// Attempts to fetch a token issuer's keys.
    pub jwks: Counters<FetchResult>,
    /// Attempts to write the last good state to disk.
    pub persists: Counters<FetchResult>,
    /// Probes of the program on behalf of the kubelet.
    pub probes: Counters<FetchResult>,
    /// Whether the process is ready.
    pub ready: Value,
    /// Spans that were dropped because the collector could not keep up.
    pub spans_dropped: Counter,
}

/// A number that the control thread sets.
#[derive(Debug, Default)]
pub struct Value(AtomicI64);

impl Value {
    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The current value.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

impl Metrics {
    /// Adds the counters of a worker.
    pub fn worker(&self) -> Arc<WorkerMetrics> {
        let worker = Arc::new(WorkerMetrics::default());
        let mut workers = self.workers.write().unwrap_or_else(PoisonError::into_inner);
        workers.push(Arc::clone(&worker));
        worker
    }

    /// The page, in the text format of OpenMetrics 1.0.
    pub fn page(self: &Arc<Self>) -> String {
        let mut registry = Registry::with_prefix("merlon");
        registry.register_collector(Box::new(Page(Arc::clone(self))));
        let mut page = String::with_capacity(16 << 10);
        // Writing to a String does not fail.
        let _ = text::encode(&mut page, &registry);
        page
    }

    /// Name and help text of every metric, as the page shows them.
    pub fn list() -> impl Iterator<Item = (String, &'static str)> {
        FAMILIES.iter().map(|family| {
            let unit = family
                .unit
                .as_ref()
                .map_or(String::new(), |unit| format!("_{}", unit.as_str()));
            let total = match family.kind {
                MetricType::Counter => "_total",
                MetricType::Info => "_info",
                _ => "",
            };
            (format!("merlon_{}{unit}{total}", family.name), family.help)
        })
    }

    /// Adds up over the workers.
    fn sum(&self, read: impl Fn(&WorkerMetrics) -> u64) -> u64 {
        let workers = self.workers.read().unwrap_or_else(PoisonError::into_inner);
        workers.iter().map(|worker| read(worker)).sum()
    }
}

#[derive(Debug)]
struct Page(Arc<Metrics>);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        FAMILIES.iter().try_for_each(|family| {
            let into = encoder.encode_descriptor(
                family.name,
                family.help,
                family.unit.as_ref(),
                family.kind,
            )?;
            (family.write)(&self.0, into)
        })
    }
}

/// One metric: its name, and how it is read.
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
    write: fn(&Metrics, MetricEncoder<'_>) -> fmt::Result,
}

const FAMILIES: &[Family] = &[
    counter(
        "requests",
        "Finished requests, by direction and status class.",
        None,
        |m, into| pairs(m, into, |w| &w.requests),
    ),
    counter(
        "refusals",
        "Requests and connections that Merlon refused, by direction and reason.",
        None,
        refusals,
    ),
    Family {
        name: "request_duration",
        help: "Time from the end of the request head to the end of the response body, by direction.",
        unit: Some(Unit::Seconds),
        kind: MetricType::Histogram,
        write: durations,
    },
    gauge(
        "active_requests",
        "Requests in flight, by direction.",
        None,
        |m, into| gauges(m, into, |w| &w.active_requests),
    ),
    counter(
        "connections",
        "Accepted connections, by direction and transport.",
        None,
        |m, into| pairs(m, into, |w| &w.connections),
    ),
    gauge(
        "open_connections",
        "Open connections, by direction.",
        None,
        |m, into| gauges(m, into, |w| &w.open_connections),
    ),
    counter(
        "tls_handshakes",
        "TLS handshakes, by direction and result.",
        None,
        |m, into| pairs(m, into, |w| &w.handshakes),
    ),
    counter(
        "traffic",
        "Bytes of bodies and opaque connections, by direction and by received or sent.",
        Some(Unit::Bytes),
        |m, into| pairs(m, into, |w| &w.traffic),
    ),
    counter(
        "token_cache",
        "Tokens that were found in the cache (hit) or verified (miss).",
        None,
        |m, into| single(into, |label| m.sum(|w| w.token_cache.value(label))),
    ),
    counter(
        "upstream_connections",
        "Connections to upstreams, by result.",
        None,
        |m, into| single(into, |label| m.sum(|w| w.upstream_connections.value(label))),
    ),
    counter(
        "accept_errors",
        "Connections that could not be accepted, or exceeded the limit of their worker.",
        None,
        |m, into| number(m.sum(|w| w.accept_errors.value()), into),
    ),
    counter(
        "access_log_dropped_lines",
        "Lines of the access log that were dropped because its reader could not keep up.",
        None,
        |m, into| number(m.sum(|w| w.access_log_dropped.value()), into),
    ),
    gauge(
        "certificate_expiration_timestamp",
        "Expiry of the certificate in force, since 1970; 0 without one.",
        Some(Unit::Seconds),
        |m, into| value(&m.certificate_expiration, into),
    ),
    counter(
        "certificate_rotations",
        "Certificates put in force after the first.",
        None,
        |m, into| number(m.rotations.value(), into),
    ),
    counter(
        "certificate_requests",
        "Attempts to get a certificate, by result.",
        None,
        |m, into| single(into, |label| m.issues.value(label)),
    ),
    counter(
        "snapshot_updates",
        "State updates from the control plane or the directory, by result.",
        None,
        |m, into| single(into, |label| m.snapshots.value(label)),
    ),
    gauge(
        "snapshot_age",
        "Time since the snapshot in force was last confirmed.",
        Some(Unit::Seconds),
        |m, into| value(&m.snapshot_age, into),
    ),
    gauge(
        "snapshot_resources",
        "Resources in the snapshot in force.",
        None,
        |m, into| value(&m.resources, into),
    ),
    counter(
        "state_writes",
        "Attempts to save the identity or the last good state to disk, by result.",
        None,
        |m, into| single(into, |label| m.persists.value(label)),
    ),
    counter(
        "probes",
        "Probes of the program on behalf of the kubelet, by result.",
        None,
        |m, into| single(into, |label| m.probes.value(label)),
    ),
    gauge(
        "control_plane_connected",
        "1 while the discovery stream is open.",
        None,
        |m, into| value(&m.connected, into),
    ),
    counter(
        "control_plane_connects",
        "Attempts to connect to the control plane, by result.",
        None,
        |m, into| single(into, |label| m.connects.value(label)),
    ),
    counter(
        "jwks_fetches",
        "Attempts to fetch a token issuer's keys, by result.",
        None,
        |m, into| single(into, |label| m.jwks.value(label)),
    ),
    counter(
        "spans_dropped",
        "Spans that were dropped because the collector could not keep up.",
        None,
        |m, into| number(m.spans_dropped.value(), into),
    ),
    gauge("ready", "1 while the process is ready.", None, |m, into| {
        value(&m.ready, into)
    }),
    Family {
        name: "build",
        help: "Version of the program.",
        unit: None,
        kind: MetricType::Info,
        write: |_, mut into| into.encode_info(&[("version", env!("CARGO_PKG_VERSION"))]),
    },
];

type Write = fn(&Metrics, MetricEncoder<'_>) -> fmt::Result;

const fn counter(
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    write: Write,
) -> Family {
    Family {
        name,
        help,
        unit,
        kind: MetricType::Counter,
        write,
    }
}

const fn gauge(name: &'static str, help: &'static str, unit: Option<Unit>, write: Write) -> Family {
    Family {
        name,
        help,
        unit,
        kind: MetricType::Gauge,
        write,
    }
}

fn number(count: u64, into: MetricEncoder<'_>) -> fmt::Result {
    ConstCounter::new(count).encode(into)
}

fn value(value: &Value, into: MetricEncoder<'_>) -> fmt::Result {
    ConstGauge::new(value.value()).encode(into)
}

fn single<L: Label>(mut into: MetricEncoder<'_>, read: impl Fn(L) -> u64) -> fmt::Result {
    L::ALL.iter().try_for_each(|label| {
        let labels = [(L::NAME, label.text())];
        number(read(*label), into.encode_family(&labels)?)
    })
}

fn pairs<A: Label, B: Label>(
    metrics: &Metrics,
    mut into: MetricEncoder<'_>,
    of: fn(&WorkerMetrics) -> &Counters2<A, B>,
) -> fmt::Result {
    for a in A::ALL {
        for b in B::ALL {
            let count = metrics.sum(|worker| of(worker).value(*a, *b));
            let labels = [(A::NAME, a.text()), (B::NAME, b.text())];
            number(count, into.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn gauges<L: Label>(
    metrics: &Metrics,
    mut into: MetricEncoder<'_>,
    of: fn(&WorkerMetrics) -> &Gauges<L>,
) -> fmt::Result {
    let workers = metrics
        .workers
        .read()
        .unwrap_or_else(PoisonError::into_inner);
    L::ALL.iter().try_for_each(|label| {
        let now: i64 = workers.iter().map(|worker| of(worker).value(*label)).sum();
        let labels = [(L::NAME, label.text())];
        ConstGauge::new(now).encode(into.encode_family(&labels)?)
    })
}

fn refusals(metrics: &Metrics, mut into: MetricEncoder<'_>) -> fmt::Result {
    let mut all = std::collections::BTreeMap::new();
    for worker in metrics
        .workers
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        for (key, count) in worker.refusals.iter() {
            *all.entry(key).or_insert(0_u64) += count;
        }
    }
    all.into_iter()
        .try_for_each(|((direction, reason), count)| {
            let labels = [(Direction::NAME, direction.text()), ("reason", reason)];
            number(count, into.encode_family(&labels)?)
        })
}

fn durations(metrics: &Metrics, mut into: MetricEncoder<'_>) -> fmt::Result {
    let workers = metrics
        .workers
        .read()
        .unwrap_or_else(PoisonError::into_inner);
    Direction::ALL.iter().try_for_each(|direction| {
        let all: Vec<&Histogram> = workers
            .iter()
            .filter_map(|worker| worker.durations.get(*direction))
            .collect();
        let bounds = BUCKETS_MICROS
            .iter()
            .map(|micros| seconds(*micros))
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds
            .enumerate()
            .map(|(place, bound)| {
                let counts = all
                    .iter()
                    .filter_map(|histogram| histogram.buckets.get(place));
                (bound, counts.map(Counter::value).sum())
            })
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = all.iter().map(|histogram| histogram.micros.value()).sum();
        let labels = [(Direction::NAME, direction.text())];
        let none = None::<
            &std::collections::HashMap<
                usize,
                prometheus_client::metrics::exemplar::Exemplar<[(&str, &str); 0], f64>,
            >,
        >;
        into.encode_family(&labels)?
            .encode_histogram(seconds(sum), count, &buckets, none)
    })
}

fn seconds(micros: u64) -> f64 {
    std::time::Duration::from_micros(micros).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metrics::StatusClass;

    #[test]
    fn a_scrape_adds_up_the_workers() {
        let metrics = Arc::new(Metrics::default());
        for worker in [metrics.worker(), metrics.worker()] {
            worker
                .requests
                .inc(Direction::Inbound, StatusClass::Success);
            worker.refusals.inc(Direction::Inbound, "authz.denied");
            worker
                .durations
                .observe(Direction::Inbound, Duration::from_millis(3));
        }
        let page = metrics.page();
        for line in [
            r#"merlon_requests_total{direction="inbound",status="2xx"} 2"#,
            r#"merlon_refusals_total{direction="inbound",reason="authz.denied"} 2"#,
            r#"merlon_request_duration_seconds_bucket{le="0.0025",direction="inbound"} 0"#,
            r#"merlon_request_duration_seconds_bucket{le="0.005",direction="inbound"} 2"#,
            r#"merlon_request_duration_seconds_count{direction="inbound"} 2"#,
            r#"merlon_build_info{version="0.1.0"} 1"#,
            "# EOF",
        ] {
            assert!(
                page.lines().any(|found| found == line),
                "{line} is not in\n{page}"
            );
        }
    }

    #[test]
    fn the_readme_lists_exactly_the_exported_metrics() {
        let readme = include_str!("../../../README.md");
        let listed: Vec<&str> = readme
            .lines()
            .filter_map(|line| line.strip_prefix("| `merlon_")?.split('`').next())
            .collect();
        let real: Vec<String> = Metrics::list()
            .map(|(name, _)| name.replacen("merlon_", "", 1))
            .collect();
        assert_eq!(listed, real);
    }
}
