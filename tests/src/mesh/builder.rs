//! The builder of a mesh.

mod prepare;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use self::prepare::{file, token_file};
use super::{
    names::{NAMESPACE, split},
    resources::{self, Target},
    running::Mesh,
};
use crate::app::App;

/// A mesh that is not started yet. Each service is a workload of the same name with one sidecar.
///
/// A name is that of a resource in the current namespace (see [`MeshBuilder::namespace`]), or has its own: `bank/ledger`.
/// The running mesh knows resources of [`NAMESPACE`] by their names, and others with their namespaces.
#[derive(Debug, Default)]
pub struct MeshBuilder {
    mesh: String,
    namespace: Option<String>,
    services: BTreeMap<String, Service>,
    gateways: BTreeMap<String, Vec<Route>>,
    last: String,
    callers: BTreeSet<String>,
    permits: BTreeMap<String, String>,
    outbound: Vec<(String, String)>,
    wires: BTreeSet<String>,
    files: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    workers: Option<usize>,
    limits: Option<String>,
    control_plane_limits: Option<String>,
    clock: bool,
}

#[derive(Debug)]
struct Service {
    program: Program,
    protocol: &'static str,
    replicas: usize,
}

/// Host, prefix of the path, and service.
type Route = (String, String, String);

#[derive(Debug)]
enum Program {
    Http,
    Grpc,
    Tcp,
    InProcess(Arc<App>),
    External(SocketAddr),
}

/// The port of every service.
pub const PORT: u16 = 80;

impl Mesh {
    /// A builder for a mesh.
    #[expect(
        clippy::new_ret_no_self,
        reason = "tests read `Mesh::new().service(…).start()`"
    )]
    pub fn new() -> MeshBuilder {
        MeshBuilder::default()
    }
}

impl MeshBuilder {
    /// A service whose program speaks HTTP (see [`App::http`]).
    #[must_use]
    pub fn service(self, name: &str) -> Self {
        self.add(name, Program::Http, "http")
    }

    /// A service whose program speaks gRPC (see [`App::grpc`]).
    #[must_use]
    pub fn grpc_service(self, name: &str) -> Self {
        self.add(name, Program::Grpc, "grpc")
    }

    /// A service whose program echoes bytes (see [`App::tcp`]).
    #[must_use]
    pub fn tcp_service(self, name: &str) -> Self {
        self.add(name, Program::Tcp, "tcp")
    }

    /// A service that a program in the test process serves.
    #[must_use]
    pub fn service_of(self, name: &str, protocol: &'static str, app: App) -> Self {
        self.add(name, Program::InProcess(Arc::new(app)), protocol)
    }

    /// A service that an external server such as PostgreSQL serves.
    #[must_use]
    pub fn service_at(self, name: &str, protocol: &'static str, address: SocketAddr) -> Self {
        self.add(name, Program::External(address), protocol)
    }

    fn add(mut self, name: &str, program: Program, protocol: &'static str) -> Self {
        self.last = self.qualified(name);
        let service = Service {
            program,
            protocol,
            replicas: 1,
        };
        self.services.insert(self.last.clone(), service);
        self
    }

    /// Sets the namespace of what follows. Before the first call it is [`NAMESPACE`].
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// The name by which the running mesh knows a resource of the current namespace.
    fn qualified(&self, name: &str) -> String {
        let (namespace, own) = match name.split_once('/') {
            Some(qualified) => qualified,
            None => (self.namespace.as_deref().unwrap_or(NAMESPACE), name),
        };
        match namespace {
            NAMESPACE => own.to_owned(),
            namespace => format!("{namespace}/{own}"),
        }
    }

    /// Gives the last service so many workloads, each with a sidecar. They share the program, because a proxy calls its
    /// program at 127.0.0.1. The second one of `orders` has the name `orders-2`.
    ///
    /// # Panics
    /// If the last call did not add a service.
    #[must_use]
    pub fn replicas(mut self, count: usize) -> Self {
        let last = self.services.get_mut(&self.last);
        last.expect("a service before `replicas`").replicas = count;
        self
    }

    /// A gateway with one HTTP listener. Clients reach it with `Mesh::at_gateway`.
    #[must_use]
    pub fn gateway(mut self, name: &str) -> Self {
        self.last = self.qualified(name);
        self.gateways.insert(self.last.clone(), Vec::new());
        self
    }

    /// Routes requests for `host` whose path begins with `prefix` from the last gateway to `service`, and permits the
    /// gateway all requests to it.
    ///
    /// # Panics
    /// If the last call did not add a gateway.
    #[must_use]
    pub fn route(mut self, host: &str, prefix: &str, service: &str) -> Self {
        let service = self.qualified(service);
        let gateway = self.last.clone();
        let routes = self.gateways.get_mut(&gateway);
        let routes = routes.expect("a gateway before `route`");
        routes.push((host.to_owned(), prefix.to_owned(), service.clone()));
        self.last = service;
        let mut this = self.allow(&gateway, "http", "/**");
        this.last = gateway;
        this
    }

    /// Permits every client all HTTP requests to the last service or gateway.
    #[must_use]
    pub fn allow_anyone(self) -> Self {
        self.policy("@id(\"anyone\")\npermit(principal, action in Action::\"http\", resource);\n")
    }

    /// Leads all connections of other proxies to the last service's sidecar, or to that of its first replica, over a wire
    /// that can misbehave. `Mesh::wire_to` returns it.
    #[must_use]
    pub fn wire(mut self) -> Self {
        self.wires.insert(self.last.clone());
        self
    }

    /// Sets bounds and time limits of all proxies: the fields of the proxy's `Limits`, as
    /// `inFlight: 4, idleTimeout: 200ms`.
    ///
    /// # Panics
    /// If this is not a YAML mapping.
    #[must_use]
    pub fn limits(mut self, limits: &str) -> Self {
        self.limits = Some(limits_file(limits));
        self
    }

    /// Sets bounds and time limits of the control plane: the fields of its `Limits`, as `push: { queue: 1 }`.
    ///
    /// # Panics
    /// If this is not a YAML mapping.
    #[must_use]
    pub fn control_plane_limits(mut self, limits: &str) -> Self {
        self.control_plane_limits = Some(limits_file(limits));
        self
    }

    /// Gives all processes a clock that the test can set: see `Mesh::clock`.
    #[must_use]
    pub fn clock(mut self) -> Self {
        self.clock = true;
        self
    }

    /// A workload without a service.
    #[must_use]
    pub fn caller(mut self, name: &str) -> Self {
        let name = self.qualified(name);
        self.callers.insert(name);
        self
    }

    /// Permits `workload` to call the last service. `action` is an HTTP method; `**` at the end of `path` matches any
    /// suffix. Adds the workload if it does not exist.
    #[must_use]
    pub fn allow(mut self, workload: &str, action: &str, path: &str) -> Self {
        let count = self
            .permits
            .values()
            .map(|text| text.matches("@id").count())
            .sum::<usize>();
        let caller = self.qualified(workload);
        let permit = resources::permit(&format!("allow-{}", count + 1), &caller, action, path);
        self.permits
            .entry(self.last.clone())
            .or_default()
            .push_str(&permit);
        self.caller(workload)
    }

    /// Permits `workload` all gRPC calls to the last service.
    #[must_use]
    pub fn allow_grpc(self, workload: &str) -> Self {
        self.allow(workload, "grpc", "/**")
    }

    /// Permits `workload` TCP connections to the last service, and adds a local address for them.
    #[must_use]
    pub fn allow_tcp(self, workload: &str) -> Self {
        let service = self.last.clone();
        self.allow(workload, "tcp", "/**")
            .outbound(workload, &service)
    }

    /// Adds a local address through which the program of `workload` reaches `service`.
    #[must_use]
    pub fn outbound(mut self, workload: &str, service: &str) -> Self {
        let pair = (self.qualified(workload), self.qualified(service));
        self.outbound.push(pair);
        self
    }

    /// Adds Cedar policies for the last service, to the document `<service>-policy` in `<service>-policy.yaml`.
    #[must_use]
    pub fn policy(mut self, cedar: &str) -> Self {
        self.permits
            .entry(self.last.clone())
            .or_default()
            .push_str(cedar);
        self
    }

    /// Adds a `RequestAuthentication`, `RateLimit` or `RequestValidation` for the last service, in `<service>-<kind>.yaml`.
    #[must_use]
    pub fn with(mut self, kind: &str, spec: &str) -> Self {
        let (namespace, to) = split(&self.last);
        let name = format!("{to}-{}", kind.to_lowercase());
        let text = resources::attached(kind, &name, self.target(&self.last), spec);
        self.files
            .push((file(&format!("{namespace}/{name}")), text));
        self
    }

    fn target<'n>(&self, name: &'n str) -> (Target, &'n str) {
        if self.gateways.contains_key(name) {
            (Target::Gateway, name)
        } else {
            (Target::Service, name)
        }
    }

    /// Requires tokens of this issuer for [`crate::openid::AUDIENCE`] at the last service.
    #[must_use]
    pub fn tokens_of(self, issuer: &str) -> Self {
        self.with("RequestAuthentication", &tokens_of(issuer))
    }

    /// Adds a resource file.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Adds lines to the `spec` of the `MeshConfig`, indented by two spaces.
    #[must_use]
    pub fn mesh(mut self, spec: &str) -> Self {
        self.mesh += spec;
        self
    }

    /// Sets an environment variable for all processes.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets how many threads of each proxy carry requests; 1 by default.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Starts all processes and waits until they are ready.
    ///
    /// # Panics
    /// If a resource file has an error, before any process starts.
    pub async fn start(self) -> Mesh {
        let mesh = self.prepare().await;
        if let Err(problems) = merlon_config::load::load_dir(&mesh.resources()) {
            panic!("the resources of this mesh are not valid:\n{problems}");
        }
        mesh.control_plane.start().await;
        // Concurrently, because a start is mostly waiting.
        let starts = mesh.sidecars.keys().map(|name| mesh.join(name));
        futures_util::future::join_all(starts).await;
        mesh
    }
}

impl Mesh {
    /// Starts the proxy of `workload` with a new join token, and waits until it is ready.
    pub async fn join(&self, workload: &str) {
        let account = self.accounts.get(workload);
        let account = account.map_or(workload, String::as_str);
        let token = self.control_plane.join_token(account).await;
        std::fs::write(token_file(self.folder(), workload), token).expect("a file");
        self.sidecar(workload).start().await;
    }
}

/// The fields of a YAML mapping without its braces, as JSON.
pub(crate) fn limits_file(fields: &str) -> String {
    let value: serde_json::Value = serde_saphyr::from_str(&format!("{{ {fields} }}"))
        .unwrap_or_else(|error| panic!("the limits `{fields}`: {error}"));
    value.to_string()
}

/// The `spec` of a `RequestAuthentication` that requires tokens of this issuer.
pub fn tokens_of(issuer: &str) -> String {
    format!(
        "issuers:\n  - name: customers\n    issuer: {issuer}\n    audiences: [\"{}\"]\n    \
         claims: {{ department: String }}\n",
        crate::openid::AUDIENCE
    )
}
