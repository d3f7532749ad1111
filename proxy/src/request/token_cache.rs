//! Tokens that were verified, so that the next request with the same one costs a hash.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use jiff::Timestamp;
use merlon_policy::authn::User;

use crate::state::snapshot::CompiledService;

/// Most tokens that one worker remembers.
const CAPACITY: usize = 4_096;

/// Verified tokens by SHA-256 of the whole token and the service whose rules it was judged by.
#[derive(Debug, Default)]
pub(crate) struct TokenCache {
    users: RefCell<HashMap<[u8; 32], Entry, foldhash::fast::RandomState>>,
}

#[derive(Debug)]
struct Entry {
    user: Rc<User>,
    /// The rules: an entry made by others is not found.
    service: Arc<CompiledService>,
    /// The generation of all issuers' keys: when any changes, the token is verified anew.
    keys: u64,
}

/// The name under which a token is remembered. Never the token.
pub(crate) fn fingerprint(token: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    digest.as_ref().try_into().unwrap_or([0; 32])
}

impl TokenCache {
    /// The user of a token, while what was verified still holds: same rules, same keys, not past `exp`.
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

    /// Remembers what was just verified.
    pub(crate) fn remember(
        &self,
        token: [u8; 32],
        service: &Arc<CompiledService>,
        keys: u64,
        user: &Rc<User>,
    ) {
        let mut users = self.users.borrow_mut();
        if users.len() >= CAPACITY {
            // A flood of tokens costs what it would without a cache, and no memory.
            users.clear();
        }
        let entry = Entry {
            user: Rc::clone(user),
            service: Arc::clone(service),
            keys,
        };
        users.insert(token, entry);
    }

    /// Lets go of what has expired.
    pub(crate) fn tidy(&self) {
        let now = Timestamp::now();
        let mut users = self.users.borrow_mut();
        users.retain(|_, entry| now < entry.user.expires_at);
        if users.is_empty() {
            users.shrink_to_fit();
        }
    }
}
