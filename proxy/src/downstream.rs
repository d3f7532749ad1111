//! Incoming connections: the accept loop, the listeners of the snapshot, HTTP on a connection, the peer, and the
//! response to a refused request.

pub(crate) mod connection;
pub(crate) mod listener;
pub(crate) mod listeners;
pub(crate) mod peer;
pub(crate) mod respond;
