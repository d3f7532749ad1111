//! Requests certificates as the proxy of a pod does.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use hyper_util::rt::TokioIo;
use merlon_api::{
    control_plane_id,
    identity::{Evidence, IssueRequest, identity_client::IdentityClient},
};
use merlon_certs::{Bootstrap, CertificateDer, H2, MeshTls, PrivateKey, TrustRoots};
use merlon_config::{
    name::{SpiffeId, TrustDomain},
    snapshot::TrustBundle,
};
use merlon_test_support::ca;
use rustls::ClientConfig;
use tonic::{Status, transport::Endpoint};
use tower::service_fn;

use super::{replica::Replica, server::Pod};
use crate::mesh::tls_connect_from;

/// A certificate with its key.
#[derive(Debug)]
pub struct Issued {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    tls: MeshTls,
    bundle: TrustBundle,
}

impl Replica {
    /// Requests a certificate for a pod with a token, and with the trust bundle in the folder `trust`.
    ///
    /// # Errors
    /// The error of the control plane.
    pub async fn issue(&self, trust: &Path, pod: &Pod, token: &str) -> Result<Issued, Status> {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.issue_from(any, trust, pod, token).await
    }

    /// [`Replica::issue`] from this address.
    ///
    /// # Errors
    /// The error of the control plane.
    pub async fn issue_from(
        &self,
        from: IpAddr,
        trust: &Path,
        pod: &Pod,
        token: &str,
    ) -> Result<Issued, Status> {
        let read = |file: &str| fs::read_to_string(trust.join(file)).expect("a mounted file");
        let domain: TrustDomain = read("trust-domain").parse().expect("a trust domain");
        let bundle = TrustBundle {
            trust_domain: domain.clone(),
            roots: vec![read("bundle.pem")],
        };
        let roots = Arc::new(TrustRoots::from_bundle(&bundle).expect("roots"));
        let tls = Bootstrap::Roots(roots).client_config(&control_plane(&domain), &[H2]);
        let identity = format!("{}/{}", pod.namespace, pod.account);
        let id = domain.spiffe_id(&identity.parse().expect("an identity"));
        let evidence = Some(Evidence::Token(token.to_owned()));
        self.sign((from, tls.expect("TLS")), id, evidence, bundle)
            .await
    }

    /// Renews a certificate, authenticated only by the current one.
    ///
    /// # Errors
    /// The error of the control plane.
    pub async fn renew(&self, issued: &Issued) -> Result<Issued, Status> {
        let server = control_plane(issued.id.trust_domain());
        let tls = issued.tls.client_config(&server, &[H2]);
        let (id, bundle) = (issued.id.clone(), issued.bundle.clone());
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.sign((any, tls.expect("TLS")), id, None, bundle).await
    }

    async fn sign(
        &self,
        (from, tls): (IpAddr, Arc<ClientConfig>),
        id: SpiffeId,
        evidence: Option<Evidence>,
        bundle: TrustBundle,
    ) -> Result<Issued, Status> {
        let to = self.address();
        let connector = service_fn(move |_| {
            let tls = Arc::clone(&tls);
            async move { tls_connect_from(from, to, tls).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://control-plane")
            .connect_with_connector(connector)
            .await
            .expect("a connection");
        let key = PrivateKey::generate().expect("a key");
        let request = IssueRequest {
            csr: key.csr(&id).expect("a request"),
            evidence,
            node_id: "test".to_owned(),
        };
        let issued = IdentityClient::new(channel).issue(request).await?;
        let chain = issued.into_inner().chain;
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let tls = ca::identity(chain, key, &bundle);
        Ok(Issued {
            id: tls.svid().id.clone(),
            tls,
            bundle,
        })
    }
}

fn control_plane(domain: &TrustDomain) -> SpiffeId {
    control_plane_id(domain, &"merlon-system".parse().expect("a namespace"))
}
