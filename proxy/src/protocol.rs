//! Wire formats and sockets, without state: HTTP guards, request heads, headers, refusals and their encoding, trace
//! context, sockets.

pub(crate) mod address_claims;
pub(crate) mod convert;
pub mod denial;
pub mod headers;
pub(crate) mod host;
pub mod http1;
pub mod http2;
pub(crate) mod original_dst;
pub mod peer_header;
pub mod problem;
pub(crate) mod request_head;
pub(crate) mod reserved;
pub(crate) mod revocation;
pub(crate) mod sockets;
pub(crate) mod splice;
pub(crate) mod tls_session;
pub mod trace_context;
pub(crate) mod websocket;
