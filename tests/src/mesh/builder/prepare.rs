//! Writes the files of a mesh and arranges its processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{MeshBuilder, PORT, Program, Route};
use crate::{
    app::App,
    mesh::{
        clock,
        control_plane::ControlPlane,
        names::{NAMESPACE, split},
        resources,
        running::Mesh,
        sidecar::Sidecar,
        wire::Wire,
    },
    ports,
};

impl MeshBuilder {
    /// Writes all files, but starts no process.
    pub async fn prepare(self) -> Mesh {
        let folder = crate::folder::fresh();
        std::fs::create_dir(folder.path().join("resources")).expect("a folder");
        let mut args = Vec::new();
        if let Some(limits) = &self.control_plane_limits {
            let file = folder.path().join("control-plane-limits.json");
            std::fs::write(&file, limits).expect("a file");
            args.extend(["--test-limits".to_owned(), file.display().to_string()]);
        }
        if self.clock {
            clock::set(&clock::file(folder.path()), 0);
            args.extend(clock_args(folder.path()));
        }
        let environment = self.environment.clone();
        let control_plane = ControlPlane::new(folder.path(), environment, args);
        let mut mesh = Mesh {
            folder,
            control_plane,
            sidecars: BTreeMap::new(),
            accounts: BTreeMap::new(),
            gateways: BTreeMap::new(),
            wires: BTreeMap::new(),
            apps: BTreeMap::new(),
            outbound: BTreeMap::new(),
        };
        self.write_common(&mut mesh);
        let names = self.services.keys().chain(&self.callers).cloned();
        for name in names.collect::<BTreeSet<_>>() {
            if !self.gateways.contains_key(&name) {
                self.add_workloads(&mut mesh, &name);
            }
        }
        for (name, routes) in &self.gateways {
            self.add_gateway(&mut mesh, name, routes);
        }
        for (name, service) in self.services {
            let app = match service.program {
                Program::Http => Some(Arc::new(App::http().await)),
                Program::Grpc => Some(Arc::new(App::grpc().await)),
                Program::Tcp => Some(Arc::new(App::tcp().await)),
                Program::InProcess(app) => Some(app),
                Program::External(address) => {
                    let text = resources::service(&name, PORT, address.port(), service.protocol);
                    mesh.write(&file(&format!("{name}-service")), &text);
                    None
                }
            };
            if let Some(app) = app {
                let text = resources::service(&name, PORT, app.address().port(), service.protocol);
                mesh.write(&file(&format!("{name}-service")), &text);
                mesh.apps.insert(name, app);
            }
        }
        mesh
    }

    /// Writes what belongs to no single workload.
    fn write_common(&self, mesh: &mut Mesh) {
        mesh.write("mesh.yaml", &resources::mesh(&self.mesh));
        if let Some(limits) = &self.limits {
            std::fs::write(limits_file(mesh.folder()), limits).expect("a file");
        }
        for (name, text) in &self.files {
            mesh.write(name, text);
        }
        for (to, cedar) in &self.permits {
            let name = format!("{}-policy", split(to).1);
            let text = resources::policy(&name, self.target(to), cedar);
            mesh.write(&file(&format!("{to}-policy")), &text);
        }
        for (workload, service) in &self.outbound {
            let key = (workload.clone(), service.clone());
            mesh.outbound.insert(key, ports::free());
        }
    }

    /// Adds a workload and its sidecar, or as many as the service has replicas.
    fn add_workloads(&self, mesh: &mut Mesh, name: &str) {
        let listeners: Vec<_> = mesh
            .outbound
            .iter()
            .filter(|((workload, _), _)| workload == name)
            .map(|((_, service), listen)| (*listen, service.clone(), PORT))
            .collect();
        let listeners: Vec<_> = listeners
            .iter()
            .map(|(listen, service, port)| (*listen, service.as_str(), *port))
            .collect();
        let service = self.services.get(name);
        for number in 1..=service.map_or(1, |service| service.replicas) {
            let replica = match number {
                1 => name.to_owned(),
                number => format!("{name}-{number}"),
            };
            let inbound = ports::free();
            let mut reached_at = inbound;
            if number == 1 && self.wires.contains(name) {
                let wire = Wire::new(inbound);
                reached_at = wire.address();
                mesh.wires.insert(name.to_owned(), wire);
            }
            let serves = service.map(|_| reached_at);
            mesh.write(
                &file(&format!("{replica}-workload")),
                &resources::workload(&replica, name, serves, &listeners),
            );
            let (namespace, account) = split(name);
            let identity = ["--identity".to_owned(), format!("{namespace}/{account}")];
            self.add_proxy(mesh, &replica, name, identity, inbound);
        }
    }

    /// Adds a gateway with its routes.
    fn add_gateway(&self, mesh: &mut Mesh, name: &str, routes: &[Route]) {
        let address = ports::free();
        mesh.gateways.insert(name.to_owned(), address);
        let text = resources::gateway(name, address.port());
        mesh.write(&file(&format!("{name}-gateway")), &text);
        for (number, (host, prefix, service)) in routes.iter().enumerate() {
            let route = format!("{}-{}", split(name).1, number + 1);
            let text = resources::route(&route, name, (host, prefix), (service, PORT));
            mesh.write(&file(&format!("{name}-route-{}", number + 1)), &text);
        }
        let (namespace, own) = split(name);
        let identity = ["--gateway".to_owned(), format!("{namespace}/{own}")];
        self.add_proxy(mesh, name, name, identity, ports::free());
    }

    fn add_proxy(
        &self,
        mesh: &mut Mesh,
        name: &str,
        account: &str,
        identity: [String; 2],
        inbound: SocketAddr,
    ) {
        let mut args = Vec::from(identity);
        args.extend([
            "--control-plane".to_owned(),
            mesh.control_plane.url(),
            "--join-token-file".to_owned(),
            token_file(mesh.folder(), name).display().to_string(),
        ]);
        if self.limits.is_some() {
            let file = limits_file(mesh.folder()).display().to_string();
            args.extend(["--test-limits".to_owned(), file]);
        }
        if self.clock {
            args.extend(clock_args(mesh.folder()));
        }
        let mut sidecar = Sidecar::at(&flat(name), mesh.folder(), args, inbound);
        sidecar.set_environment(self.environment.clone());
        sidecar.set_workers(self.workers.unwrap_or(1));
        mesh.accounts.insert(name.to_owned(), account.to_owned());
        mesh.sidecars.insert(name.to_owned(), sidecar);
    }
}

/// The name of a file for a name that may have a namespace. That of [`NAMESPACE`] is left out.
fn flat(name: &str) -> String {
    match split(name) {
        (NAMESPACE, name) => name.to_owned(),
        (namespace, name) => format!("{namespace}-{name}"),
    }
}

pub(super) fn file(name: &str) -> String {
    flat(name) + ".yaml"
}

pub(super) fn token_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(flat(name) + ".token")
}

fn clock_args(folder: &Path) -> [String; 2] {
    let file = clock::file(folder).display().to_string();
    ["--test-clock".to_owned(), file]
}

fn limits_file(folder: &Path) -> PathBuf {
    folder.join("limits.json")
}
