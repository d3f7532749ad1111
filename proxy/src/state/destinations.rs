//! Asking for what the snapshot does not have: a service by its name, or whatever is at an address.

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

/// The workers' end: ask, and wait a bounded time.
#[derive(Debug, Clone)]
pub struct Destinations {
    asks: mpsc::Sender<LookupRequest>,
}

/// What can be asked for. As text it is `shop/orders` or `10.0.0.7:80`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum LookupKey {
    Service(ServiceName),
    Address(SocketAddr),
}

impl LookupKey {
    /// The resource that answers it.
    pub(crate) fn key(&self) -> ResourceKey {
        let kind = match self {
            Self::Service(_) => ResourceKind::Destination,
            Self::Address(_) => ResourceKind::Address,
        };
        ResourceKey {
            kind,
            name: self.to_string(),
        }
    }

    /// What a snapshot says of it.
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
    fn from(wish: LookupKey) -> Self {
        wish.to_string()
    }
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Service(Arc<Destination>),
    Address(AddressState),
}

/// One question on its way to the control thread.
#[derive(Debug)]
pub(crate) struct LookupRequest {
    pub(crate) wish: LookupKey,
    pub(crate) answer: oneshot::Sender<LookupResult>,
}

pub(crate) type LookupResult = Result<Found, LookupError>;

/// Why there is no destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The mesh has no such service: 404 (`outbound.unknown`).
    #[error("the mesh has no such service")]
    Unknown,
    /// Nobody could tell in time: the control plane is away, or too much is asked at once. 503 (`config.unavailable`).
    #[error("the control plane did not say in time whether there is such a service")]
    Unavailable,
}

/// How long a caller waits for a destination that is asked for the first time.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// Questions that may wait at once; more are answered [`LookupError::Unavailable`] at once.
const WAITING: usize = 1_024;

impl Destinations {
    pub(crate) fn new() -> (Self, mpsc::Receiver<LookupRequest>) {
        let (asks, questions) = mpsc::channel(WAITING);
        (Self { asks }, questions)
    }

    /// Subscribes to `name` and resolves once the state that contains it is in force, at the latest after
    /// [`LOOKUP_TIMEOUT`]. Look into the snapshot first; concurrent questions for one name are one subscription.
    ///
    /// # Errors
    /// [`LookupError::Unknown`] when there is no such service, [`LookupError::Unavailable`] when nobody could tell.
    pub async fn ask(&self, name: ServiceName) -> Result<Arc<Destination>, LookupError> {
        match self.wish(LookupKey::Service(name)).await? {
            Found::Service(destination) => Ok(destination),
            Found::Address(_) => Err(LookupError::Unavailable),
        }
    }

    /// The same for an address. Whoever it belongs to, the state then in force holds that as well.
    ///
    /// # Errors
    /// [`LookupError::Unavailable`] when nobody could tell.
    pub async fn ask_address(&self, address: SocketAddr) -> Result<AddressState, LookupError> {
        match self.wish(LookupKey::Address(address)).await? {
            Found::Address(state) => Ok(state),
            Found::Service(_) => Err(LookupError::Unavailable),
        }
    }

    async fn wish(&self, wish: LookupKey) -> LookupResult {
        let (answer, reply) = oneshot::channel();
        let asked = self.asks.try_send(LookupRequest { wish, answer });
        asked.map_err(|_| LookupError::Unavailable)?;
        match time::timeout(LOOKUP_TIMEOUT, reply).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(LookupError::Unavailable),
        }
    }
}
