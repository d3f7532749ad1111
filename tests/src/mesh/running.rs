//! The running mesh.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use http::{Method, StatusCode};
use merlon_test_support::log::LogLine;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    control_plane::ControlPlane,
    metric::Metric,
    names::{identity, split},
    sidecar::Sidecar,
    wire::Wire,
};
use crate::{
    app::{App, Request},
    client::{Client, Reply},
    process::{Output, Plan},
    tools, wait,
};

/// A running mesh. Dropping it kills its processes.
pub struct Mesh {
    pub(super) folder: TempDir,
    pub(super) control_plane: ControlPlane,
    pub(super) sidecars: BTreeMap<String, Sidecar>,
    /// The service account of each proxy.
    pub(super) accounts: BTreeMap<String, String>,
    pub(super) gateways: BTreeMap<String, SocketAddr>,
    pub(super) wires: BTreeMap<String, Wire>,
    pub(super) apps: BTreeMap<String, Arc<App>>,
    pub(super) outbound: BTreeMap<(String, String), SocketAddr>,
}

impl Mesh {
    /// A client that calls services through the sidecar of `workload`.
    pub fn as_workload(&self, workload: &str) -> Client {
        let (namespace, _) = split(workload);
        Client::new(self.sidecar(workload).outbound(), namespace)
    }

    /// A client outside the mesh that calls hosts at a gateway.
    pub fn at_gateway(&self, gateway: &str) -> Client {
        let address = self.gateways.get(gateway);
        let address = address.unwrap_or_else(|| panic!("no gateway `{gateway}` in this mesh"));
        Client::new(*address, split(gateway).0)
    }

    /// The wire over which other proxies reach the sidecar of `service`, which `MeshBuilder::wire` added.
    pub fn wire_to(&self, service: &str) -> &Wire {
        self.wires
            .get(service)
            .unwrap_or_else(|| panic!("no wire to `{service}` in this mesh"))
    }

    /// The local address of a TCP service for `workload`, which `MeshBuilder::outbound` added.
    pub fn outbound(&self, workload: &str, service: &str) -> SocketAddr {
        let key = (workload.to_owned(), service.to_owned());
        *self
            .outbound
            .get(&key)
            .unwrap_or_else(|| panic!("`{workload}` has no outbound listener for `{service}`"))
    }

    /// The sidecar of `workload`.
    pub fn sidecar(&self, workload: &str) -> &Sidecar {
        self.sidecars
            .get(workload)
            .unwrap_or_else(|| panic!("no workload `{workload}` in this mesh"))
    }

    /// All sidecars, by workload.
    pub fn sidecars(&self) -> impl Iterator<Item = (&str, &Sidecar)> {
        self.sidecars
            .iter()
            .map(|(name, sidecar)| (name.as_str(), sidecar))
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The program of `workload`.
    pub fn app(&self, workload: &str) -> &App {
        self.apps
            .get(workload)
            .unwrap_or_else(|| panic!("`{workload}` has no program in the harness"))
    }

    /// The requests that the program of `workload` received.
    pub fn seen_by(&self, workload: &str) -> Vec<Request> {
        self.app(workload).seen()
    }

    /// The requests with this path and query that the program of `workload` received. Tests that share a mesh use different
    /// paths.
    pub fn seen_at(&self, workload: &str, target: &str) -> Vec<Request> {
        let mut seen = self.seen_by(workload);
        seen.retain(|request| request.target == target);
        seen
    }

    /// The number of requests that the program of `workload` received.
    pub fn requests_seen_by(&self, workload: &str) -> usize {
        self.app(workload).seen().len()
    }

    /// The access-log line of the sidecar of `workload` for this response.
    pub async fn log_of(&self, workload: &str, reply: &Reply) -> LogLine {
        let id = reply.decision_id();
        assert!(
            !id.is_empty(),
            "a response without a decision id: {reply:?}"
        );
        self.log_where(workload, "decision_id", id).await
    }

    /// The last access-log line of the sidecar of `workload` in which `field` is `value`.
    pub async fn log_where(&self, workload: &str, field: &str, value: &str) -> LogLine {
        let sidecar = self.sidecar(workload);
        // A worker writes its lines in batches, with a short delay.
        wait::until_some(format!("`{workload}` logs {field}={value}"), async || {
            sidecar
                .log()
                .into_iter()
                .rev()
                .find(|line| line.text(field) == value)
        })
        .await
    }

    /// The last access-log line of the sidecars of `workload` that has all these fields.
    pub async fn log_with(&self, workload: &str, fields: &[(&str, &str)]) -> LogLine {
        let sidecars: Vec<_> = self
            .accounts
            .iter()
            .filter(|(name, account)| *account == workload || *name == workload)
            .map(|(name, _)| self.sidecar(name))
            .collect();
        wait::until_some(format!("`{workload}` logs {fields:?}"), async || {
            let has = |line: &LogLine| {
                let mut fields = fields.iter();
                fields.all(|(field, value)| line.text(field) == *value)
            };
            let mut lines = sidecars.iter().flat_map(|sidecar| sidecar.log());
            lines.rfind(has)
        })
        .await
    }

    /// A metric of the sidecar of `workload`: the sum of all series with these labels, to be compared later.
    pub async fn metric<'m>(
        &'m self,
        workload: &str,
        name: &str,
        labels: &[(&str, &str)],
    ) -> Metric<'m> {
        Metric::of(self.sidecar(workload), name, labels).await
    }

    /// Creates or replaces a resource file.
    pub fn write(&self, file: &str, text: &str) {
        // Written to a temporary file and renamed, as editors do, so that a partial file is never read.
        let path = self.resources().join(file);
        let new = self.resources().join(format!(".{file}.new"));
        std::fs::write(&new, text).expect("a file");
        std::fs::rename(&new, &path).expect("a file");
    }

    /// Removes a resource file.
    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.resources().join(file)).expect("a file");
    }

    /// Replaces text in a resource file.
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.resources().join(file)).expect("a file");
        assert!(text.contains(from), "no `{from}` in {file}:\n{text}");
        self.write(file, &text.replace(from, to));
    }

    /// The folder of resource files.
    pub fn resources(&self) -> PathBuf {
        self.folder.path().join("resources")
    }

    /// The folder of all files of this mesh.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `merlon` with these arguments against this mesh's control plane.
    pub async fn merlon(&self, args: &[&str]) -> Output {
        Plan::new("merlon", tools::binary("merlon"), self.folder())
            .args(args)
            .arg("--control-plane-socket")
            .arg(self.control_plane.socket())
            .run()
            .await
    }

    /// The control plane's status of each connected proxy: `merlon proxy status`.
    pub async fn status(&self) -> Vec<Value> {
        let proxies = self.control_plane.get("/v1/proxies").await;
        let list = proxies.as_array().cloned();
        list.unwrap_or_else(|| panic!("expected a list of proxies, got {proxies}"))
    }

    /// The control plane's status of the proxy of `workload`; null while it is not connected.
    pub async fn status_of(&self, workload: &str) -> Value {
        let identity = identity(workload);
        let mut all = self.status().await;
        all.retain(|proxy| {
            // Disconnected proxies stay in the list for a while.
            proxy["identity"] == identity.as_str() && proxy["state"] != "disconnected"
        });
        all.pop().unwrap_or_default()
    }

    /// The configuration of the proxy of `workload`: `merlon proxy config`.
    pub async fn dump_of(&self, workload: &str) -> Value {
        let id = self.proxy_id(workload).await;
        self.control_plane
            .get(&format!("/v1/proxies/{id}/config"))
            .await
    }

    /// Rotates the certificate of the proxy of `workload`: `merlon certs rotate`. Returns the old and the new serial number.
    pub async fn rotate(&self, workload: &str) -> (String, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let what = format!("the certificate of `{workload}` is rotated");
        wait::until_some(what, async || {
            let id = self.proxy_id(workload).await;
            let before = text(&self.status_of(workload).await["certificateSerial"]);
            let path = format!("/v1/proxies/{id}/rotate");
            let reply = self
                .control_plane
                .call(Method::POST, &path, &Value::Null)
                .await;
            if reply.status == StatusCode::OK {
                let rotated = reply.json();
                return Some((text(&rotated["oldSerial"]), text(&rotated["newSerial"])));
            }
            // Two seconds after a rotation the proxy reconnects with its new certificate. If that is now, the reply is
            // lost, and the request too or not.
            assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{reply:?}");
            self.proxy_id(workload).await;
            let after = text(&self.status_of(workload).await["certificateSerial"]);
            (!before.is_empty() && !after.is_empty() && after != before).then_some((before, after))
        })
        .await
    }

    /// Waits until the proxy of `workload` has acknowledged a snapshot other than `version`. Returns the new version.
    pub async fn until_acknowledged_after(&self, workload: &str, version: &str) -> String {
        wait::until_some(
            format!("`{workload}` acknowledges a snapshot newer than {version}"),
            async || {
                let status = self.status_of(workload).await;
                let now = status["snapshotVersion"].as_str()?;
                (status["state"] == "acknowledged" && now != version).then(|| now.to_owned())
            },
        )
        .await
    }

    /// The version of the snapshot that the proxy of `workload` enforces.
    pub async fn version_of(&self, workload: &str) -> String {
        wait::until_some(format!("`{workload}` reports its version"), async || {
            let status = self.status_of(workload).await;
            let version = status["snapshotVersion"].as_str().unwrap_or_default();
            (!version.is_empty()).then(|| version.to_owned())
        })
        .await
    }

    /// The id of the proxy of `workload`. It changes with each restart.
    pub async fn proxy_id(&self, workload: &str) -> String {
        wait::until_some(format!("`{workload}` is connected"), async || {
            let status = self.status_of(workload).await;
            status["id"].as_str().map(str::to_owned)
        })
        .await
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.control_plane)?;
        for sidecar in self.sidecars.values() {
            writeln!(f, "{sidecar:?}")?;
        }
        Ok(())
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // A failed test prints the output of its processes.
        if std::thread::panicking() {
            eprintln!("{self:?}");
        }
    }
}
