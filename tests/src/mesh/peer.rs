//! Peers that the test controls directly, with or without a certificate of the mesh. They use no proxy of their own, so what
//! they send arrives as it is.

mod destination;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

pub use destination::{Destination, PeerCall};

use hyper_util::rt::TokioIo;
use merlon_api::{
    JoinToken, control_plane_id,
    discovery::{
        DeltaDiscoveryRequest,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    identity::{Evidence, IssueRequest, IssueResponse, identity_client::IdentityClient},
};
use merlon_certs::{Bootstrap, H2, MeshTls, PrivateKey, TrustRoots, X509Svid};
use merlon_config::{name::SpiffeId, snapshot::ResourceKind};
use merlon_test_support::ca;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use super::{
    names::{TRUST_DOMAIN, spiffe_id},
    running::Mesh,
};
use crate::wait::{TIMEOUT, limit};

/// A peer without a certificate, which can request one as a new proxy does.
#[derive(Debug)]
pub struct AnonymousPeer {
    control_plane: SocketAddr,
    tls: Arc<ClientConfig>,
}

/// A peer that dials the processes of a mesh and trusts their roots. It has a certificate of the mesh, unless the test has
/// replaced it.
#[derive(Debug, Clone)]
pub struct TestPeer {
    control_plane: SocketAddr,
    /// The inbound addresses of the mesh, by workload.
    inbound: BTreeMap<String, SocketAddr>,
    svid: Option<Arc<X509Svid>>,
    roots: Arc<TrustRoots>,
}

pub(super) fn control_plane() -> SpiffeId {
    let domain = TRUST_DOMAIN.parse().expect("a trust domain");
    control_plane_id(&domain, &"merlon-system".parse().expect("a namespace"))
}

impl Mesh {
    /// A peer without a certificate that trusts the mesh's root by this join token.
    pub fn anonymous_peer(&self, token: &str) -> AnonymousPeer {
        let token: JoinToken = token.parse().expect("a join token");
        let bootstrap = Bootstrap::RootHash(token.root_sha256());
        AnonymousPeer {
            control_plane: self.control_plane().address(),
            tls: bootstrap
                .client_config(&control_plane(), &[H2])
                .expect("TLS"),
        }
    }

    /// A peer with a real certificate of `workload`.
    pub async fn test_peer(&self, workload: &str) -> TestPeer {
        let token = self.control_plane().join_token(workload).await;
        let key = PrivateKey::generate().expect("a key");
        let csr = key.csr(&spiffe_id(workload)).expect("a request");
        let issued = self
            .anonymous_peer(&token)
            .issue(csr, Some(&token))
            .await
            .expect("a certificate");
        let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
        let bundle = serde_json::from_str(&issued.trust_bundle).expect("a trust bundle");
        let identity = ca::identity(chain, key, &bundle);
        let inbound = self.sidecars();
        TestPeer {
            control_plane: self.control_plane().address(),
            inbound: inbound
                .map(|(name, sidecar)| (name.to_owned(), sidecar.inbound()))
                .collect(),
            svid: Some(Arc::clone(identity.svid())),
            roots: Arc::clone(identity.roots()),
        }
    }
}

impl AnonymousPeer {
    /// Requests a certificate.
    ///
    /// # Errors
    /// The error of the control plane.
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

impl TestPeer {
    /// Its certificate's serial number, hexadecimal.
    pub fn serial(&self) -> String {
        self.svid().serial.clone()
    }

    /// The roots that it trusts.
    pub fn roots(&self) -> &Arc<TrustRoots> {
        &self.roots
    }

    /// The same peer with other roots. It still shows its own certificate.
    #[must_use]
    pub fn trusting(self, roots: &Arc<TrustRoots>) -> Self {
        Self {
            roots: Arc::clone(roots),
            ..self
        }
    }

    /// The same peer with the certificate and key of `other`. It still dials its own mesh and trusts its roots.
    #[must_use]
    pub fn signed_by(self, other: &Self) -> Self {
        Self {
            svid: other.svid.clone(),
            ..self
        }
    }

    /// The same peer without a certificate.
    #[must_use]
    pub fn without_certificate(self) -> Self {
        Self { svid: None, ..self }
    }

    /// The inbound side of the proxy of `workload`, which must have the workload's identity.
    pub fn to(&self, workload: &str) -> Destination {
        let address = self.inbound.get(workload);
        let address = address.unwrap_or_else(|| panic!("no workload `{workload}` in this mesh"));
        self.to_address(*address, spiffe_id(workload))
    }

    /// The control plane.
    pub fn to_control_plane(&self) -> Destination {
        self.to_address(self.control_plane, control_plane())
    }

    /// Any mesh TLS listener, which must have this identity.
    pub fn to_address(&self, address: SocketAddr, identity: SpiffeId) -> Destination {
        Destination::new(self.clone(), address, identity)
    }

    fn svid(&self) -> &Arc<X509Svid> {
        self.svid.as_ref().expect("a peer with a certificate")
    }

    fn client_config(&self, expected: &SpiffeId, alpn: &[u8]) -> Arc<ClientConfig> {
        let roots = Arc::clone(&self.roots);
        let config = match &self.svid {
            Some(svid) => MeshTls::new(Arc::clone(svid), roots)
                .and_then(|tls| tls.client_config(expected, &[alpn])),
            None => Bootstrap::Roots(roots).client_config(expected, &[alpn]),
        };
        config.expect("TLS")
    }

    /// Requests a certificate, authenticated by the current one and, if given, a join token.
    ///
    /// # Errors
    /// The error of the control plane.
    pub async fn issue(
        &self,
        csr: Vec<u8>,
        join_token: Option<&str>,
    ) -> Result<IssueResponse, Status> {
        issue(self.channel().await, csr, join_token).await
    }

    /// A gRPC connection to the control plane under its identity.
    pub async fn channel(&self) -> Channel {
        let tls = self.client_config(&control_plane(), H2);
        channel(self.control_plane, tls).await
    }

    /// Requests its snapshot as a proxy does, with the node id `node`, and rejects it with this reason.
    pub async fn reject_snapshot(&self, node: &str, reason: &str) -> RejectingProxy {
        let (requests, stream) = mpsc::channel(4);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await);
        let send = async |request| requests.send(request).await.expect("the stream is open");
        send(DeltaDiscoveryRequest {
            node: Some(merlon_api::node(node, None, env!("CARGO_PKG_VERSION"))),
            type_url: ResourceKind::Manifest.type_url().to_owned(),
            resource_names_subscribe: vec![self.svid().id.to_string()],
            ..DeltaDiscoveryRequest::default()
        })
        .await;
        let response = client
            .delta_aggregated_resources(ReceiverStream::new(stream))
            .await
            .expect("a stream");
        let received = response.into_inner().message().await.expect("a response");
        let received = received.expect("a manifest");
        send(DeltaDiscoveryRequest {
            type_url: received.type_url,
            response_nonce: received.nonce,
            error_detail: Some(merlon_api::discovery::Status {
                code: 3,
                message: reason.to_owned(),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
        RejectingProxy {
            _requests: requests,
        }
    }

    /// The configuration of a server under its identity, which accepts peers of the mesh.
    pub fn server_config(&self, alpn: &[u8]) -> Arc<ServerConfig> {
        MeshTls::new(Arc::clone(self.svid()), Arc::clone(&self.roots))
            .and_then(|tls| tls.server_config(&[alpn]))
            .expect("TLS")
    }
}

/// A proxy that has rejected its snapshot. Its stream stays open until this is dropped.
#[derive(Debug)]
pub struct RejectingProxy {
    _requests: mpsc::Sender<DeltaDiscoveryRequest>,
}

/// A TLS connection with any configuration.
///
/// # Errors
/// The error of the handshake.
pub async fn tls_connect(
    to: SocketAddr,
    tls: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    tls_connect_from(IpAddr::V4(Ipv4Addr::UNSPECIFIED), to, tls).await
}

/// [`tls_connect`] from this address.
///
/// # Errors
/// Those of [`tls_connect`], and if the address is not this machine's.
pub async fn tls_connect_from(
    from: IpAddr,
    to: SocketAddr,
    tls: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    limit(format!("a TLS connection to {to}"), async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let stream = socket.connect(to).await?;
        let server_name = ServerName::from(to.ip());
        TlsConnector::from(tls).connect(server_name, stream).await
    })
    .await
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
        async move { tls_connect(to, tls).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://merlon-control-plane")
        .timeout(TIMEOUT)
        .connect_with_connector(connector)
        .await
        .unwrap_or_else(|error| panic!("the control plane: {error:?}"))
}
