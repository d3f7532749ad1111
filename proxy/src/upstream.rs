//! Connections to the local program, other proxies and external hosts. Each worker has its own pools: no request
//! crosses threads.

pub(crate) mod balancer;
pub(crate) mod body;
pub(crate) mod dial;
pub(crate) mod dns;
pub(crate) mod h2;
pub(crate) mod http1;
pub(crate) mod mesh;
mod pool_guard;
pub(crate) mod program;
pub(crate) mod route;

pub(crate) use self::pool_guard::PoolGuard;
