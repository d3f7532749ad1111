//! The process of the control plane.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use http::Method;
use serde_json::{Value, json};

use super::{
    admin::{self, page, sum},
    names::identity,
};
use crate::{
    client::Reply,
    ports,
    process::{Plan, Process},
    tools, wait,
};

/// The control plane of a mesh.
pub struct ControlPlane {
    process: Mutex<Option<Process>>,
    folder: PathBuf,
    listen: SocketAddr,
    admin: SocketAddr,
    environment: Vec<(String, String)>,
    args: Vec<String>,
}

impl ControlPlane {
    /// A control plane that reads `<folder>/resources`, with these arguments in addition. Does not start it.
    pub(super) fn new(
        folder: &Path,
        environment: Vec<(String, String)>,
        args: Vec<String>,
    ) -> Self {
        Self {
            process: Mutex::new(None),
            folder: folder.to_owned(),
            listen: ports::free(),
            admin: ports::free(),
            environment,
            args,
        }
    }

    /// Starts it, or starts it again after its exit, and waits until it is ready.
    pub async fn start(&self) {
        self.launch();
        self.until_ready().await;
    }

    /// Starts it without waiting.
    pub fn launch(&self) {
        let mut plan = Plan::new(
            "control-plane",
            tools::binary("merlon-control-plane"),
            &self.folder,
        )
        .arg("--config")
        .arg(self.folder.join("resources"))
        .arg("--state-dir")
        .arg(self.folder.join("control-plane"))
        .arg("--admin-socket")
        .arg(self.socket())
        .args(["--listen", &self.listen.to_string()])
        .args(["--admin", &self.admin.to_string()])
        .args(&self.args);
        for (name, value) in &self.environment {
            plan = plan.env(name, value);
        }
        *self.process() = Some(plan.start());
    }

    /// Waits until `/ready` responds with 200.
    pub async fn until_ready(&self) {
        wait::until("the control plane is ready", async || {
            let ended = self
                .process()
                .as_ref()
                .is_none_or(|process| !process.is_alive());
            assert!(!ended, "the control plane exited\n{self:?}");
            self.probe("/ready").await == 200
                && self
                    .send_json(Method::GET, "/v1/proxies", &Value::Null)
                    .await
                    .is_ok()
        })
        .await;
    }

    /// Waits until the process has exited. Returns its exit code.
    pub async fn until_ended(&self) -> i32 {
        wait::until_some("the control plane exits", async || {
            self.process().as_ref()?.exit_code()
        })
        .await
    }

    /// Kills it with SIGKILL.
    pub fn kill9(&self) {
        drop(self.process().take());
    }

    /// Starts it again at the same addresses.
    pub async fn restart(&self) {
        self.start().await;
    }

    /// The id of the process, if it is running.
    pub(super) fn pid(&self) -> Option<u32> {
        let process = self.process();
        process
            .as_ref()
            .filter(|process| process.is_alive())
            .map(Process::pid)
    }

    /// Its address for proxies.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Its URL for proxies.
    pub fn url(&self) -> String {
        format!("https://{}", self.listen)
    }

    /// The address of `/live`, `/ready` and `/metrics`.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The administration socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("control-plane.sock")
    }

    /// The body of a page of its administration address.
    ///
    /// # Panics
    /// Without a response.
    pub async fn page(&self, path: &str) -> String {
        let (_, text) = page(self.admin, path)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}\n{self:?}"));
        text
    }

    /// The status of a page; 0 without a response.
    pub async fn probe(&self, path: &str) -> u16 {
        page(self.admin, path).await.map_or(0, |(status, _)| status)
    }

    /// The sum of the metric `name` over all series whose labels contain `labels`; 0 if there is no such series.
    ///
    /// # Panics
    /// If there is no such metric.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        sum(&self.page("/metrics").await, name, labels)
    }

    /// `GET` on the administration socket.
    pub async fn get(&self, path: &str) -> Value {
        self.send_json(Method::GET, path, &Value::Null)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{self:?}"))
    }

    /// `POST` on the administration socket.
    pub async fn post(&self, path: &str, body: &Value) -> Value {
        self.send_json(Method::POST, path, body)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{self:?}"))
    }

    /// Any request to the administration socket. Returns the complete response.
    pub async fn call(&self, method: Method, path: &str, body: &Value) -> Reply {
        admin::call(&self.socket(), method, path, body)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{self:?}"))
    }

    async fn send_json(&self, method: Method, path: &str, body: &Value) -> Result<Value, String> {
        admin::json(&self.socket(), method, path, body).await
    }

    /// A join token for `workload`.
    pub async fn join_token(&self, workload: &str) -> String {
        let request = json!({ "identity": identity(workload), "ttl": "10m" });
        let created = self.post("/v1/join-tokens", &request).await;
        let token = created["token"].as_str();
        token
            .unwrap_or_else(|| panic!("expected a token, got {created}"))
            .to_owned()
    }

    /// Its process log.
    pub fn log(&self) -> String {
        let process = self.process();
        process
            .as_ref()
            .map(|process| process.err() + &process.out())
            .unwrap_or_default()
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.process() {
            Some(process) => process.fmt(f),
            None => f.write_str("(the control plane is stopped)"),
        }
    }
}
