//! The checks of every issuer, before and after signing.

use std::time::Duration;

use merlon_certs::{LeafFacts, SpiffeVerifier, TrustRoots, Usage};
use merlon_config::name::SpiffeId;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use crate::error::IssueError;

/// A certificate request that proves possession of an ECDSA P-256 key. Its other contents are ignored.
pub(crate) struct Request {
    pub(crate) public_key_info: Vec<u8>,
}

impl Request {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, IssueError> {
        if der.len() > MAX_REQUEST_BYTES {
            return Err(IssueError::Request("is longer than 16 KiB"));
        }
        let (rest, request) = X509CertificationRequest::from_der(der)
            .map_err(|_| IssueError::Request("is not well-formed (PKCS #10, DER)"))?;
        if !rest.is_empty() {
            return Err(IssueError::Request("has trailing bytes"));
        }
        let key = &request.certification_request_info.subject_pki;
        let curve = key
            .algorithm
            .parameters
            .as_ref()
            .and_then(|curve| curve.as_oid().ok());
        if key.algorithm.algorithm.to_id_string() != EC_PUBLIC_KEY
            || curve.is_none_or(|curve| curve.to_id_string() != PRIME256V1)
        {
            return Err(IssueError::Request("is for a key that is not ECDSA P-256"));
        }
        request
            .verify_signature()
            .map_err(|_| IssueError::Request("is not signed by its own key"))?;
        Ok(Self {
            public_key_info: key.raw.to_vec(),
        })
    }
}

/// Checks that the answer of an issuer matches the request.
pub(crate) fn check_answer(
    chain: &[CertificateDer<'static>],
    request: &Request,
    id: &SpiffeId,
    lifetime: Duration,
    roots: TrustRoots,
    now: UnixTime,
) -> Result<(), IssueError> {
    let (leaf, others) = chain
        .split_first()
        .ok_or_else(|| IssueError::Answer("it has no certificate".to_owned()))?;
    let facts = LeafFacts::parse_chain(leaf, others)?;
    if facts.id != *id {
        return Err(IssueError::Answer(format!(
            "its name is `{}` instead of `{id}`",
            facts.id
        )));
    }
    if facts.other_names {
        return Err(IssueError::Answer(format!(
            "it has other names besides `{id}`"
        )));
    }
    if facts.public_key_info != request.public_key_info {
        return Err(IssueError::Answer("it is for another key".to_owned()));
    }
    let latest = now
        .as_secs()
        .saturating_add(lifetime.as_secs())
        .saturating_add(LIFETIME_SLACK);
    if facts.not_after.as_secs() > latest {
        return Err(IssueError::Answer(format!(
            "it is valid longer than the requested {} s",
            lifetime.as_secs()
        )));
    }
    let verifier = SpiffeVerifier::any_of(roots.into());
    for usage in [Usage::Client, Usage::Server] {
        verifier.check(leaf, others, now, usage).map_err(|error| {
            IssueError::Answer(format!("it is not signed by a root of the mesh ({error})"))
        })?;
    }
    Ok(())
}

const MAX_REQUEST_BYTES: usize = 16 << 10;
/// Seconds by which the validity may exceed the request, for clock differences and rounding.
const LIFETIME_SLACK: u64 = 60;
/// RFC 5480 §2.1.1.
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
/// RFC 5480 §2.1.1.1, secp256r1.
const PRIME256V1: &str = "1.2.840.10045.3.1.7";
