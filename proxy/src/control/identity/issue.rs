//! One call of `Issue`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use merlon_api::{
    JoinToken, control_plane_id,
    identity::{self, IssueRequest, IssueResponse, identity_client::IdentityClient},
};
use merlon_certs::{
    Bootstrap, H2, KeyError, MeshTls, PrivateKey, RootsError, SvidError, TrustRoots, X509Svid,
};
use merlon_config::{
    name::{Namespace, SpiffeId, TrustDomain, WorkloadId},
    snapshot::TrustBundle,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tonic::Code;
use url::Url;

use super::files::{self, IdentityError};
use crate::{config::PodToken, control::connection};

/// By what right a certificate is asked for.
pub(super) enum Evidence<'a> {
    /// The certificate in force: renewal.
    Certificate(Arc<MeshTls>),
    /// A one-time token: the first certificate.
    JoinToken(&'a JoinToken),
    /// The pod's own token.
    PodToken(&'a PodToken),
}

/// What came of it.
pub(super) enum Issued {
    /// A certificate, checked.
    Svid {
        svid: Arc<X509Svid>,
        bundle: TrustBundle,
    },
    /// Nothing yet: ask again then.
    Later(Duration),
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum IssueError {
    #[error("there is no certificate in force to renew, and no unused join token")]
    NoEvidence,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the control plane cannot be reached")]
    Connect(#[from] tonic::transport::Error),
    #[error("the control plane says: {} ({})", .0.message(), .0.code())]
    Refused(Box<tonic::Status>),
    #[error(transparent)]
    Files(#[from] IdentityError),
    #[error("no TLS configuration")]
    Tls(#[from] rustls::Error),
    #[error("the control plane's trust bundle is not JSON as it should be")]
    Bundle(#[source] serde_json::Error),
    #[error("the control plane's trust bundle is of `{0}`")]
    OtherDomain(TrustDomain),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error("the control plane's certificate: {0}")]
    Svid(#[from] SvidError),
    #[error("the control plane sent a certificate of `{0}`")]
    OtherIdentity(Box<SpiffeId>),
    #[error("the control plane's answer is larger than it should be")]
    TooLarge,
}

impl IssueError {
    /// Trying again soon is of no use: people have to do something.
    pub(super) fn is_final(&self) -> bool {
        match self {
            // A pod's files are mended from outside, and its token is new in a while.
            Self::NoEvidence => true,
            Self::Refused(status) => matches!(
                status.code(),
                Code::PermissionDenied
                    | Code::Unauthenticated
                    | Code::InvalidArgument
                    | Code::FailedPrecondition
            ),
            _ => false,
        }
    }
}

impl IssueError {
    /// What people have to do, where that is known.
    pub(super) fn mending(&self, workload: &WorkloadId) -> Option<String> {
        let token = match self {
            Self::NoEvidence => true,
            Self::Refused(status) => self.is_final() && status.message().contains("join token"),
            _ => false,
        };
        token.then(|| {
            format!("make a join token by `merlon token create --identity {workload}`, and start this proxy with it")
        })
    }
}

/// For the call itself; the control plane may have to ask Vault.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Chain and bundle together.
const LIMIT: usize = 256 << 10;

/// The longest that the control plane may tell us to stay away.
const LATER: Duration = Duration::from_secs(300);

pub(super) async fn issue(
    start: &IdentityDeps,
    evidence: Evidence<'_>,
) -> Result<Issued, IssueError> {
    let trust_domain = match &evidence {
        Evidence::Certificate(tls) => tls.svid().id.trust_domain().clone(),
        Evidence::JoinToken(token) => token.trust_domain().clone(),
        Evidence::PodToken(token) => files::trust_domain(&token.trust_domain)?,
    };
    let id = trust_domain.spiffe_id(&start.workload);
    let control_plane = control_plane_id(&trust_domain, &start.root_namespace);
    let (tls, evidence) = match evidence {
        Evidence::Certificate(tls) => (tls.client_config(&control_plane, &[H2])?, None),
        Evidence::JoinToken(token) => {
            let trust = match &start.trust_bundle {
                Some(path) => {
                    let bundle = files::bundle_of(path, &trust_domain)?;
                    Bootstrap::Roots(Arc::new(TrustRoots::from_bundle(&bundle)?))
                }
                None => Bootstrap::RootHash(token.root_sha256()),
            };
            let evidence = identity::Evidence::JoinToken(token.reveal());
            (trust.client_config(&control_plane, &[H2])?, Some(evidence))
        }
        Evidence::PodToken(token) => {
            let bundle = files::bundle_of(&token.trust_bundle, &trust_domain)?;
            let trust = Bootstrap::Roots(Arc::new(TrustRoots::from_bundle(&bundle)?));
            let evidence = identity::Evidence::Token(files::text(&token.token)?);
            (trust.client_config(&control_plane, &[H2])?, Some(evidence))
        }
    };
    // A new key for every certificate; it stays in this process and its state directory.
    let key = PrivateKey::generate()?;
    let mut request = tonic::Request::new(IssueRequest {
        csr: key.csr(&id)?,
        evidence,
        node_id: start.node_id.clone(),
    });
    request.set_timeout(TIMEOUT);
    let channel = connection::connect(&start.address, tls).await?;
    let mut client = IdentityClient::new(channel).max_decoding_message_size(LIMIT);
    let answer = tokio::time::timeout(TIMEOUT, client.issue(request)).await;
    let answer =
        answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")));
    let answer = answer
        .map_err(|status| IssueError::Refused(Box::new(status)))?
        .into_inner();
    if answer.retry_after_seconds > 0 {
        return Ok(Issued::Later(
            Duration::from_secs(answer.retry_after_seconds.into()).min(LATER),
        ));
    }
    check(answer, key, &id)
}

/// What any peer would check, and that it is what was asked for.
fn check(answer: IssueResponse, key: PrivateKey, id: &SpiffeId) -> Result<Issued, IssueError> {
    if answer.chain.len() > 8 {
        return Err(IssueError::TooLarge);
    }
    let bundle: TrustBundle =
        serde_json::from_str(&answer.trust_bundle).map_err(IssueError::Bundle)?;
    if bundle.trust_domain != *id.trust_domain() {
        return Err(IssueError::OtherDomain(bundle.trust_domain));
    }
    let roots = TrustRoots::from_bundle(&bundle)?;
    let chain = answer.chain.into_iter().map(CertificateDer::from).collect();
    let svid = X509Svid::parse(chain, key, &roots, UnixTime::now())?;
    if svid.id != *id {
        return Err(IssueError::OtherIdentity(Box::new(svid.id)));
    }
    Ok(Issued::Svid {
        svid: Arc::new(svid),
        bundle,
    })
}

/// What the keeper begins with.
#[derive(Debug)]
pub(crate) struct IdentityDeps {
    pub(crate) node_id: String,
    pub(crate) address: Url,
    pub(crate) root_namespace: Namespace,
    pub(crate) workload: WorkloadId,
    pub(crate) join_token: Option<JoinToken>,
    pub(crate) pod_token: Option<PodToken>,
    pub(crate) trust_bundle: Option<PathBuf>,
}
