//! A control plane that sends what the test says, for states that the real one never sends.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use merlon_api::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    seal_resource,
};
use merlon_certs::{H2, PrivateKey};
use merlon_config::snapshot::{Manifest, ManifestEntry, ResourceKey, ResourceKind, Version};
use merlon_issuer::Embedded;
use merlon_test_support::{ca, runtime};
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{names::TRUST_DOMAIN, peer::control_plane, running::Mesh};

/// A control plane at the address of the mesh's own, which must have ended, with a certificate of its authority. It sends
/// the same state to every proxy, and nothing else: no certificates, no changes.
#[derive(Debug)]
pub struct FakeControlPlane {
    server: JoinHandle<()>,
}

impl Drop for FakeControlPlane {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Mesh {
    /// Starts a fake control plane that sends these resources.
    ///
    /// # Panics
    /// If the mesh's own control plane runs.
    pub async fn fake_control_plane(
        &self,
        resources: &[(ResourceKind, &str, Value)],
    ) -> FakeControlPlane {
        let id = control_plane();
        let domain = TRUST_DOMAIN.parse().expect("a trust domain");
        let authority = Embedded::open(&self.folder().join("control-plane"), &domain);
        let authority = authority.expect("the authority of the control plane that has ended");
        let key = PrivateKey::generate().expect("a key");
        let csr = key.csr(&id).expect("a request");
        let hour = Duration::from_secs(3_600);
        let chain = authority.sign(&csr, &id, hour).expect("a certificate");
        let tls = ca::identity(chain, key, &authority.bundle());
        let tls = tls.server_config_with_optional_client_cert(&[H2]);
        let acceptor = TlsAcceptor::from(tls.expect("TLS"));
        let listener = TcpListener::bind(self.control_plane().address()).await;
        let listener = listener.expect("the address of the control plane that has ended");
        let state = resources.iter().map(|(kind, name, resource)| {
            let key = ResourceKey {
                kind: *kind,
                name: (*name).to_owned(),
            };
            (key, resource.to_string())
        });
        let service = AggregatedDiscoveryServiceServer::new(State(Arc::new(state.collect())));
        let server = runtime::spawn(async move {
            // Ends with the task.
            let _ = tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(accept(listener, acceptor))
                .await;
        });
        FakeControlPlane { server }
    }
}

type Connection = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

/// The connections whose handshake succeeds, one after the other.
fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
) -> impl Stream<Item = std::io::Result<Connection>> {
    let connections = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let connections = connections.then(move |stream| {
        let acceptor = acceptor.clone();
        async move { acceptor.accept(stream?).await }
    });
    connections.filter(Result::is_ok)
}

/// All resources, as JSON.
#[derive(Debug, Clone)]
struct State(Arc<BTreeMap<ResourceKey, String>>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for State {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (mut requests, state) = (request.into_inner(), self.clone());
        let (sender, responses) = mpsc::channel(1);
        runtime::spawn(async move {
            let mut nonce = 0;
            while let Some(Ok(request)) = requests.next().await {
                if !request.resource_names_subscribe.is_empty() {
                    nonce += 1;
                    let response = state.response(&request, nonce);
                    // The proxy may have gone.
                    let _ = sender.send(Ok(response)).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

impl State {
    /// What a request subscribes to.
    fn response(&self, request: &DeltaDiscoveryRequest, nonce: u32) -> DeltaDiscoveryResponse {
        let mut response = DeltaDiscoveryResponse {
            type_url: request.type_url.clone(),
            nonce: nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        };
        for name in &request.resource_names_subscribe {
            let key = merlon_api::state_key(&request.type_url, name).expect("a known type");
            let json = match key.kind {
                ResourceKind::Manifest => Some(self.manifest()),
                _ => self.0.get(&key).cloned(),
            };
            match json {
                Some(json) => {
                    let version = Version::of(json.as_bytes());
                    let sealed = seal_resource(&key, &version, json.as_bytes());
                    response.resources.push(sealed);
                }
                None => response.removed_resources.push(name.clone()),
            }
        }
        response
    }

    fn manifest(&self) -> String {
        let entries = self.0.iter().map(|(key, json)| ManifestEntry {
            key: key.clone(),
            version: Version::of(json.as_bytes()),
        });
        let manifest = Manifest {
            entries: entries.collect(),
        };
        serde_json::to_string(&manifest).expect("JSON")
    }
}
