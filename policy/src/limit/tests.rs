use std::{
    collections::BTreeMap,
    hash::RandomState,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use merlon_config::snapshot::InboundService;
use serde_json::json;

use super::*;
use crate::{
    authn::User,
    principal::{PeerFacts, Principal},
    tests::mesh,
};

fn service(per: &str, requests: u32, burst: Option<u32>) -> InboundService {
    serde_json::from_value(json!({
        "name": "shop/orders",
        "limits": [{ "from": "shop/limits", "spec": {
            "name": "calls", "per": per, "rate": { "requests": requests, "per": "1s" }, "burst": burst,
        } }],
    }))
    .unwrap()
}

fn peer(id: &str) -> PeerFacts {
    let principal = if id == "anonymous" {
        Principal::Anonymous
    } else {
        Principal::Workload(
            format!("spiffe://demo.test/ns/shop/sa/{id}")
                .parse()
                .unwrap(),
        )
    };
    PeerFacts::new(&principal, &mesh(), &BTreeMap::new(), 0)
}

/// A limiter with its own clock.
struct Case {
    limiter: Arc<Limiter>,
    now: Instant,
}

impl Case {
    fn new(per: &str, requests: u32, burst: Option<u32>) -> Self {
        let now = Instant::now();
        let limiter = LimitRegistry::new(now)
            .limiters(&service(per, requests, burst))
            .remove(0);
        Self { limiter, now }
    }

    fn check(&self, id: &str, address: &str, user: Option<&str>) -> Result<(), RetryAfter> {
        let user = user.map(|subject| User::new("customers", subject, Timestamp::MAX));
        let subject = LimitSubject {
            peer: &peer(id),
            address: address.parse().unwrap(),
            user: user.as_ref(),
        };
        self.limiter.check(&subject, self.now)
    }

    fn exceeded(&self, id: &str, address: &str, user: Option<&str>) -> bool {
        self.check(id, address, user).is_err()
    }

    fn later(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
    }
}

#[test]
fn a_burst_passes_and_then_one_request_per_interval() {
    let mut case = Case::new("principal", 10, Some(3));
    for _ in 0..3 {
        case.check("web", "10.0.0.1", None).unwrap();
    }
    let wait = case.check("web", "10.0.0.1", None).unwrap_err();
    assert_eq!(wait, RetryAfter(Duration::from_millis(100)));
    assert_eq!(wait.seconds(), 1);
    case.later(99);
    assert!(case.exceeded("web", "10.0.0.1", None));
    case.later(1);
    case.check("web", "10.0.0.1", None).unwrap();
    assert!(case.exceeded("web", "10.0.0.1", None));
}

#[test]
fn retry_after_is_in_whole_seconds_rounded_up() {
    for (milliseconds, seconds) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (59_500, 60)] {
        assert_eq!(
            RetryAfter(Duration::from_millis(milliseconds)).seconds(),
            seconds
        );
    }
}

#[test]
fn workloads_with_the_same_address_have_separate_limits() {
    let case = Case::new("principal", 1, None);
    case.check("web", "10.0.0.1", None).unwrap();
    case.check("cart", "10.0.0.1", None).unwrap();
    assert!(case.exceeded("web", "10.0.0.2", Some("alice")));
}

#[test]
fn anonymous_peers_are_distinguished_by_address_and_ipv6_by_its_network() {
    let case = Case::new("principal", 1, None);
    case.check("anonymous", "10.0.0.1", None).unwrap();
    case.check("anonymous", "10.0.0.2", None).unwrap();
    assert!(case.exceeded("anonymous", "::ffff:10.0.0.1", None));
    case.check("anonymous", "2001:db8::1", None).unwrap();
    assert!(case.exceeded("anonymous", "2001:db8::2", None));
    case.check("anonymous", "2001:db8:0:1::1", None).unwrap();
}

#[test]
fn a_user_has_one_limit_from_any_workload_and_address() {
    let case = Case::new("user", 1, None);
    case.check("web", "10.0.0.1", Some("alice")).unwrap();
    assert!(case.exceeded("cart", "10.0.0.2", Some("alice")));
    case.check("web", "10.0.0.1", Some("bob")).unwrap();
    // Without a user the principal is the subject.
    case.check("web", "10.0.0.1", None).unwrap();
    assert!(case.exceeded("web", "10.0.0.1", None));
}

#[test]
fn an_unchanged_rule_keeps_its_counters_in_the_next_snapshot() {
    let now = Instant::now();
    let registry = LimitRegistry::new(now);
    let before = registry.limiters(&service("principal", 1, None));
    let same = registry.limiters(&service("principal", 1, None));
    assert!(Arc::ptr_eq(&before[0], &same[0]));
    let changed = registry.limiters(&service("principal", 2, None));
    assert!(!Arc::ptr_eq(&before[0], &changed[0]));
    drop((before, same, changed));
    registry.limiters(&InboundService {
        limits: Vec::new(),
        ..service("principal", 1, None)
    });
    assert!(registry.known.lock().unwrap().is_empty());
}

#[test]
fn a_flood_of_forged_subjects_is_bounded_and_limited() {
    let rule = service("address", 1, None).limits.remove(0);
    let mut now = Instant::now();
    let limiter = Limiter::new(rule, now, RandomState::new(), 1_000);
    let peer = peer("anonymous");
    let ask = |number: u32, now| {
        let address = IpAddr::V4(number.into());
        limiter.check(
            &LimitSubject {
                peer: &peer,
                address,
                user: None,
            },
            now,
        )
    };
    // All at the same time: each new address would otherwise have its own quota.
    let passed = (0..100_000)
        .filter(|number| ask(*number, now).is_ok())
        .count();
    let bound = 1_000 + 256 + 16_384;
    assert!(passed <= bound, "{passed} passed");
    assert!(limiter.buckets.len() <= bound);
    // Idle subjects are evicted, and each subject has its own quota again.
    now += Duration::from_secs(5);
    for number in 0..512 {
        let _ = ask(number, now);
    }
    assert!(limiter.buckets.len() <= 1_000, "{}", limiter.buckets.len());
    assert!(!limiter.overflowing.load(Ordering::Relaxed));
}
