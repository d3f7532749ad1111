//! How often: GCRA on governor. Time is an argument.

use std::{
    cell::Cell,
    collections::HashMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use governor::{Quota, RateLimiter, clock::Clock, middleware::NoOpMiddleware, state::keyed::DashMapStateStore};
use merlon_config::{
    name::ServiceName,
    resource::{LimitKey, RateLimitRule},
    snapshot::{Attached, InboundService},
};

use crate::{authn::User, principal::PeerFacts};

/// Keeps limiters across snapshots: a rule that did not change goes on counting.
#[derive(Debug)]
pub struct LimitRegistry {
    origin: Instant,
    /// Drawn once, so that no caller can choose names that fall together.
    hasher: RandomState,
    known: Mutex<HashMap<(ServiceName, Attached<RateLimitRule>), Weak<Limiter>>>,
}

impl LimitRegistry {
    /// An empty registry; `now` is the origin of its time.
    pub fn new(now: Instant) -> Self {
        Self { origin: now, hasher: RandomState::new(), known: Mutex::default() }
    }

    /// The limiters of a service, in the order of its rules. Called when a snapshot is compiled, never for a request.
    pub fn limiters(&self, service: &InboundService) -> Vec<Arc<Limiter>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, limiter| limiter.strong_count() > 0);
        let find = |rule: &Attached<RateLimitRule>| {
            let key = (service.name.clone(), rule.clone());
            if let Some(limiter) = known.get(&key).and_then(Weak::upgrade) {
                return limiter;
            }
            let limiter = Arc::new(Limiter::new(rule.clone(), self.origin, self.hasher.clone()));
            known.insert(key, Arc::downgrade(&limiter));
            limiter
        };
        service.limits.iter().map(find).collect()
    }
}

/// One rule and what it has counted.
///
/// 100,000 callers are told apart. When there are more at once, all share 4,096 counts until there are fewer: a
/// stranger with many addresses can then spend what is others', but neither the memory nor more than the limit.
pub struct Limiter {
    rule: Attached<RateLimitRule>,
    origin: Instant,
    hasher: RandomState,
    counts: RateLimiter<u64, DashMapStateStore<u64>, HandedClock, NoOpMiddleware<Duration>>,
    checks: AtomicU32,
    crowded: AtomicBool,
}

/// Whom a limit counts.
#[derive(Debug, Clone, Copy)]
pub struct LimitSubject<'a> {
    /// The peer that TLS proved.
    pub peer: &'a PeerFacts,
    /// The address of the socket's other end.
    pub address: IpAddr,
    /// Of the verified token.
    pub user: Option<&'a User>,
}

/// The limit is spent; this long until the next request would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RetryAfter(pub Duration);

impl RetryAfter {
    /// For the `Retry-After` header: whole seconds, rounded up, at least 1 (RFC 9110 §10.2.3).
    pub fn seconds(self) -> u64 {
        let whole = self.0.as_secs();
        let up = whole.saturating_add(u64::from(self.0.subsec_nanos() > 0));
        up.max(1)
    }
}

impl Limiter {
    fn new(rule: Attached<RateLimitRule>, origin: Instant, hasher: RandomState) -> Self {
        let rate = rule.spec.rate;
        let requests = rate.requests.max(1);
        // Both are checked when resources are read; what could still be zero here is taken as the strictest.
        let each = (rate.per.0 / requests).max(Duration::from_nanos(1));
        let burst = NonZeroU32::new(rule.spec.burst.unwrap_or(requests)).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(each).unwrap_or(Quota::per_hour(NonZeroU32::MIN)).allow_burst(burst);
        let counts = RateLimiter::new(quota, DashMapStateStore::default(), HandedClock);
        let (checks, crowded) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { rule, origin, hasher, counts, checks, crowded }
    }

    /// The rule, with the resource that it came from.
    pub fn rule(&self) -> &Attached<RateLimitRule> {
        &self.rule
    }

    /// Takes one from the share of `subject`.
    ///
    /// # Errors
    /// When it is spent: how long to wait.
    pub fn check(&self, subject: &LimitSubject<'_>, now: Instant) -> Result<(), RetryAfter> {
        let now = now.saturating_duration_since(self.origin);
        HandedClock::hand(now);
        if self.checks.fetch_add(1, Ordering::Relaxed) % TIDY_EVERY == TIDY_EVERY - 1 {
            self.tidy();
        }
        let mut key = self.key(subject);
        if self.crowded.load(Ordering::Relaxed) {
            key %= SHARED_COUNTS;
        }
        self.counts.check_key(&key).map_err(|spent| RetryAfter(spent.wait_time_from(now)))
    }

    fn key(&self, subject: &LimitSubject<'_>) -> u64 {
        match (self.rule.spec.per, subject.user) {
            (LimitKey::User, Some(user)) => self.hasher.hash_one((2, user.id.as_str())),
            (LimitKey::Principal | LimitKey::User, _) => self.hasher.hash_one((1, subject.peer.principal())),
            (LimitKey::Address, _) => self.hasher.hash_one((0, neighbourhood(subject.address))),
        }
    }

    /// Forgets who has not called for a while.
    fn tidy(&self) {
        if self.counts.len() > MOST_COUNTS / 2 {
            self.counts.retain_recent();
        }
        self.crowded.store(self.counts.len() > MOST_COUNTS, Ordering::Relaxed);
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("rule", &self.rule).finish_non_exhaustive()
    }
}

/// An IPv6 network hands each of its members 2⁶⁴ addresses: they count as one (RFC 4291 §2.5.4).
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX))),
        four => four,
    }
}

/// The time that whoever asks brought along, since governor asks its clock and not its caller.
#[derive(Debug, Clone, Copy)]
struct HandedClock;

thread_local! {
    static HANDED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

impl HandedClock {
    fn hand(now: Duration) {
        HANDED.set(now);
    }
}

impl Clock for HandedClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        HANDED.get()
    }
}

const MOST_COUNTS: usize = 100_000;
const SHARED_COUNTS: u64 = 4_096;
const TIDY_EVERY: u32 = 1_024;
