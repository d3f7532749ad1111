//! Shared steps of the specifications.

use std::{path::PathBuf, sync::Arc};

use hyper_util::rt::TokioIo;
use merlon_api::{
    JoinToken, control_plane_id,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    identity::{Evidence, IssueRequest, IssueResponse, identity_client::IdentityClient},
    node,
};
use merlon_certs::{Bootstrap, CertificateDer, H2, MeshTls, PrivateKey};
use merlon_config::{
    name::SpiffeId,
    snapshot::{Destination, Manifest, ResourceKind, TrustBundle},
};
use merlon_control_plane::{ControlPlaneConfig, app, app::ControlPlane, limits::Limits};
use merlon_test_support::{ca, limit, until_some, wait::until_value};
use rustls::ClientConfig;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// A control plane with a directory of resources.
pub(crate) struct Plane {
    pub(crate) folder: TempDir,
    pub(crate) running: ControlPlane,
}

pub(crate) const MESH: &str = "
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: demo.test }
";

/// A Workload and its Service. `web` calls `orders` over its own listener.
pub(crate) fn service(name: &str, port: u16) -> String {
    let outbound = match name {
        "web" => "  outbound: [{ listen: \"127.0.0.1:8001\", service: shop/orders, port: 80 }]\n",
        _ => "",
    };
    format!(
        "apiVersion: merlon.io/v1alpha1\nkind: Workload\n\
         metadata: {{ name: {name}, namespace: shop, labels: {{ app: {name} }} }}\n\
         spec:\n  serviceAccount: {name}\n  meshAddress: \"127.0.0.1:{port}\"\n{outbound}---\n\
         apiVersion: merlon.io/v1alpha1\nkind: Service\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ selector: {{ app: {name} }}, ports: [{{ port: 80 }}] }}\n"
    )
}

pub(crate) fn id(name: &str) -> SpiffeId {
    format!("spiffe://demo.test/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

/// The files of `web`, `orders` and `payments`.
pub(crate) fn shop() -> [(&'static str, String); 4] {
    [
        ("mesh.yaml", MESH.to_owned()),
        ("web.yaml", service("web", 7001)),
        ("orders.yaml", service("orders", 7002)),
        ("payments.yaml", service("payments", 7003)),
    ]
}

impl Plane {
    /// With `web`, `orders` and `payments`.
    pub(crate) async fn start() -> Self {
        Self::with(&shop()).await
    }

    pub(crate) async fn with(files: &[(&str, String)]) -> Self {
        Self::with_config(files, |_| ()).await
    }

    /// With `web`, `orders` and `payments`, and other limits.
    pub(crate) async fn with_limits(change: impl FnOnce(&mut Limits)) -> Self {
        Self::with_config(&shop(), |config| change(&mut config.limits)).await
    }

    pub(crate) async fn with_config(
        files: &[(&str, String)],
        change: impl FnOnce(&mut ControlPlaneConfig),
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("resources")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join("resources").join(name), text).unwrap();
        }
        let mut config = config(&folder);
        change(&mut config);
        let running = app::run(config).await.unwrap();
        limit("the first certificate", running.ready()).await;
        Self { folder, running }
    }

    /// Restarts the control plane with the same directories.
    pub(crate) async fn restart(self) -> Self {
        self.running.shutdown().await.unwrap();
        let running = app::run(config(&self.folder)).await.unwrap();
        running.ready().await;
        Self {
            folder: self.folder,
            running,
        }
    }

    /// Stops it. Its directories stay.
    pub(crate) async fn stop(self) -> TempDir {
        limit("the end", self.running.shutdown()).await.unwrap();
        self.folder
    }

    /// Replaces a file at once, so that no half of it is read.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let folder = self.folder.path().join("resources");
        let new = folder.join(format!(".{file}.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, folder.join(file)).unwrap();
    }

    pub(crate) fn remove(&self, file: &str) {
        std::fs::remove_file(self.folder.path().join("resources").join(file)).unwrap();
    }

    /// Sends a request to the administration socket.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(&self.running.admin_socket)
            .await
            .unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, "").await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// A value of `/metrics`, which has every series from the start.
    pub(crate) async fn metric(&self, line: &str) -> u64 {
        let mut stream = TcpStream::connect(self.running.admin).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let found = reply
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        assert!(found.is_some(), "there is no `{line}` in:\n{reply}");
        found.unwrap().parse().unwrap()
    }

    /// The first problem of the resources, as soon as there is one.
    pub(crate) async fn problem(&self) -> Value {
        until_some("the control plane reports a problem", async || {
            let status = self.get("/v1/status").await;
            status["source"]["problems"].get(0).cloned()
        })
        .await
    }

    /// The status of the proxy with this node id.
    pub(crate) async fn status(&self, node: &str) -> Value {
        let list = self.get("/v1/proxies").await;
        let mut list = list.as_array().unwrap().iter();
        list.find(|proxy| proxy["id"] == node)
            .cloned()
            .unwrap_or(Value::Null)
    }

    /// Waits until the status of a proxy matches.
    pub(crate) async fn until(&self, node: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let what = format!("the status of `{node}` matches");
        until_value(what, async || self.status(node).await, wanted).await
    }

    /// Waits until `/v1/status` matches.
    pub(crate) async fn until_status(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let what = "the status of the control plane matches";
        until_value(what, async || self.get("/v1/status").await, wanted).await
    }

    pub(crate) async fn token(&self, name: &str) -> JoinToken {
        let body = json!({ "identity": format!("shop/{name}") }).to_string();
        let (status, made) = self.ask("POST", "/v1/join-tokens", &body).await;
        assert_eq!(status, 200, "{made}");
        made["token"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn control_plane_id(&self) -> SpiffeId {
        control_plane_id(
            &"demo.test".parse().unwrap(),
            &"merlon-system".parse().unwrap(),
        )
    }

    pub(crate) async fn connect(
        &self,
        tls: Arc<ClientConfig>,
    ) -> Result<Channel, tonic::transport::Error> {
        self.connect_with_window(tls, 1 << 20).await
    }

    async fn connect_with_window(
        &self,
        tls: Arc<ClientConfig>,
        window: u32,
    ) -> Result<Channel, tonic::transport::Error> {
        let address = self.running.listen;
        let connector = tower::service_fn(move |_| {
            let tls = tokio_rustls::TlsConnector::from(Arc::clone(&tls));
            async move {
                let stream = TcpStream::connect(address).await?;
                let tls = tls.connect(merlon_certs::server_name(), stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(tls))
            }
        });
        Endpoint::from_static("http://control-plane")
            .initial_stream_window_size(window)
            .connect_with_connector(connector)
            .await
    }

    /// A TLS connection. The client has finished its handshake; the server may still refuse it.
    pub(crate) async fn dial(&self, tls: Arc<ClientConfig>) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.running.listen).await.unwrap();
        let tls = tokio_rustls::TlsConnector::from(tls);
        tls.connect(merlon_certs::server_name(), stream)
            .await
            .unwrap()
    }

    /// A connection without a client certificate, which trusts the root that a token pins.
    pub(crate) async fn without_certificate(&self, token: &JoinToken) -> Channel {
        let known = Bootstrap::RootHash(token.root_sha256());
        let tls = known
            .client_config(&self.control_plane_id(), &[H2])
            .unwrap();
        self.connect(tls).await.unwrap()
    }

    /// A workload with a certificate of its own.
    pub(crate) async fn join(&self, name: &str) -> Member {
        let token = self.token(name).await;
        let key = PrivateKey::generate().unwrap();
        let csr = key.csr(&id(name)).unwrap();
        let channel = self.without_certificate(&token).await;
        let reply = issue(channel, csr, Some(&token)).await.unwrap();
        Member::of(reply, key)
    }
}

fn config(folder: &TempDir) -> ControlPlaneConfig {
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    ControlPlaneConfig::on_loopback(path("resources"), path("state"))
}

pub(crate) async fn issue(
    channel: Channel,
    csr: Vec<u8>,
    token: Option<&JoinToken>,
) -> Result<IssueResponse, Status> {
    let request = IssueRequest {
        csr,
        node_id: "node-1".into(),
        evidence: token.map(|token| Evidence::JoinToken(token.reveal())),
    };
    let reply = IdentityClient::new(channel).issue(request).await?;
    Ok(reply.into_inner())
}

/// The proxy of a workload, as seen by the control plane.
pub(crate) struct Member {
    pub(crate) tls: MeshTls,
}

impl Member {
    pub(crate) fn of(reply: IssueResponse, key: PrivateKey) -> Self {
        let bundle: TrustBundle = serde_json::from_str(&reply.trust_bundle).unwrap();
        let chain = reply.chain.into_iter().map(CertificateDer::from).collect();
        Self {
            tls: ca::identity(chain, key, &bundle),
        }
    }

    pub(crate) async fn channel(&self, plane: &Plane) -> Channel {
        let tls = self
            .tls
            .client_config(&plane.control_plane_id(), &[H2])
            .unwrap();
        plane.connect(tls).await.unwrap()
    }

    /// A stream whose proxy lets the control plane send only `window` bytes that it has not read.
    pub(crate) async fn narrow_stream(&self, plane: &Plane, node: &str, window: u32) -> Stream {
        let tls = self
            .tls
            .client_config(&plane.control_plane_id(), &[H2])
            .unwrap();
        let channel = plane.connect_with_window(tls, window).await.unwrap();
        Stream::open(channel, self.tls.svid().id.clone(), node)
            .await
            .unwrap()
    }

    pub(crate) async fn stream(&self, plane: &Plane, node: &str) -> Stream {
        Stream::open(self.channel(plane).await, self.tls.svid().id.clone(), node)
            .await
            .unwrap()
    }
}

/// A delta stream.
pub(crate) struct Stream {
    pub(crate) id: String,
    node: String,
    pub(crate) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(crate) responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    pub(crate) async fn open(channel: Channel, id: SpiffeId, node: &str) -> Result<Self, Status> {
        let (requests, stream) = mpsc::channel(64);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let reply = client
            .delta_aggregated_resources(ReceiverStream::new(stream))
            .await?;
        Ok(Self {
            id: id.to_string(),
            node: node.to_owned(),
            requests,
            responses: reply.into_inner(),
        })
    }

    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub(crate) fn subscription(&self, kind: ResourceKind, names: &[&str]) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(node(&self.node, None, "0.1.0")),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    pub(crate) async fn subscribe(&self, kind: ResourceKind, names: &[&str]) {
        self.send(self.subscription(kind, names)).await;
    }

    pub(crate) async fn subscribe_manifest(&self) {
        self.subscribe(ResourceKind::Manifest, &[&self.id]).await;
    }

    pub(crate) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = limit("a response", self.responses.message()).await;
        Ok(message?.expect("a response, not the end"))
    }

    /// The next response, which must have the kind `kind`.
    pub(crate) async fn next_of(&mut self, kind: ResourceKind) -> DeltaDiscoveryResponse {
        let response = self.next().await.unwrap();
        assert_eq!(response.type_url, kind.type_url(), "{response:?}");
        response
    }

    pub(crate) async fn answer(&self, response: &DeltaDiscoveryResponse, refusal: Option<&str>) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: refusal.map(|message| merlon_api::discovery::Status {
                code: 3,
                message: message.to_owned(),
                details: Vec::new(),
            }),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
    }

    /// Asserts that nothing was sent until now: the response to a new request is the next one.
    pub(crate) async fn expect_nothing_sent(&mut self) {
        self.subscribe(ResourceKind::Destination, &["shop/nothing"])
            .await;
        let response = self.next_of(ResourceKind::Destination).await;
        assert_eq!(response.removed_resources, ["shop/nothing"]);
        assert!(response.resources.is_empty());
    }
}

/// Subscribes to the manifest and to every resource in it, and acknowledges.
pub(crate) async fn follow(stream: &mut Stream) -> (Manifest, DeltaDiscoveryResponse) {
    stream.subscribe_manifest().await;
    let response = stream.next_of(ResourceKind::Manifest).await;
    let manifest: Manifest = content(&response);
    for kind in ResourceKind::ALL {
        let names: Vec<_> = manifest
            .entries
            .iter()
            .filter(|entry| entry.key.kind == kind)
            .collect();
        if names.is_empty() {
            continue;
        }
        let names: Vec<_> = names.iter().map(|entry| entry.key.name.as_str()).collect();
        stream.subscribe(kind, &names).await;
        assert_eq!(stream.next_of(kind).await.resources.len(), names.len());
    }
    stream.answer(&response, None).await;
    (manifest, response)
}

pub(crate) fn content<T: serde::de::DeserializeOwned>(response: &DeltaDiscoveryResponse) -> T {
    let opened = merlon_api::open_resource(response.resources[0].clone()).unwrap();
    serde_json::from_slice(&opened.json).unwrap()
}

/// Reads until the destination has an endpoint at `port`. Returns the number of destinations that were read.
pub(crate) async fn until_port(stream: &mut Stream, port: u16) -> usize {
    let arrived = async {
        let mut count = 0;
        loop {
            let response = stream.next().await.unwrap();
            if response.type_url != ResourceKind::Destination.type_url() {
                continue;
            }
            count += 1;
            let destination: Destination = content(&response);
            if destination.endpoints[0].address.port() == port {
                return count;
            }
        }
    };
    limit("the change", arrived).await
}
