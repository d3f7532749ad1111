//! The builder of a mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use super::{
    control_plane::ControlPlane, names::NAMESPACE, resources, running::Mesh, sidecar::Sidecar,
};
use crate::{app::App, ports};

/// A mesh that is not started yet. Each service is a workload of the same name with one sidecar.
#[derive(Debug, Default)]
pub struct MeshBuilder {
    mesh: String,
    services: BTreeMap<String, Service>,
    last: String,
    callers: BTreeSet<String>,
    permits: BTreeMap<String, String>,
    outbound: Vec<(String, String)>,
    files: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    workers: Option<usize>,
}

#[derive(Debug)]
struct Service {
    program: Program,
    protocol: &'static str,
}

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
        self.services
            .insert(name.to_owned(), Service { program, protocol });
        name.clone_into(&mut self.last);
        self
    }

    /// A workload without a service.
    #[must_use]
    pub fn caller(mut self, name: &str) -> Self {
        self.callers.insert(name.to_owned());
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
        let permit = resources::permit(&format!("allow-{}", count + 1), workload, action, path);
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
        self.outbound
            .push((workload.to_owned(), service.to_owned()));
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
        let name = format!("{}-{}", self.last, kind.to_lowercase());
        let text = resources::attached(kind, &name, &self.last, spec);
        self.files.push((format!("{name}.yaml"), text));
        self
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
    pub async fn start(self) -> Mesh {
        let mesh = self.prepare().await;
        mesh.control_plane.start().await;
        // Concurrently, because a start is mostly waiting.
        let starts = mesh.sidecars.iter().map(|(name, sidecar)| {
            let mesh = &mesh;
            async move {
                let token = mesh.control_plane.join_token(name).await;
                std::fs::write(mesh.folder().join(format!("{name}.token")), token).expect("a file");
                sidecar.start().await;
            }
        });
        futures_util::future::join_all(starts).await;
        mesh
    }

    /// Writes all files, but starts no process.
    pub async fn prepare(self) -> Mesh {
        let folder = crate::folder::fresh();
        std::fs::create_dir(folder.path().join("resources")).expect("a folder");
        let control_plane = ControlPlane::new(folder.path(), self.environment.clone());
        let mut mesh = Mesh {
            folder,
            control_plane,
            sidecars: BTreeMap::new(),
            apps: BTreeMap::new(),
            outbound: BTreeMap::new(),
        };
        mesh.write("mesh.yaml", &resources::mesh(&self.mesh));
        for (name, text) in &self.files {
            mesh.write(name, text);
        }
        for (service, cedar) in &self.permits {
            let name = format!("{service}-policy");
            mesh.write(
                &format!("{name}.yaml"),
                &resources::policy(&name, service, cedar),
            );
        }
        for (workload, service) in &self.outbound {
            let key = (workload.clone(), service.clone());
            mesh.outbound.insert(key, ports::free());
        }
        let workloads: BTreeSet<_> = self.services.keys().chain(&self.callers).cloned().collect();
        for name in &workloads {
            let inbound = ports::free();
            let listeners: Vec<_> = mesh
                .outbound
                .iter()
                .filter(|((workload, _), _)| workload == name)
                .map(|((_, service), listen)| (*listen, service.as_str(), PORT))
                .collect();
            let serves = self.services.contains_key(name).then_some(inbound);
            mesh.write(
                &format!("{name}-workload.yaml"),
                &resources::workload(name, serves, &listeners),
            );
            let args = [
                "--identity".to_owned(),
                format!("{NAMESPACE}/{name}"),
                "--control-plane".to_owned(),
                mesh.control_plane.url(),
                "--join-token-file".to_owned(),
                mesh.folder()
                    .join(format!("{name}.token"))
                    .display()
                    .to_string(),
            ];
            let mut sidecar = Sidecar::at(name, mesh.folder.path(), args.into(), inbound);
            sidecar.set_environment(self.environment.clone());
            sidecar.set_workers(self.workers.unwrap_or(1));
            mesh.sidecars.insert(name.clone(), sidecar);
        }
        for (name, service) in self.services {
            let app = match service.program {
                Program::Http => Some(Arc::new(App::http().await)),
                Program::Grpc => Some(Arc::new(App::grpc().await)),
                Program::Tcp => Some(Arc::new(App::tcp().await)),
                Program::InProcess(app) => Some(app),
                Program::External(address) => {
                    let text = resources::service(&name, PORT, address.port(), service.protocol);
                    mesh.write(&format!("{name}-service.yaml"), &text);
                    None
                }
            };
            if let Some(app) = app {
                let text = resources::service(&name, PORT, app.address().port(), service.protocol);
                mesh.write(&format!("{name}-service.yaml"), &text);
                mesh.apps.insert(name, app);
            }
        }
        mesh
    }
}

/// The `spec` of a `RequestAuthentication` that requires tokens of this issuer.
pub fn tokens_of(issuer: &str) -> String {
    format!(
        "issuers:\n  - name: customers\n    issuer: {issuer}\n    audiences: [\"{}\"]\n    \
         claims: {{ department: String }}\n",
        crate::openid::AUDIENCE
    )
}
