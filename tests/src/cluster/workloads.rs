//! Operations on programs in a cluster with Merlon.

use super::{merlon, running::Cluster};
use crate::{pods::Capture, process::Output, tools};

/// A Deployment of [`merlon::PROGRAMS`] that runs a shell command, and its service account. `more` is added to the
/// container, indented by ten spaces.
pub fn program(name: &str, replicas: u8, command: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ServiceAccount
metadata: {{ name: {name} }}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{ name: {name} }}
spec:
  replicas: {replicas}
  selector: {{ matchLabels: {{ app: {name} }} }}
  template:
    metadata: {{ labels: {{ app: {name} }} }}
    spec:
      serviceAccountName: {name}
      terminationGracePeriodSeconds: 5
      containers:
        - name: {name}
          image: {image}
          imagePullPolicy: Never
          command: [sh, -c, {command:?}]
{more}
---
",
        image = merlon::PROGRAMS,
    )
}

impl Cluster {
    /// Installs the CRDs of Gateway API.
    pub async fn install_gateway_crds(&self) {
        let definitions = tools::root().join(".tools/gateway-api.yaml");
        let definitions = definitions.display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &definitions])
            .await;
    }

    /// Creates a namespace in the mesh whose name begins with `name`.
    pub async fn meshed_namespace(&self, name: &str) -> String {
        let namespace = self.namespace(name).await;
        let label = "merlon.io/inject=enabled";
        self.kubectl(&["label", "namespace", &namespace, label])
            .await;
        namespace
    }

    /// Applies documents in a namespace. It may fail.
    pub async fn try_apply_in(&self, namespace: &str, documents: &str) -> Output {
        let file = tempfile::NamedTempFile::new_in(self.folder()).expect("a file");
        std::fs::write(file.path(), documents).expect("a file");
        let path = file.path().to_string_lossy();
        self.try_kubectl(&["apply", "-n", namespace, "-f", &path])
            .await
    }

    /// Applies documents in a namespace.
    ///
    /// # Panics
    /// When one is refused.
    pub async fn apply_in(&self, namespace: &str, documents: &str) {
        let ended = self
            .admitted(async || self.try_apply_in(namespace, documents).await)
            .await;
        assert_eq!(ended.code(), 0, "{}\n{documents}", ended.err);
    }

    /// Waits until all Deployments of a namespace are available.
    pub async fn available(&self, namespace: &str) {
        let condition = "--for=condition=Available";
        self.wait_for(&[condition, "-n", namespace, "deployment", "--all"])
            .await;
    }

    /// Waits until every affected proxy enforces a policy: `authorizationpolicy/orders`.
    pub async fn programmed(&self, namespace: &str, policy: &str) {
        self.wait_for(&["--for=condition=Programmed", "-n", namespace, policy])
            .await;
    }

    /// Waits until the rollout of a Deployment is complete.
    pub async fn rolled_out(&self, namespace: &str, what: &str) {
        self.kubectl(&[
            "rollout",
            "status",
            "-n",
            namespace,
            what,
            super::KUBECTL_TIMEOUT,
        ])
        .await;
    }

    /// Runs curl in a pod of a Deployment. It prints the body and, on a separate line, the status.
    pub async fn curl(&self, namespace: &str, from: &str, arguments: &[&str]) -> Output {
        let from = format!("deploy/{from}");
        let mut all = vec!["curl", "-s", "-m", "60", "-w", "\n%{http_code}"];
        all.extend(arguments);
        self.exec(namespace, &from, &all).await
    }

    /// Runs `merlon` with the administrator's kubeconfig.
    pub async fn merlon(&self, arguments: &[&str]) -> Output {
        self.inside("merlon", &tools::binary("merlon"))
            .args(arguments)
            .run()
            .await
    }

    /// Captures the traffic on the node's interfaces from now on.
    pub fn wire(&self) -> Capture {
        Capture::start(&format!("/proc/{}/ns/net", self.init()))
    }
}
