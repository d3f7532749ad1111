//! One call of `Issue`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use merlon_api::{
    JoinToken, control_plane_id,
    identity::{self, IssueRequest, IssueResponse, identity_client::IdentityClient},
};
use merlon_certs::{
    Bootstrap, H2, KeyError, MeshTls, PrivateKey, RootsError, SvidError, TrustRoots, X509Svid,
    unix_now,
};
use merlon_config::{
    name::{Namespace, SpiffeId, TrustDomain, WorkloadId},
    snapshot::TrustBundle,
};
use rustls_pki_types::CertificateDer;
use tonic::Code;
use url::Url;

use super::files::{self, IdentityError};
use crate::{config::PodToken, control::connection};

/// The evidence in a certificate request.
pub(super) enum Evidence<'a> {
    /// The certificate in force, for a renewal.
    Certificate(Arc<MeshTls>),
    /// A one-time token, for the first certificate.
    JoinToken(&'a JoinToken),
    /// The pod's service account token.
    PodToken(&'a PodToken),
}

/// The result of a certificate request.
pub(super) enum Issued {
    /// A verified certificate.
    Svid {
        svid: Arc<X509Svid>,
        bundle: TrustBundle,
    },
    /// Retry after this time.
    Later(Duration),
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub(super) enum IssueError {
    #[error("there is no certificate in force to renew, and no unused join token")]
    NoEvidence,
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the control plane cannot be reached")]
    Connect(#[from] tonic::transport::Error),
    #[error("the control plane responded: {} ({})", .0.message(), .0.code())]
    Refused(Box<tonic::Status>),
    #[error(transparent)]
    Files(#[from] IdentityError),
    #[error("no TLS configuration")]
    Tls(#[from] rustls::Error),
    #[error("the control plane's trust bundle is not valid JSON")]
    Bundle(#[source] serde_json::Error),
    #[error("the control plane's trust bundle is for `{0}`")]
    OtherDomain(TrustDomain),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error("the control plane's certificate is invalid: {0}")]
    Svid(#[from] SvidError),
    #[error("the control plane sent a certificate for `{0}`")]
    OtherIdentity(Box<SpiffeId>),
    #[error("the control plane's response is too large")]
    TooLarge,
}

impl IssueError {
    /// Whether retries cannot succeed until an operator acts.
    pub(super) fn is_final(&self) -> bool {
        match self {
            // The kubelet fixes the pod's files, and refreshes its token.
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
    /// How to fix the error, if that is known.
    pub(super) fn hint(&self, workload: &WorkloadId) -> Option<String> {
        let token = match self {
            Self::NoEvidence => true,
            Self::Refused(status) => self.is_final() && status.message().contains("join token"),
            _ => false,
        };
        token.then(|| {
            format!("create a join token with `merlon token create --identity {workload}`, and start this proxy with it")
        })
    }
}

/// Time limit of a call, in which the control plane may call Vault.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum size of chain and bundle together.
const LIMIT: usize = 256 << 10;

/// Maximum retry delay that is accepted from the control plane.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(300);

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
    // Every certificate has a new key, which stays in this process and its state directory.
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
        answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no response in time")));
    let answer = answer
        .map_err(|status| IssueError::Refused(Box::new(status)))?
        .into_inner();
    if answer.retry_after_seconds > 0 {
        return Ok(Issued::Later(
            Duration::from_secs(answer.retry_after_seconds.into()).min(MAX_RETRY_DELAY),
        ));
    }
    check(answer, key, &id)
}

/// Verifies the certificate like a peer, and that it is for the requested identity.
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
    let svid = X509Svid::parse(chain, key, &roots, unix_now())?;
    if svid.id != *id {
        return Err(IssueError::OtherIdentity(Box::new(svid.id)));
    }
    Ok(Issued::Svid {
        svid: Arc::new(svid),
        bundle,
    })
}

/// The input of the identity task.
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
