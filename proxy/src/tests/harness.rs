//! Nodes, programs and callers that read like sentences.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    convert::Infallible,
    io::Write,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use merlon_certs::{MERLON_H2, MeshTls, PrivateKey, TrustRoots, X509Svid};
use merlon_config::{
    live::Live,
    resource::{OutboundListener, OutboundMode},
    snapshot::{
        Destination, Endpoint, GatewayState, InboundService, MeshState, TrustBundle, Version,
        WorkloadState,
    },
};
use merlon_policy::limit::LimitRegistry;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::LocalSet,
};

use crate::{
    config::AccessLogMode,
    inbound,
    protocol::{address_claims::Claims, http2, sockets},
    request::local::WorkerContext,
    state::{
        destinations::Destinations,
        gateway_ports::Port,
        jwks_cache::JwksCache,
        readiness::Readiness,
        shared::{Shared, Shutdown},
        snapshot::{CompiledService, Snapshot},
    },
    telemetry::{
        access_log::AccessLog, decision_log::DecisionLog, metrics::worker::WorkerMetrics,
        spans::Spans,
    },
    upstream::{body::RequestBody, dial, h2},
    worker::{self, Worker},
};

/// Runs a test as a worker runs: on one thread.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let all = async {
        tokio::time::timeout(Duration::from_secs(30), test)
            .await
            .expect("the test hangs")
    };
    LocalSet::new().block_on(&runtime, all);
}

pub(super) const DOMAIN: &str = "demo.test";

/// A root, and the identities that it vouches for.
pub(super) struct Ca {
    issuer: Issuer<'static, PrivateKey>,
    bundle: TrustBundle,
    pub(super) root: CertificateDer<'static>,
}

impl Ca {
    pub(super) fn new() -> Self {
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.self_signed(&key).unwrap();
        let bundle = TrustBundle {
            trust_domain: DOMAIN.parse().unwrap(),
            roots: vec![certificate.pem()],
        };
        Self {
            issuer: Issuer::new(params, key),
            bundle,
            root: certificate.der().clone(),
        }
    }

    pub(super) fn identity(&self, workload: &str) -> Arc<MeshTls> {
        self.identity_with(workload, &[])
    }

    /// An identity whose certificate names hosts as well.
    pub(super) fn identity_with(&self, workload: &str, hosts: &[&str]) -> Arc<MeshTls> {
        let roots = TrustRoots::from_bundle(&self.bundle).unwrap();
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(spiffe(workload).try_into().unwrap())];
        for host in hosts {
            let name = SanType::DnsName((*host).try_into().unwrap());
            params.subject_alt_names.push(name);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let svid = X509Svid::parse(vec![leaf.der().clone()], key, &roots, UnixTime::now()).unwrap();
        Arc::new(MeshTls::new(Arc::new(svid), Arc::new(roots)).unwrap())
    }

    /// A certificate for a host at the edge, as files.
    pub(super) fn files(&self, host: &str, directory: &std::path::Path) -> serde_json::Value {
        let key = PrivateKey::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate, private) = (directory.join("tls.crt"), directory.join("tls.key"));
        std::fs::write(&certificate, leaf.pem()).unwrap();
        std::fs::write(&private, key.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
        json!({ "certificateFile": certificate, "keyFile": private })
    }
}

pub(super) fn spiffe(workload: &str) -> String {
    let (namespace, account) = workload.split_once('/').unwrap();
    format!("spiffe://{DOMAIN}/ns/{namespace}/sa/{account}")
}

/// What a node is told.
#[derive(Clone)]
pub(super) struct State {
    pub(super) identity: &'static str,
    pub(super) services: Vec<serde_json::Value>,
    pub(super) destinations: Vec<Destination>,
    pub(super) outbound: Vec<OutboundListener>,
    pub(super) gateway: Option<serde_json::Value>,
    pub(super) mode: OutboundMode,
}

impl State {
    pub(super) fn of(identity: &'static str) -> Self {
        Self {
            identity,
            services: Vec::new(),
            destinations: Vec::new(),
            outbound: Vec::new(),
            gateway: None,
            mode: OutboundMode::Observe,
        }
    }

    pub(super) fn serving(mut self, service: serde_json::Value) -> Self {
        self.services.push(service);
        self
    }

    pub(super) fn calling(mut self, destination: Destination) -> Self {
        self.destinations.push(destination);
        self
    }

    fn compile(&self) -> Snapshot {
        let mesh = Arc::new(MeshState {
            trust_domain: DOMAIN.parse().unwrap(),
            root_namespace: "merlon-system".parse().unwrap(),
            outbound: self.mode,
            gateways: [spiffe("edge/main").parse().unwrap()].into(),
        });
        let limits = LimitRegistry::new(Instant::now());
        let services: HashMap<_, _> = self
            .services
            .iter()
            .map(|json| {
                let service: InboundService = serde_json::from_value(json.clone()).unwrap();
                let version = Version::of(json.to_string().as_bytes());
                let name = service.name.clone();
                (
                    name,
                    Arc::new(CompiledService::compile(service, &mesh, version, &limits).unwrap()),
                )
            })
            .collect();
        let mut names: Vec<_> = services.keys().cloned().collect();
        names.sort();
        let gateway = self
            .gateway
            .clone()
            .map(|json| serde_json::from_value::<GatewayState>(json).unwrap());
        Snapshot {
            version: Version::of(format!("{:?}", self.services).as_bytes()),
            ports: gateway.as_ref().map(Port::all).unwrap_or_default(),
            certificates: Default::default(),
            secrets: Default::default(),
            credentials: Default::default(),
            workload: WorkloadState {
                identity: spiffe(self.identity).parse().unwrap(),
                services: names,
                outbound: self.outbound.clone(),
                permissive: false,
                secrets: Vec::new(),
                gateway,
            },
            mesh,
            services,
            destinations: self
                .destinations
                .iter()
                .map(|one| (one.name.clone(), Arc::new(one.clone())))
                .collect(),
            addresses: Default::default(),
            bundles: Vec::new(),
            resources: Default::default(),
        }
    }
}

/// Everyone may do everything.
pub(super) const ALL: &str =
    r#"@id("all") @reason("a test") permit (principal, action, resource);"#;

/// A service of one port with these policies.
pub(super) fn service(
    name: &str,
    port: u16,
    target: u16,
    protocol: &str,
    policies: &str,
) -> serde_json::Value {
    json!({
        "name": name,
        "ports": [{ "port": port, "targetPort": target, "protocol": protocol }],
        "policies": [{ "name": name, "text": policies }],
    })
}

/// What callers know of a service.
pub(super) fn destination(
    name: &str,
    port: u16,
    protocol: &str,
    at: SocketAddr,
    identity: Option<&str>,
) -> Destination {
    let ports = serde_json::from_value(json!([{ "port": port, "protocol": protocol }])).unwrap();
    let identity = identity.map(|workload| spiffe(workload).parse().unwrap());
    Destination {
        name: name.parse().unwrap(),
        ports,
        endpoints: vec![Endpoint {
            address: at,
            identity,
            ports: Default::default(),
        }],
    }
}

/// A worker with its listeners, on the test's own thread.
pub(super) struct Node {
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<WorkerMetrics>,
    pub(super) inbound: SocketAddr,
    pub(super) outbound: SocketAddr,
    pub(super) log: Log,
    pub(super) shutdown: Shutdown,
    /// Where it asks for destinations; kept open, never answered.
    _asked: Box<dyn std::any::Any>,
}

impl Node {
    pub(super) fn start(identity: Option<Arc<MeshTls>>, state: &State) -> Self {
        let (destinations, asked) = Destinations::new();
        let (keys, refetches) = JwksCache::new();
        let metrics = Arc::new(WorkerMetrics::default());
        let shared = Arc::new(Shared {
            snapshot: Live::new(Some(Arc::new(state.compile()))),
            has_identity: identity.is_some(),
            identity: Live::new(identity),
            keys,
            destinations,
            decisions: DecisionLog::new(state.identity),
            egress: crate::telemetry::egress_log::EgressLog::default(),
            spans: Spans::default(),
            listeners: Claims::default(),
            readiness: Readiness::default(),
            access_log: AccessLogMode::All,
        });
        // Nobody knows more destinations than the snapshot does.
        let mut asked = asked;
        tokio::task::spawn_local(async move {
            while let Some(ask) = asked.recv().await {
                let _ = ask
                    .answer
                    .send(Err(crate::state::destinations::LookupError::Unknown));
            }
        });
        let localhost = "127.0.0.1:0".parse().unwrap();
        let (inbound, outbound) = (
            sockets::bind_all(localhost, 1).unwrap().remove(0),
            sockets::bind_all(localhost, 1).unwrap().remove(0),
        );
        let log = Log::default();
        let node = Self {
            shared: Arc::clone(&shared),
            metrics: Arc::clone(&metrics),
            inbound: inbound.local_addr().unwrap(),
            outbound: outbound.local_addr().unwrap(),
            log: log.clone(),
            shutdown: Shutdown::default(),
            _asked: Box::new(refetches),
        };
        let shutdown = node.shutdown.clone();
        let (inbound, outbound) = (vec![inbound], vec![outbound]);
        let worker = Worker {
            index: 0,
            shared,
            metrics,
            inbound,
            outbound,
            interception: false,
            shutdown,
        };
        tokio::task::spawn_local(worker::run_with_log(worker, AccessLog::to(log)));
        node
    }

    /// An address whose connections come to it as rules of interception lead them there from a port of the program.
    pub(super) async fn led_from(&self, port: u16) -> SocketAddr {
        // Another address than the caller's own, which it would dial at the proxy's port.
        let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let local = Rc::new(WorkerContext::new(
            0,
            Arc::clone(&self.shared),
            Arc::clone(&self.metrics),
            AccessLog::to(self.log.clone()),
            self.shutdown.clone(),
        ));
        tokio::task::spawn_local(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let led = inbound::handle_redirected(Rc::clone(&local), stream, from, Some(port));
                tokio::task::spawn_local(led);
            }
        });
        address
    }

    pub(super) fn take(&self, state: &State) {
        self.shared
            .snapshot
            .publish(Some(Arc::new(state.compile())));
    }
}

/// An access log that can be waited for.
#[derive(Clone)]
pub(super) struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    grown: watch::Sender<usize>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            text: Arc::default(),
            grown: watch::Sender::new(0),
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.text.lock().unwrap().extend_from_slice(bytes);
        self.grown.send_modify(|size| *size += bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(super) fn lines(&self) -> Vec<serde_json::Value> {
        let text = self.text.lock().unwrap();
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("a line is one JSON object"))
            .collect()
    }

    /// The first line that fits, as soon as it is there.
    pub(super) async fn line(
        &self,
        fits: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let mut grown = self.grown.subscribe();
        loop {
            grown.mark_unchanged();
            if let Some(line) = self.lines().into_iter().find(|line| fits(line)) {
                return line;
            }
            let waited = tokio::time::timeout(Duration::from_secs(5), grown.changed()).await;
            waited
                .unwrap_or_else(|_| panic!("no such line among {:#?}", self.lines()))
                .unwrap();
        }
    }

    /// The line of this path.
    pub(super) async fn of(&self, path: &str) -> serde_json::Value {
        self.line(|line| line["path"] == path).await
    }
}

pub(super) type Boxed = UnsyncBoxBody<Bytes, hyper::Error>;

pub(super) fn full(text: impl Into<Bytes>) -> Boxed {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// The program beside a proxy: HTTP/1.1 and h2c, and it counts.
pub(super) struct Program {
    pub(super) address: SocketAddr,
    pub(super) requests: Rc<Cell<usize>>,
    pub(super) seen: Rc<RefCell<Vec<http::request::Parts>>>,
}

impl Program {
    /// Answers every request with what it got of it: `GET /path host`, and the body.
    pub(super) async fn echo() -> Self {
        Self::serving(async |request: Request<Incoming>| {
            let host = request
                .headers()
                .get("host")
                .map(|host| host.to_str().unwrap().to_owned());
            let host = host
                .or(request.uri().authority().map(ToString::to_string))
                .unwrap_or_default();
            let said = format!(
                "{} {} {host} ",
                request.method(),
                request.uri().path_and_query().unwrap()
            );
            let body = request
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            Response::new(full([said.as_bytes(), &body].concat()))
        })
        .await
    }

    /// Answers as told.
    pub(super) async fn serving(
        answer: impl AsyncFn(Request<Incoming>) -> Response<Boxed> + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            requests: Rc::default(),
            seen: Rc::default(),
        };
        let (requests, seen) = (Rc::clone(&this.requests), Rc::clone(&this.seen));
        let answer = Rc::new(answer);
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (requests, seen, answer) =
                    (Rc::clone(&requests), Rc::clone(&seen), Rc::clone(&answer));
                tokio::task::spawn_local(async move {
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        requests.set(requests.get() + 1);
                        let (parts, body) = request.into_parts();
                        seen.borrow_mut().push(parts.clone());
                        let answer = Rc::clone(&answer);
                        async move {
                            Ok::<_, Infallible>(answer(Request::from_parts(parts, body)).await)
                        }
                    });
                    let mut preface = [0; 4];
                    let mut h2 = false;
                    while let Ok(read) = stream.peek(&mut preface).await
                        && read > 0
                    {
                        if read == 4 {
                            h2 = &preface == b"PRI ";
                            break;
                        }
                    }
                    let io = TokioIo::new(stream);
                    if h2 {
                        let mut server =
                            hyper::server::conn::http2::Builder::new(http2::LocalExecutor);
                        let _ = server
                            .timer(TokioTimer::new())
                            .serve_connection(io, service)
                            .await;
                    } else {
                        let server = hyper::server::conn::http1::Builder::new()
                            .serve_connection(io, service);
                        let _ = server.with_upgrades().await;
                    }
                });
            }
        });
        this
    }

    /// Bytes: `serve` gets each connection.
    pub(super) async fn raw(serve: impl AsyncFn(TcpStream) + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            requests: Rc::default(),
            seen: Rc::default(),
        };
        let requests = Rc::clone(&this.requests);
        let serve = Rc::new(serve);
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                requests.set(requests.get() + 1);
                let serve = Rc::clone(&serve);
                tokio::task::spawn_local(async move { serve(stream).await });
            }
        });
        this
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(super) fn last(&self) -> http::request::Parts {
        self.seen
            .borrow()
            .last()
            .expect("the program saw no request")
            .clone()
    }

    pub(super) fn saw_nothing(&self) {
        assert_eq!(self.requests.get(), 0, "the program must have seen nothing");
    }
}

/// An answer that was read whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: http::HeaderMap,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn problem(&self) -> serde_json::Value {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        serde_json::from_str(&self.body).unwrap()
    }

    pub(super) fn refused(&self, status: u16, reason: &str) {
        assert_eq!(
            (self.status, self.problem()["reason"].as_str().unwrap()),
            (status, reason),
            "{}",
            self.body
        );
        assert_eq!(
            self.problem()["decision_id"],
            self.headers["merlon-decision-id"].to_str().unwrap()
        );
    }
}

async fn whole(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&collected.to_bytes()).into_owned(),
    }
}

/// Asks in HTTP/1.1.
pub(super) async fn http1(address: SocketAddr, request: Request<RequestBody>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::task::spawn_local(connection);
    whole(sender.send_request(request).await.unwrap()).await
}

/// Asks in HTTP/2 with prior knowledge.
pub(super) async fn h2c(address: SocketAddr, request: Request<RequestBody>) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut sender = h2::begin(stream, std::future::pending()).await.unwrap();
    whole(sender.send_request(request).await.unwrap()).await
}

/// A request without a body.
pub(super) fn get(host: &str, path: &str) -> Request<RequestBody> {
    Request::get(path)
        .header("host", host)
        .body(RequestBody::Empty)
        .unwrap()
}

/// A request with one.
pub(super) fn post(host: &str, path: &str, kind: &str, body: &'static str) -> Request<RequestBody> {
    let body = RequestBody::Whole(Some(Bytes::from_static(body.as_bytes())));
    Request::post(path)
        .header("host", host)
        .header("content-type", kind)
        .body(body)
        .unwrap()
}

/// Writes bytes as they are, and reads until the other side has ended.
pub(super) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A peer with an identity of the mesh that says what it likes.
pub(super) async fn as_peer(
    identity: &Arc<MeshTls>,
    address: SocketAddr,
    expected: &str,
) -> hyper::client::conn::http2::SendRequest<RequestBody> {
    let expected = spiffe(expected).parse().unwrap();
    let metrics = WorkerMetrics::default();
    h2::begin(
        dial::mesh(address, &expected, identity, MERLON_H2, &metrics)
            .await
            .unwrap(),
        std::future::pending(),
    )
    .await
    .unwrap()
}

/// One request of such a peer.
pub(super) async fn ask_as_peer(
    identity: &Arc<MeshTls>,
    node: &Node,
    expected: &str,
    request: Request<RequestBody>,
) -> Answer {
    ask_as_peer_at(identity, node.inbound, expected, request).await
}

/// The same, at another address.
pub(super) async fn ask_as_peer_at(
    identity: &Arc<MeshTls>,
    address: SocketAddr,
    expected: &str,
    request: Request<RequestBody>,
) -> Answer {
    let mut sender = as_peer(identity, address, expected).await;
    whole(sender.send_request(request).await.unwrap()).await
}

/// `shop/web` calls `shop/orders`, each with its proxy.
pub(super) struct Pair {
    pub(super) ca: Ca,
    pub(super) web: Node,
    pub(super) orders: Node,
    pub(super) web_state: State,
}

impl Pair {
    /// Port 80 of `shop/orders` is `program`, under `policies`.
    pub(super) fn new(program: &Program, protocol: &str, policies: &str) -> Self {
        Self::with(
            service("shop/orders", 80, program.port(), protocol, policies),
            protocol,
        )
    }

    pub(super) fn with(service: serde_json::Value, protocol: &str) -> Self {
        let ca = Ca::new();
        let orders_state = State::of("shop/orders").serving(service);
        let orders = Node::start(Some(ca.identity("shop/orders")), &orders_state);
        let to = destination(
            "shop/orders",
            80,
            protocol,
            orders.inbound,
            Some("shop/orders"),
        );
        let web_state = State::of("shop/web").calling(to);
        let web = Node::start(Some(ca.identity("shop/web")), &web_state);
        Self {
            ca,
            web,
            orders,
            web_state,
        }
    }
}

/// A body that is sent as the test says.
pub(super) fn channel() -> (
    tokio::sync::mpsc::Sender<http_body::Frame<Bytes>>,
    UnsyncBoxBody<Bytes, Infallible>,
) {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let body =
        http_body_util::StreamBody::new(futures_util::StreamExt::map(stream, Ok::<_, Infallible>));
    (sender, UnsyncBoxBody::new(body))
}

/// An HTTP/2 connection for bodies that are sent as the test says.
pub(super) async fn h2_client(
    address: SocketAddr,
) -> hyper::client::conn::http2::SendRequest<UnsyncBoxBody<Bytes, Infallible>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(http2::LocalExecutor);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::task::spawn_local(connection);
    sender
}

/// The next piece of a body.
pub(super) async fn piece(body: &mut Incoming) -> Option<Bytes> {
    Some(body.frame().await?.ok()?.into_data().unwrap_or_default())
}
