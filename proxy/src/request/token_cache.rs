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
