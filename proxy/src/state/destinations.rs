//! Lookups of what the snapshot does not contain: a service by name, or the owner of an address.

use std::{fmt, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use merlon_config::{
    name::{NameError, ServiceName},
    snapshot::{AddressState, Destination, ResourceKey, ResourceKind},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use super::snapshot::Snapshot;
use crate::limits::Limits;

/// Sends lookups from workers to the control thread, and waits for the result with a time-out.
#[derive(Debug, Clone)]
pub struct Destinations {
    requests: mpsc::Sender<LookupRequest>,
    timeout: Duration,
}

/// The key of a lookup. As text: `shop/orders` or `10.0.0.7:80`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum LookupKey {
    Service(ServiceName),
    Address(SocketAddr),
}

impl LookupKey {
    /// The resource that contains the result.
    pub(crate) fn resource_key(&self) -> ResourceKey {
        let kind = match self {
            Self::Service(_) => ResourceKind::Destination,
            Self::Address(_) => ResourceKind::Address,
        };
        ResourceKey {
            kind,
            name: self.to_string(),
        }
    }

    /// The result in a snapshot.
    pub(crate) fn find(&self, snapshot: &Snapshot) -> Option<Found> {
        match self {
            Self::Service(name) => {
                let found = snapshot.destinations.get(name);
                found.map(|found| Found::Service(Arc::clone(found)))
            }
            Self::Address(address) => {
                let found = snapshot.addresses.get(address);
                found.map(|found| Found::Address(found.clone()))
            }
        }
    }
}

impl fmt::Display for LookupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl FromStr for LookupKey {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Service),
        }
    }
}

impl TryFrom<String> for LookupKey {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<LookupKey> for String {
    fn from(key: LookupKey) -> Self {
        key.to_string()
    }
}

/// The result of a successful lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Service(Arc<Destination>),
    Address(AddressState),
}

/// A lookup for the control thread.
#[derive(Debug)]
pub(crate) struct LookupRequest {
    pub(crate) key: LookupKey,
    pub(crate) reply: oneshot::Sender<LookupResult>,
}

pub(crate) type LookupResult = Result<Found, LookupError>;

/// Why there is no destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The mesh has no such service: 404 (`outbound.unknown`).
    #[error("the mesh has no such service")]
    Unknown,
    /// There was no result in time: the control plane is unreachable, or too many lookups are queued. 503 (`config.unavailable`).
    #[error("the control plane did not respond in time")]
    Unavailable,
}

/// Maximum number of queued lookups; further ones fail at once with [`LookupError::Unavailable`].
const QUEUE: usize = 1_024;

impl Destinations {
    pub(crate) fn new(limits: &Limits) -> (Self, mpsc::Receiver<LookupRequest>) {
        let (requests, queue) = mpsc::channel(QUEUE);
        let timeout = limits.lookup_timeout;
        (Self { requests, timeout }, queue)
    }

    /// Subscribes to `name` and resolves once a snapshot that contains it is in force, at the latest after
    /// [`Limits::lookup_timeout`]. Check the snapshot first; concurrent lookups of one name share a subscription.
    ///
    /// # Errors
    /// [`LookupError::Unknown`] if there is no such service, [`LookupError::Unavailable`] if there was no result in time.
    pub async fn ask(&self, name: ServiceName) -> Result<Arc<Destination>, LookupError> {
        match self.lookup(LookupKey::Service(name)).await? {
            Found::Service(destination) => Ok(destination),
            Found::Address(_) => Err(LookupError::Unavailable),
        }
    }

    /// The same for an address. The snapshot then in force also contains the service that owns the address.
    ///
    /// # Errors
    /// [`LookupError::Unavailable`] if there was no result in time.
    pub async fn ask_address(&self, address: SocketAddr) -> Result<AddressState, LookupError> {
        match self.lookup(LookupKey::Address(address)).await? {
            Found::Address(state) => Ok(state),
            Found::Service(_) => Err(LookupError::Unavailable),
        }
    }

    async fn lookup(&self, key: LookupKey) -> LookupResult {
        let (reply, result) = oneshot::channel();
        let sent = self.requests.try_send(LookupRequest { key, reply });
        sent.map_err(|_| LookupError::Unavailable)?;
        match time::timeout(self.timeout, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(LookupError::Unavailable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lookup_without_a_result_in_time_is_unavailable() {
        let limits = Limits {
            lookup_timeout: Duration::from_millis(10),
            ..Limits::default()
        };
        // The lookups are taken, and never answered.
        let (destinations, mut lookups) = Destinations::new(&limits);
        let taken = tokio::spawn(async move {
            let mut taken = Vec::new();
            while let Some(lookup) = lookups.recv().await {
                taken.push(lookup);
            }
            taken.len()
        });
        let within = |lookup| time::timeout(Duration::from_secs(20), lookup);
        for key in ["shop/orders", "192.0.2.1:80"] {
            let found = within(destinations.lookup(key.parse().unwrap())).await;
            assert_eq!(found.unwrap(), Err(LookupError::Unavailable), "{key}");
        }
        drop(destinations);
        assert_eq!(taken.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_lookup_beyond_the_queue_is_unavailable_at_once() {
        let limits = Limits {
            // Waiting for it would fail the test.
            lookup_timeout: Duration::from_secs(3_600),
            ..Limits::default()
        };
        let (destinations, _lookups) = Destinations::new(&limits);
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let mut waiting = Vec::new();
        for _ in 0..QUEUE {
            let mut asked = Box::pin(destinations.ask_address(address(80)));
            assert!(futures_util::poll!(asked.as_mut()).is_pending());
            waiting.push(asked);
        }
        let beyond = destinations.ask_address(address(81));
        let beyond = time::timeout(Duration::from_secs(20), beyond).await;
        assert_eq!(beyond.unwrap(), Err(LookupError::Unavailable));
    }
}
