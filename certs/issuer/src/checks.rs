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

#[cfg(test)]
mod tests {
    use merlon_certs::PrivateKey;
    use merlon_test_support::ca::{Authority, valid};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, SanType};

    use super::*;
    use crate::Fault;

    const WEB: &str = "spiffe://one.test/ns/shop/sa/web";
    const ORDERS: &str = "spiffe://one.test/ns/shop/sa/orders";
    const HOUR: Duration = Duration::from_secs(3_600);
    /// When the answer arrives, in seconds since 1970.
    const NOW: u64 = 1_790_000_000;

    /// The chain of a certificate for an hour, with `change`.
    fn answer(
        issuer: &Authority,
        key: &PrivateKey,
        id: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let leaf = issuer.leaf(key, id, |leaf| {
            valid(leaf, NOW - 300, NOW + HOUR.as_secs());
            change(leaf);
        });
        let mut chain = vec![leaf.der().clone()];
        chain.extend(issuer.above.iter().cloned());
        chain
    }

    /// What [`check_answer`] says to an answer to the request of [`WEB`] with this key, for an hour.
    fn checked(
        chain: &[CertificateDer<'static>],
        key: &PrivateKey,
        root: &Authority,
    ) -> Result<(), IssueError> {
        let id = WEB.parse().unwrap();
        let request = Request::parse(&key.csr(&id).unwrap()).unwrap();
        let roots = TrustRoots::from_bundle(&root.bundle("one.test")).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
        check_answer(chain, &request, &id, HOUR, roots, now)
    }

    #[test]
    fn an_answer_that_matches_the_request_is_accepted() {
        let root = Authority::root("root");
        let intermediate = root.intermediate("intermediate", |_| ());
        let key = PrivateKey::generate().unwrap();
        let longest = NOW + HOUR.as_secs() + LIFETIME_SLACK;
        for (what, chain) in [
            ("by the root", answer(&root, &key, WEB, |_| ())),
            (
                "by an intermediate",
                answer(&intermediate, &key, WEB, |_| ()),
            ),
            (
                "within the slack",
                answer(&root, &key, WEB, |leaf| valid(leaf, NOW - 300, longest)),
            ),
        ] {
            let result = checked(&chain, &key, &root);
            assert!(result.is_ok(), "{what}: {result:?}");
        }
    }

    #[test]
    fn an_answer_that_does_not_match_the_request_is_rejected_with_the_reason() {
        let root = Authority::root("root");
        // A root of the same name with another key.
        let foreign = Authority::root("root");
        let unknown = Authority::root("other").intermediate("intermediate", |_| ());
        let key = PrivateKey::generate().unwrap();
        let other_key = PrivateKey::generate().unwrap();
        let too_late = NOW + HOUR.as_secs() + LIFETIME_SLACK + 1;
        let name = |id: &str| SanType::URI(id.to_owned().try_into().unwrap());
        let host = SanType::DnsName("web.shop".to_owned().try_into().unwrap());
        for (chain, why) in [
            (Vec::new(), "it has no certificate"),
            (
                vec![CertificateDer::from(b"certificate".to_vec())],
                "the certificate is not well-formed",
            ),
            (
                vec![answer(&root, &key, WEB, |_| ()).remove(0); 11],
                "the certificate chain has 11 certificates",
            ),
            (
                answer(&root, &key, ORDERS, |_| ()),
                "its name is `spiffe://one.test/ns/shop/sa/orders` instead of `spiffe://one.test/ns/shop/sa/web`",
            ),
            (
                answer(&root, &key, WEB, |leaf| {
                    leaf.subject_alt_names.push(name(ORDERS));
                }),
                "the certificate has 2 URI names instead of one",
            ),
            (
                answer(&root, &key, WEB, |leaf| leaf.subject_alt_names.push(host)),
                "it has other names besides `spiffe://one.test/ns/shop/sa/web`",
            ),
            (
                answer(&root, &key, WEB, |leaf| {
                    leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                }),
                "the certificate is a CA certificate",
            ),
            (
                answer(&root, &other_key, WEB, |_| ()),
                "it is for another key",
            ),
            (
                answer(&root, &key, WEB, |leaf| valid(leaf, NOW, too_late)),
                "it is valid longer than the requested 3600 s",
            ),
            (
                answer(&root, &key, WEB, |leaf| valid(leaf, NOW - 300, NOW - 1)),
                "it is not signed by a root of the mesh",
            ),
            (
                answer(&foreign, &key, WEB, |_| ()),
                "it is not signed by a root of the mesh",
            ),
            (
                answer(&unknown, &key, WEB, |_| ()),
                "it is not signed by a root of the mesh",
            ),
        ] {
            let error = checked(&chain, &key, &root).expect_err(why);
            // A retry does not help: an administrator has to look at the issuer.
            assert_eq!(error.fault(), Fault::Issuer, "{error}");
            let error = error.to_string();
            let rejected = "the answer of the certificate issuer is rejected: ";
            assert!(
                error
                    .strip_prefix(rejected)
                    .is_some_and(|it| it.starts_with(why)),
                "`{error}` is not `{why}`"
            );
        }
    }
}
