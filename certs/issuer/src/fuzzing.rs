//! What the fuzz targets in `fuzz/` call of the private modules. Not part of the interface.

use std::time::Duration;

use merlon_certs::{CertificateDer, TrustRoots};
use merlon_config::name::SpiffeId;
use rustls_pki_types::UnixTime;
use vaultrs::error::ClientError;

use crate::{
    checks::{self, Request},
    error::{Fault, IssueError},
    vault::{KvSecret, Signed, chain_of, kv::Read, reply::issue_error},
};

/// The public key of a certificate request that every issuer accepts.
///
/// # Errors
/// The first rule that it violates.
pub fn request(der: &[u8]) -> Result<Vec<u8>, IssueError> {
    Request::parse(der).map(|request| request.public_key_info)
}

/// The certificate chain in Vault's answer to the request `csr` for `id`.
///
/// # Errors
/// The request or the answer is not valid.
pub fn signed(
    answer: &[u8],
    csr: &[u8],
    id: &SpiffeId,
    lifetime: Duration,
    roots: TrustRoots,
    now: UnixTime,
) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let request = Request::parse(csr)?;
    let signed: Signed = json(answer)?;
    let chain = chain_of(&signed, &roots)?;
    checks::check_answer(&chain, &request, id, lifetime, roots, now)?;
    Ok(chain)
}

/// The secret in an answer of the KV engine.
///
/// # Errors
/// The answer is not valid, or the secret was deleted.
pub fn secret(answer: &[u8]) -> Result<KvSecret, IssueError> {
    json::<Read>(answer)?.into_secret("read a secret")
}

/// The error of an answer with this status and this message.
pub fn error(code: u16, message: &str) -> (Fault, String) {
    let errors = vec![message.to_owned()];
    let error = issue_error("sign", &ClientError::APIError { code, errors });
    (error.fault(), error.to_string())
}

fn json<T: serde::de::DeserializeOwned>(answer: &[u8]) -> Result<T, IssueError> {
    serde_json::from_slice(answer).map_err(|error| IssueError::Answer(error.to_string()))
}
