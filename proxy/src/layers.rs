//! The checks of the request path, one file each, in the order in which a request meets them.

pub(crate) mod address_limit;
pub(crate) mod authenticate;
pub(crate) mod authorize;
pub(crate) mod head;
pub mod headers;
pub(crate) mod quota;
pub(crate) mod stage;
pub(crate) mod target;
pub(crate) mod token_cache;
pub(crate) mod validate;
