//! The checks of the request path, one file each. `inbound.rs` shows their order.

pub(crate) mod address_limit;
pub(crate) mod authenticate;
pub(crate) mod authorize;
pub(crate) mod quota;
pub(crate) mod route;
pub(crate) mod stage;
pub(crate) mod validate;
