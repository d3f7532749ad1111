//! Pushes the state to proxies: one delta discovery stream and one inspection stream per proxy.

pub(crate) mod inspect;
mod registry;
pub(crate) mod session;
mod stream;

pub(crate) use registry::{AskError, Enforcing, ProxyStatus, Registry};
pub(crate) use stream::Push;
