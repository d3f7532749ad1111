//! Verifies bearer tokens and identifies their users (RFC 6750, RFC 7519, RFC 8725, RFC 9068).

mod claims;
pub mod jwks;
mod problem;
mod rules;
pub mod token;
mod user;

pub use problem::TokenProblem;
pub use rules::{IssuerRules, TokenRules};
pub use user::{ClaimValue, User};
