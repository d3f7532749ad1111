//! Trust domains in a real OpenBao server, each with mounts, a role, a policy and a token of its own.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use merlon_config::{name::TrustDomain, resource::VaultIssuer};
use merlon_issuer::{
    Vault, VaultTimes,
    vault_setup::{self, Prepared},
};
use merlon_test_support::{folder, openbao::OpenBao, until};
use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tempfile::TempDir;
use url::Url;

/// One trust domain in the server.
pub(crate) struct Mesh<'a> {
    pub(crate) bao: &'a OpenBao,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) prepared: Prepared,
    pub(crate) token_file: PathBuf,
    _folder: TempDir,
}

impl<'a> Mesh<'a> {
    /// Mounts, role, policy and token of one test.
    pub(crate) async fn new(bao: &'a OpenBao, trust_domain: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("pki{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let trust_domain: TrustDomain = trust_domain.parse().unwrap();
        let (address, administrator) = access(bao);
        let prepared = vault_setup::prepare(&address, &administrator, &trust_domain, &prefix)
            .await
            .unwrap();
        // Wait until the new token and role are visible.
        let token = prepared.token.expose_secret();
        let role = format!("{}/roles/{}", prepared.pki_mount, prepared.role);
        for path in ["auth/token/lookup-self", &role] {
            until(format!("{path} is visible"), async || {
                let response = bao.call_with(token, Method::GET, path, Value::Null).await;
                response.status == 200
            })
            .await;
        }
        let folder = folder::fresh();
        let token_file = folder.path().join("token");
        fs::write(&token_file, prepared.token.expose_secret()).unwrap();
        Self {
            bao,
            trust_domain,
            prepared,
            token_file,
            _folder: folder,
        }
    }

    /// A trust domain in the server that most tests share.
    pub(crate) async fn shared(trust_domain: &str) -> Self {
        Mesh::new(OpenBao::shared().await, trust_domain).await
    }

    pub(crate) fn settings(&self) -> VaultIssuer {
        VaultIssuer {
            address: access(self.bao).0,
            ca_file: None,
            token_file: Some(self.token_file.clone()),
            kubernetes_auth: None,
            pki_mount: self.prepared.pki_mount.clone(),
            root_mount: self.prepared.root_mount.clone(),
            role: self.prepared.role.clone(),
            kv_mount: "secret".to_owned(),
            kv_prefix: "merlon".to_owned(),
        }
    }

    pub(crate) fn vault(&self) -> Vault {
        self.vault_with(VaultTimes::default())
    }

    pub(crate) fn vault_with(&self, times: VaultTimes) -> Vault {
        Vault::connect(&self.settings(), &self.trust_domain, times).unwrap()
    }

    pub(crate) fn token(&self) -> &str {
        self.prepared.token.expose_secret()
    }

    pub(crate) async fn remove(&self) {
        let (address, administrator) = access(self.bao);
        vault_setup::remove(&address, &administrator, &self.prepared)
            .await
            .unwrap();
    }

    /// Another token with only the same policy.
    pub(crate) async fn new_token(&self, period: &str) -> String {
        let policy = &self.prepared.policy;
        let wanted = json!({ "policies": [policy], "no_default_policy": true, "period": period });
        let response = self
            .bao
            .call(Method::POST, "auth/token/create-orphan", wanted)
            .await;
        response.body["auth"]["client_token"]
            .as_str()
            .expect("a token")
            .to_owned()
    }
}

/// The server's address and its administrator's token.
fn access(bao: &OpenBao) -> (Url, SecretString) {
    let address = bao.address().parse().unwrap();
    (address, SecretString::from(bao.root_token()))
}
