//! A cache of verified tokens: the next request with the same token costs one hash.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use jiff::Timestamp;
use merlon_config::clock;
use merlon_policy::authn::User;

use crate::{limits::Limits, state::snapshot::CompiledService};

/// Verified tokens by the SHA-256 of the whole token, with the service whose rules were applied.
#[derive(Debug)]
pub(crate) struct TokenCache {
    capacity: usize,
    users: RefCell<HashMap<[u8; 32], Entry, foldhash::fast::RandomState>>,
}

#[derive(Debug)]
struct Entry {
    user: Rc<User>,
    /// The service whose rules were applied: an entry of another service does not match.
    service: Arc<CompiledService>,
    /// The generation of all issuers' keys: when any key changes, the token is verified again.
    keys: u64,
}

/// The cache key of a token, which does not reveal the token.
pub(crate) fn fingerprint(token: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().unwrap_or([0; 32])
}

impl TokenCache {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            capacity: limits.cached_tokens,
            users: RefCell::default(),
        }
    }

    /// The user of a token, if the result is still valid: same rules, same keys, not past `exp`.
    pub(crate) fn find(
        &self,
        token: &[u8; 32],
        service: &Arc<CompiledService>,
        keys: u64,
        now: Timestamp,
    ) -> Option<Rc<User>> {
        let users = self.users.borrow();
        let entry = users.get(token)?;
        (Arc::ptr_eq(&entry.service, service) && entry.keys == keys && now < entry.user.expires_at)
            .then(|| Rc::clone(&entry.user))
    }

    /// Stores a verified token.
    pub(crate) fn insert(
        &self,
        token: [u8; 32],
        service: &Arc<CompiledService>,
        keys: u64,
        user: &Rc<User>,
    ) {
        let mut users = self.users.borrow_mut();
        if users.len() >= self.capacity {
            // A flood of tokens costs as much as without a cache, and memory stays bounded.
            users.clear();
        }
        let entry = Entry {
            user: Rc::clone(user),
            service: Arc::clone(service),
            keys,
        };
        users.insert(token, entry);
    }

    /// Removes expired entries.
    pub(crate) fn tidy(&self) {
        let now = clock::now();
        let mut users = self.users.borrow_mut();
        users.retain(|_, entry| now < entry.user.expires_at);
        if users.is_empty() {
            users.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use jiff::SignedDuration;
    use merlon_config::snapshot::{MeshState, Version};
    use merlon_policy::limit::LimitRegistry;
    use serde_json::{from_value, json};

    use super::*;
    use crate::tests::harness::{self, DOMAIN, PERMIT_ALL};

    const KEYS: u64 = 7;

    /// A service with the same rules as every other of these.
    fn service() -> Arc<CompiledService> {
        let mesh = MeshState {
            trust_domain: DOMAIN.parse().unwrap(),
            root_namespace: "merlon-system".parse().unwrap(),
            outbound: Default::default(),
            gateways: Default::default(),
        };
        let state = harness::service("shop/orders", 80, 8080, "http", PERMIT_ALL);
        let limits = LimitRegistry::new(Instant::now());
        let version = Version::of(b"1");
        let state = from_value(state).unwrap();
        Arc::new(CompiledService::compile(state, &Arc::new(mesh), version, &limits).unwrap())
    }

    /// A user whose token is valid for one second from `now`.
    fn user(now: Timestamp) -> Rc<User> {
        let user = json!({
            "id": "customers#alice", "issuerName": "customers", "subject": "alice",
            "expiresAt": now + SignedDuration::from_secs(1),
        });
        Rc::new(from_value(user).unwrap())
    }

    fn cache(capacity: usize) -> TokenCache {
        TokenCache::new(&Limits {
            cached_tokens: capacity,
            ..Limits::default()
        })
    }

    #[test]
    fn a_verified_token_is_found_only_with_the_same_service_and_keys_and_before_it_expires() {
        let (cache, service, other) = (cache(8), service(), service());
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (known, unknown) = (fingerprint("a.b.c"), fingerprint("a.b.d"));
        cache.insert(known, &service, KEYS, &user(now));
        let after = |millis| now + SignedDuration::from_millis(millis);
        for (what, token, service, keys, at, found) in [
            ("the same", known, &service, KEYS, now, true),
            ("just before `exp`", known, &service, KEYS, after(999), true),
            ("at `exp`", known, &service, KEYS, after(1_000), false),
            ("after `exp`", known, &service, KEYS, after(1_001), false),
            ("another token", unknown, &service, KEYS, now, false),
            ("another service", known, &other, KEYS, now, false),
            ("newer keys", known, &service, KEYS + 1, now, false),
        ] {
            let user = cache.find(&token, service, keys, at);
            assert_eq!(user.is_some(), found, "{what}");
        }
    }

    #[test]
    fn a_cache_that_is_full_starts_again_with_the_newest_token() {
        let (cache, service) = (cache(1), service());
        let now = clock::now();
        let (first, second) = (fingerprint("1"), fingerprint("2"));
        let is_known = |token| cache.find(token, &service, KEYS, now).is_some();
        cache.insert(first, &service, KEYS, &user(now));
        assert!(is_known(&first));
        cache.insert(second, &service, KEYS, &user(now));
        assert!(is_known(&second) && !is_known(&first));
        assert_eq!(cache.users.borrow().len(), 1);
    }

    #[test]
    fn expired_tokens_are_forgotten() {
        let (cache, service, now) = (cache(8), service(), clock::now());
        let hour = SignedDuration::from_hours(1);
        cache.insert(fingerprint("old"), &service, KEYS, &user(now - hour));
        cache.insert(fingerprint("new"), &service, KEYS, &user(now + hour));
        cache.tidy();
        let users = cache.users.borrow();
        assert_eq!(users.keys().collect::<Vec<_>>(), [&fingerprint("new")]);
    }
}
