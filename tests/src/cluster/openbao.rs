//! OpenBao in a cluster: the real server in a pod, unsealed, with TLS, and with an administrator's set-up for Merlon.

use std::{fs, path::PathBuf};

use serde_json::Value;

use super::{
    image::Image,
    merlon::{NAMESPACE, TRUST_DOMAIN},
    running::Cluster,
};
use crate::{
    process::{Output, Plan},
    tools, wait,
};

/// The server of a cluster.
#[derive(Debug)]
pub struct ClusterBao<'a> {
    cluster: &'a Cluster,
    access: Access,
}

/// The access of its administrator, to keep beside the cluster.
#[derive(Debug, Clone)]
pub struct Access {
    certificate: PathBuf,
    address: String,
    unseal_key: String,
    root_token: String,
}

const IMAGE: &str = "localhost/openbao:test";
/// Its address for clients in the cluster.
pub const ADDRESS: &str = "https://openbao.vault.svc:8200";

/// Its resources. Its service account may review tokens.
const DOCUMENTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: vault }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: openbao, namespace: vault }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: openbao-token-review }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:auth-delegator" }
subjects: [{ kind: ServiceAccount, name: openbao, namespace: vault }]
---
apiVersion: v1
kind: ConfigMap
metadata: { name: openbao, namespace: vault }
data:
  openbao.hcl: |
    storage "raft" {
      path    = "/data"
      node_id = "one"
    }
    listener "tcp" {
      address       = "0.0.0.0:8200"
      tls_cert_file = "/tls/tls.crt"
      tls_key_file  = "/tls/tls.key"
    }
    api_addr     = "https://openbao.vault.svc:8200"
    cluster_addr = "https://127.0.0.1:8201"
---
apiVersion: v1
kind: Service
metadata: { name: openbao, namespace: vault }
spec:
  selector: { app: openbao }
  ports: [{ name: https, port: 8200 }]
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: openbao, namespace: vault }
spec:
  replicas: 1
  strategy: { type: Recreate }
  selector: { matchLabels: { app: openbao } }
  template:
    metadata: { labels: { app: openbao } }
    spec:
      serviceAccountName: openbao
      terminationGracePeriodSeconds: 1
      containers:
        - name: openbao
          image: localhost/openbao:test
          imagePullPolicy: Never
          args: [server, -config=/config/openbao.hcl]
          # Ready as soon as it listens: a sealed server must be reachable, to be unsealed.
          readinessProbe: { tcpSocket: { port: 8200 }, periodSeconds: 1 }
          volumeMounts:
            - { name: config, mountPath: /config }
            - { name: tls, mountPath: /tls }
            - { name: data, mountPath: /data }
      volumes:
        - { name: config, configMap: { name: openbao } }
        - { name: tls, secret: { secretName: openbao-tls } }
        # Survives a restart of the container, but not of the pod.
        - { name: data, emptyDir: {} }
"#;

impl Cluster {
    /// Starts the server, and runs `certs/issuer/vault/setup.sh` as its administrator.
    pub async fn openbao(&self) -> ClusterBao<'_> {
        self.load(&Image::new(IMAGE, &tools::installed("bao"), "/bin/bao"))
            .await;
        let names = ["openbao.vault.svc", "openbao.vault.svc.cluster.local"];
        let key = rcgen::KeyPair::generate().expect("a key");
        let own = rcgen::CertificateParams::new(names.map(str::to_owned).to_vec())
            .and_then(|params| params.self_signed(&key))
            .expect("a certificate");
        let certificate = self.folder().join("openbao.pem");
        let secret = self.folder().join("openbao.key");
        fs::write(&certificate, own.pem()).expect("a file");
        fs::write(&secret, key.serialize_pem()).expect("a file");
        self.kubectl(&["create", "namespace", "vault"]).await;
        self.kubectl(&[
            "create",
            "secret",
            "tls",
            "openbao-tls",
            "-n",
            "vault",
            &format!("--cert={}", certificate.display()),
            &format!("--key={}", secret.display()),
        ])
        .await;
        self.apply(DOCUMENTS).await;
        self.wait_for(&[
            "--for=condition=Available",
            "-n",
            "vault",
            "deployment/openbao",
        ])
        .await;
        let service = self
            .json(&["get", "service", "openbao", "-n", "vault"])
            .await;
        let address = service["spec"]["clusterIP"].as_str().expect("an address");
        let mut bao = self.openbao_of(Access {
            certificate,
            address: format!("https://{address}:8200"),
            unseal_key: String::new(),
            root_token: String::new(),
        });
        // The Service's address works once kube-proxy has written its rules.
        wait::until("OpenBao is reachable", async || {
            let status = bao.try_cli(&["status"]).await;
            status.out.contains("Sealed")
        })
        .await;
        let keys = bao
            .cli(&[
                "operator",
                "init",
                "-format=json",
                "-key-shares=1",
                "-key-threshold=1",
            ])
            .await;
        let keys: Value = serde_json::from_str(&keys).expect("JSON");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        bao.access.unseal_key = text(&keys["unseal_keys_b64"][0]);
        bao.access.root_token = text(&keys["root_token"]);
        bao.unseal().await;
        let set_up = bao
            .plan(&tools::root().join("certs/issuer/vault/setup.sh"))
            .env("TRUST_DOMAIN", TRUST_DOMAIN)
            .env("NAMESPACE", NAMESPACE)
            .run()
            .await;
        assert_eq!(set_up.code(), 0, "{}{}", set_up.out, set_up.err);
        bao
    }

    /// The server that [`Cluster::openbao`] started in this cluster.
    pub fn openbao_of(&self, access: Access) -> ClusterBao<'_> {
        ClusterBao {
            cluster: self,
            access,
        }
    }
}

impl ClusterBao<'_> {
    /// The access of its administrator.
    pub fn access(&self) -> Access {
        self.access.clone()
    }

    /// Its self-signed certificate in PEM.
    pub fn certificate(&self) -> String {
        fs::read_to_string(&self.access.certificate).expect("a file")
    }

    fn plan(&self, program: &std::path::Path) -> Plan {
        let bin = tools::folder().join("bin");
        let bin = bin.canonicalize().expect("the tools");
        let path = std::env::var("PATH").unwrap_or_default();
        self.cluster
            .inside("bao", program)
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("VAULT_ADDR", &self.access.address)
            .env("VAULT_CACERT", &self.access.certificate)
            .env("VAULT_TLS_SERVER_NAME", "openbao.vault.svc")
            .env("VAULT_TOKEN", &self.access.root_token)
    }

    /// Runs `bao` as its administrator. It may fail.
    pub async fn try_cli(&self, arguments: &[&str]) -> Output {
        self.plan(&tools::installed("bao"))
            .args(arguments)
            .run()
            .await
    }

    /// Runs `bao` as its administrator and returns its output.
    ///
    /// # Panics
    /// If it fails.
    pub async fn cli(&self, arguments: &[&str]) -> String {
        let ended = self.try_cli(arguments).await;
        assert_eq!(
            ended.code(),
            0,
            "bao {arguments:?}: {}{}",
            ended.out,
            ended.err
        );
        ended.out
    }

    /// Seals it, so that it signs no certificates.
    pub async fn seal(&self) {
        self.cli(&["operator", "seal"]).await;
    }

    /// Unseals it, after a start or a seal.
    pub async fn unseal(&self) {
        wait::until("OpenBao is unsealed", async || {
            let unsealed = self
                .try_cli(&["operator", "unseal", &self.access.unseal_key])
                .await;
            unsealed.code() == 0
        })
        .await;
        // For a moment it is unsealed and answers 500, because it is not the active node yet.
        wait::until("OpenBao is the active node", async || {
            self.try_cli(&["secrets", "list"]).await.code() == 0
        })
        .await;
    }

    /// The chart's values for this server.
    pub fn values(&self) -> String {
        let indented: String = self
            .certificate()
            .lines()
            .map(|line| format!("    {line}\n"))
            .collect();
        format!(
            "mesh: {{ trustDomain: {TRUST_DOMAIN} }}\ncertificates: {{ issuer: vault }}\nvault:\n  address: {ADDRESS}\n  caBundle: |\n{indented}"
        )
    }
}
