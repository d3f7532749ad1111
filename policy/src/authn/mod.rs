//! Who a bearer token speaks for (RFC 6750, RFC 7519, RFC 8725, RFC 9068).

pub mod jwks;
mod rules;
pub mod token;
mod user;

pub use rules::{IssuerRules, TokenRules};
pub use user::{ClaimValue, User};
