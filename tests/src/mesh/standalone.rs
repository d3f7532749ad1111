//! A proxy without a control plane.

use std::{net::SocketAddr, path::PathBuf};

use tempfile::TempDir;

use super::{
    LogLine, PORT,
    names::NAMESPACE,
    resources::{self, Target},
    sidecar::Sidecar,
};
use crate::{
    app::App,
    client::{Client, Reply},
    wait,
};

/// `merlon-proxy --standalone`: the proxy and its folder of resource files.
#[derive(Debug)]
pub struct Standalone {
    folder: TempDir,
    proxy: Sidecar,
}

/// The policy of the service or gateway in front of a program.
const POLICY: &str = "policy.yaml";

impl Standalone {
    /// The sidecar of `workload`, with these resource files. Does not start it.
    pub fn sidecar(workload: &str, files: &[(&str, &str)]) -> Self {
        Self::new(&["--identity", &format!("{NAMESPACE}/{workload}")], files)
    }

    /// The Gateway `name`, with these resource files. Does not start it.
    pub fn gateway(name: &str, files: &[(&str, &str)]) -> Self {
        Self::new(&["--gateway", &format!("{NAMESPACE}/{name}")], files)
    }

    /// The sidecar of the Service `name`, which `app` serves, with a policy in Cedar. Does not start it.
    pub fn sidecar_of(name: &str, app: &App, cedar: &str) -> Self {
        let this = Self::sidecar(name, &[]);
        this.write_service(name, app, None);
        this.set_policy_of(name, cedar);
        this
    }

    /// The Gateway `name` on this port, which every client may call. It leads all requests for `host` to the Service
    /// `service`, and those to `app`, in plain text. Does not start it.
    pub fn gateway_of(name: &str, port: u16, host: &str, (service, app): (&str, &App)) -> Self {
        let this = Self::gateway(name, &[]);
        this.write_service(service, app, Some(app.address()));
        this.write("gateway.yaml", &resources::gateway(name, port));
        let route = resources::route("route", name, (host, "/"), (service, PORT));
        this.write("route.yaml", &route);
        let anyone = "@id(\"anyone\")\npermit(principal, action in Action::\"http\", resource);\n";
        let policy = resources::policy("anyone", (Target::Gateway, name), anyone);
        this.write(POLICY, &policy);
        this
    }

    fn write_service(&self, name: &str, app: &App, mesh_address: Option<SocketAddr>) {
        let service = resources::service(name, PORT, app.address().port(), "http");
        self.write("service.yaml", &service);
        let workload = resources::workload(name, name, mesh_address, &[]);
        self.write("workload.yaml", &workload);
    }

    /// Replaces the policy of the Service `name`.
    pub fn set_policy_of(&self, name: &str, cedar: &str) {
        let policy = resources::policy(name, (Target::Service, name), cedar);
        self.write(POLICY, &policy);
    }

    fn new(args: &[&str], files: &[(&str, &str)]) -> Self {
        let folder = crate::folder::fresh();
        let directory = folder.path().join("resources");
        std::fs::create_dir(&directory).expect("a folder");
        for (name, text) in files {
            std::fs::write(directory.join(name), text).expect("a file");
        }
        if !files
            .iter()
            .any(|(_, text)| text.contains("kind: MeshConfig"))
        {
            std::fs::write(directory.join("mesh.yaml"), resources::mesh("")).expect("a file");
        }
        let mut all: Vec<String> = args.iter().map(ToString::to_string).collect();
        all.extend(["--standalone".to_owned(), directory.display().to_string()]);
        let proxy = Sidecar::new("proxy", folder.path(), all);
        Self { folder, proxy }
    }

    /// Adds arguments of the proxy.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.proxy.add_args(args);
        self
    }

    /// Sets how many threads carry requests; 1 by default.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.proxy.set_workers(workers);
        self
    }

    /// Sets these environment variables.
    #[must_use]
    pub fn env(mut self, environment: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.proxy
            .set_environment(environment.iter().map(owned).collect());
        self
    }

    /// Starts it and waits until it is ready.
    #[must_use = "dropping it kills the proxy"]
    pub async fn start(self) -> Self {
        self.proxy.start().await;
        self
    }

    /// The proxy.
    pub fn proxy(&self) -> &Sidecar {
        &self.proxy
    }

    /// A client that calls services through the proxy.
    pub fn program(&self) -> Client {
        Client::new(self.proxy.outbound(), NAMESPACE)
    }

    /// The access-log line for this response.
    pub async fn log_of(&self, reply: &Reply) -> LogLine {
        let id = reply.decision_id();
        wait::until_some(format!("the proxy logs the decision {id}"), async || {
            let mut lines = self.proxy.log().into_iter();
            lines.find(|line| line.text("decision_id") == id)
        })
        .await
    }

    /// Creates or replaces a resource file.
    pub fn write(&self, file: &str, text: &str) {
        let path = self.resources().join(file);
        let new = self.resources().join(format!(".{file}.new"));
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(&new, &path).expect("a file");
    }

    /// The proxy's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("proxy")
    }

    /// The folder of resource files.
    pub fn resources(&self) -> PathBuf {
        self.folder.path().join("resources")
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        // A failed test prints the output of its process.
        if std::thread::panicking() {
            eprintln!("{:?}", self.proxy);
        }
    }
}
