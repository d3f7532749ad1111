//! Counters, gauges and histograms of one worker.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::label::{Direction, Label};

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The current count.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A counter for each value of a label.
#[derive(Debug)]
pub struct Counters<L>(Box<[Counter]>, std::marker::PhantomData<L>);

impl<L: Label> Default for Counters<L> {
    fn default() -> Self {
        Self(
            L::ALL.iter().map(|_| Counter::default()).collect(),
            std::marker::PhantomData,
        )
    }
}

impl<L: Label> Counters<L> {
    /// Adds one to `label`.
    pub fn inc(&self, label: L) {
        self.add(label, 1);
    }

    /// Adds `n` to `label`.
    pub fn add(&self, label: L, n: u64) {
        if let Some(counter) = self.0.get(label.index()) {
            counter.add(n);
        }
    }

    /// The current count of `label`.
    pub fn value(&self, label: L) -> u64 {
        self.0.get(label.index()).map_or(0, Counter::value)
    }
}

/// A counter for each pair of values of two labels.
#[derive(Debug)]
pub struct Counters2<A, B>(Box<[Counter]>, std::marker::PhantomData<(A, B)>);

impl<A: Label, B: Label> Default for Counters2<A, B> {
    fn default() -> Self {
        let all = (0..A::ALL.len() * B::ALL.len()).map(|_| Counter::default());
        Self(all.collect(), std::marker::PhantomData)
    }
}

impl<A: Label, B: Label> Counters2<A, B> {
    /// Adds one to this pair.
    pub fn inc(&self, a: A, b: B) {
        self.add(a, b, 1);
    }

    /// Adds `n` to this pair.
    pub fn add(&self, a: A, b: B, n: u64) {
        if let Some(counter) = self.0.get(a.index() * B::ALL.len() + b.index()) {
            counter.add(n);
        }
    }

    /// The current count of this pair.
    pub fn value(&self, a: A, b: B) -> u64 {
        let place = a.index() * B::ALL.len() + b.index();
        self.0.get(place).map_or(0, Counter::value)
    }
}

/// A gauge for each value of a label.
#[derive(Debug)]
pub struct Gauges<L>(Box<[AtomicI64]>, std::marker::PhantomData<L>);

impl<L: Label> Default for Gauges<L> {
    fn default() -> Self {
        Self(
            L::ALL.iter().map(|_| AtomicI64::new(0)).collect(),
            std::marker::PhantomData,
        )
    }
}

impl<L: Label> Gauges<L> {
    /// Adds `n`, which may be negative.
    pub fn add(&self, label: L, n: i64) {
        if let Some(gauge) = self.0.get(label.index()) {
            gauge.fetch_add(n, Relaxed);
        }
    }

    /// The current value.
    pub fn value(&self, label: L) -> i64 {
        self.0
            .get(label.index())
            .map_or(0, |gauge| gauge.load(Relaxed))
    }
}

/// Upper bounds of the histogram buckets, in microseconds: OpenTelemetry's for HTTP, and smaller ones below.
pub(crate) const BUCKETS_MICROS: [u64; 17] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000,
    750_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// A histogram of durations for each value of a label.
#[derive(Debug)]
pub struct Histograms<L>(Box<[Histogram]>, std::marker::PhantomData<L>);

/// A histogram of durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    pub(crate) buckets: [Counter; BUCKETS_MICROS.len() + 1],
    pub(crate) micros: Counter,
}

impl<L: Label> Default for Histograms<L> {
    fn default() -> Self {
        Self(
            L::ALL.iter().map(|_| Histogram::default()).collect(),
            std::marker::PhantomData,
        )
    }
}

impl<L: Label> Histograms<L> {
    /// Records `time`.
    pub fn observe(&self, label: L, time: Duration) {
        if let Some(histogram) = self.0.get(label.index()) {
            histogram.observe(time);
        }
    }

    pub(crate) fn get(&self, label: L) -> Option<&Histogram> {
        self.0.get(label.index())
    }
}

impl Histogram {
    fn observe(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let place = BUCKETS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(place) {
            bucket.inc();
        }
        self.micros.add(micros);
    }
}

/// The direction, and the stable reason code.
type RefusalKey = (Direction, &'static str);

/// Refusals by direction and reason. The table is larger than the closed set of reasons in `denial.rs`.
#[derive(Debug)]
pub struct ReasonCounters(Box<[(OnceLock<RefusalKey>, Counter)]>);

pub(crate) const REASONS: usize = 256;

impl Default for ReasonCounters {
    fn default() -> Self {
        Self((0..REASONS).map(|_| Default::default()).collect())
    }
}

impl ReasonCounters {
    /// Counts a refusal.
    pub fn inc(&self, direction: Direction, reason: &'static str) {
        // Only this worker writes, so the first empty slot is the end of the list.
        for (key, count) in &self.0 {
            let (d, r) = key.get_or_init(|| (direction, reason));
            if *d == direction && *r == reason {
                count.inc();
                return;
            }
        }
    }

    /// The current count of this reason.
    pub fn value(&self, direction: Direction, reason: &str) -> u64 {
        self.iter()
            .find(|(key, _)| *key == (direction, reason))
            .map_or(0, |(_, count)| count)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = ((Direction, &'static str), u64)> + '_ {
        self.0
            .iter()
            .map_while(|(key, count)| key.get().map(|key| (*key, count.value())))
    }
}
