//! Certificates: the authority that signs, and the evidence that it requires.

pub(crate) mod authority;
pub(crate) mod csr;
pub(crate) mod issue;
pub(crate) mod join_token;
pub(crate) mod ledger;
pub(crate) mod shared_ca;
