//! A peer of one's own making: it has an identity of the mesh, or none, and says whatever it likes.

use std::{net::SocketAddr, sync::Arc};

use hyper_util::rt::TokioIo;
use merlon_api::{
    JoinToken, control_plane_id,
    identity::{Evidence, IssueRequest, IssueResponse, identity_client::IdentityClient},
};
use merlon_certs::{Bootstrap, H2, MeshTls, PrivateKey, TrustRoots, X509Svid};
use merlon_config::name::SpiffeId;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::{Mesh, TRUST_DOMAIN};

/// Asks for certificates as a proxy does before it has one.
#[derive(Debug)]
pub struct Stranger {
    control_plane: SocketAddr,
    tls: Arc<ClientConfig>,
}

/// Has a certificate of the mesh, and its key.
#[derive(Debug)]
pub struct Insider {
    control_plane: SocketAddr,
    tls: MeshTls,
}

/// The identity of a workload of the tests' namespace.
pub fn spiffe_id(workload: &str) -> SpiffeId {
    super::identity(workload).parse().expect("a SPIFFE ID")
}

fn control_plane() -> SpiffeId {
    let domain = TRUST_DOMAIN.parse().expect("a trust domain");
    control_plane_id(&domain, &"merlon-system".parse().expect("a namespace"))
}

impl Mesh {
    /// Somebody who knows the mesh's root by this join token, and has no certificate.
    pub fn stranger(&self, token: &str) -> Stranger {
        let token: JoinToken = token.parse().expect("a join token");
        let bootstrap = Bootstrap::RootHash(token.root_sha256());
        Stranger {
            control_plane: self.control_plane().address(),
            tls: bootstrap
                .client_config(&control_plane(), &[H2])
                .expect("TLS"),
        }
    }

    /// Somebody with a real certificate of `workload`.
    pub async fn insider(&self, workload: &str) -> Insider {
        let token = self.control_plane().join_token(workload).await;
        let key = PrivateKey::generate().expect("a key");
        let csr = key.csr(&spiffe_id(workload)).expect("a request");
        let issued = self
            .stranger(&token)
            .issue(csr, Some(&token))
            .await
            .expect("a certificate");
        let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
        let bundle = serde_json::from_str(&issued.trust_bundle).expect("a trust bundle");
        let roots = Arc::new(TrustRoots::from_bundle(&bundle).expect("roots"));
        let svid = X509Svid::parse(chain, key, &roots, UnixTime::now()).expect("an SVID");
        Insider {
            control_plane: self.control_plane().address(),
            tls: MeshTls::new(Arc::new(svid), roots).expect("TLS"),
        }
    }
}

impl Stranger {
    /// Asks for a certificate.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn issue(
        &self,
        csr: Vec<u8>,
        join_token: Option<&str>,
    ) -> Result<IssueResponse, Status> {
        issue(self.channel().await, csr, join_token).await
    }

    /// A gRPC connection to the control plane without a certificate.
    pub async fn channel(&self) -> Channel {
        channel(self.control_plane, Arc::clone(&self.tls)).await
    }
}

impl Insider {
    /// Its certificate's serial number, hexadecimal.
    pub fn serial(&self) -> String {
        self.tls.svid().serial.clone()
    }

    /// Asks for a certificate by the right of the one it has, or of a join token.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn issue(
        &self,
        csr: Vec<u8>,
        join_token: Option<&str>,
    ) -> Result<IssueResponse, Status> {
        issue(self.channel().await, csr, join_token).await
    }

    /// A gRPC connection to the control plane under its identity.
    pub async fn channel(&self) -> Channel {
        let tls = self
            .tls
            .client_config(&control_plane(), &[H2])
            .expect("TLS");
        channel(self.control_plane, tls).await
    }

    /// A mesh TLS connection to the proxy of `workload` at `to`.
    ///
    /// # Errors
    /// What failed in the handshake.
    pub async fn dial(
        &self,
        to: SocketAddr,
        workload: &str,
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tls = self
            .tls
            .client_config(&spiffe_id(workload), &[alpn])
            .expect("TLS");
        handshake(to, tls).await
    }
}

/// A TLS connection under any configuration.
///
/// # Errors
/// What failed in the handshake.
pub async fn handshake(
    to: SocketAddr,
    tls: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    let nameless = ServerName::from(to.ip());
    TlsConnector::from(tls).connect(nameless, stream).await
}

async fn issue(
    channel: Channel,
    csr: Vec<u8>,
    join_token: Option<&str>,
) -> Result<IssueResponse, Status> {
    let request = IssueRequest {
        csr,
        evidence: join_token.map(|token| Evidence::JoinToken(token.to_owned())),
        node_id: "test".to_owned(),
    };
    Ok(IdentityClient::new(channel)
        .issue(request)
        .await?
        .into_inner())
}

async fn channel(to: SocketAddr, tls: Arc<ClientConfig>) -> Channel {
    let connector = service_fn(move |_| {
        let tls = Arc::clone(&tls);
        async move { handshake(to, tls).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://merlon-control-plane")
        .connect_with_connector(connector)
        .await
        .unwrap_or_else(|error| panic!("the control plane: {error:?}"))
}
