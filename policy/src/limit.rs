//! Rate limits: GCRA with the governor crate. Time is an argument.
//!
//! A limiter tracks at most about 100,000 subjects and evicts those whose quota is full again. If more than that are
//! active at once, for example because a client forges identities or addresses, subjects share 16,384 overflow buckets
//! by hash, each with the same rate, until the number drops. So memory is bounded, a flood slows itself down, and no
//! subject is unlimited. Clients cannot predict which subjects share a bucket, since the hash has a random key per
//! process.

mod limiter;
mod registry;

pub use limiter::{LimitSubject, Limiter, RetryAfter};
pub use registry::LimitRegistry;

#[cfg(test)]
mod tests;
