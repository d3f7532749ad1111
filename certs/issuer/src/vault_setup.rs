//! Prepares a Vault or OpenBao for Merlon, once, with an administrator's token: a root, an intermediate, a role, a
//! policy, and a token with only that policy.
//!
//! The demo and the tests use it instead of the manual steps in the documentation.

use std::time::Duration;

use merlon_config::name::TrustDomain;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use url::Url;

/// The created mounts, role, policy and token.
#[derive(Debug)]
pub struct Prepared {
    /// A periodic token with the least-privilege policy.
    pub token: SecretString,
    /// The mount that signs leaves.
    pub pki_mount: String,
    /// The mount of the root.
    pub root_mount: String,
    /// The role that signs.
    pub role: String,
    /// The name of the policy of the token.
    pub policy: String,
}

/// Why Vault could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The server did not answer.
    #[error("cannot reach Vault at `{address}`")]
    Unreachable {
        /// The address of the server.
        address: Url,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The server refused a step.
    #[error("Vault refuses `{method} {path}`: {status} {message}")]
    Refused {
        /// The method.
        method: reqwest::Method,
        /// The path below `/v1/`.
        path: String,
        /// The status code.
        status: u16,
        /// The body of the answer.
        message: String,
    },
    /// The answer of the server lacks a field.
    #[error("Vault's answer to `{path}` lacks `{field}`")]
    Answer {
        /// The path below `/v1/`.
        path: String,
        /// The missing field.
        field: &'static str,
    },
}

/// Runs all steps, with mounts that start with `prefix` (`pki` gives `pki-root` and `pki-int`).
///
/// The root is valid for ten years, the intermediate for one. The root has no path length, so that a later one can be
/// cross-signed. The role only signs names of workloads of `trust_domain`, for at most 168 hours, and stores nothing.
///
/// # Errors
/// The first refused step. Vault refuses mounts that exist: nothing is overwritten.
pub async fn prepare(
    address: &Url,
    administrator: &SecretString,
    trust_domain: &TrustDomain,
    prefix: &str,
) -> Result<Prepared, SetupError> {
    let vault = Administrator::new(address, administrator)?;
    let (root, int, role) = (format!("{prefix}-root"), format!("{prefix}-int"), "svid");
    let domain = format!("spiffe://{trust_domain}");
    let mount = |max_ttl: &str| json!({ "type": "pki", "config": { "max_lease_ttl": max_ttl } });
    vault
        .post(&format!("sys/mounts/{root}"), mount("87600h"))
        .await?;
    vault
        .post(&format!("sys/mounts/{int}"), mount("8760h"))
        .await?;
    let new_root = json!({
        "common_name": format!("{trust_domain} root 1"), "uri_sans": domain, "issuer_name": "root-1",
        "key_name": "root-1", "key_type": "ec", "key_bits": 256, "ttl": "87600h", "not_before_duration": "24h",
    });
    vault
        .post(&format!("{root}/root/generate/internal"), new_root)
        .await?;
    let new_int = json!({
        "common_name": format!("{trust_domain} intermediate 1"), "uri_sans": domain, "key_name": "int-1",
        "key_type": "ec", "key_bits": 256, "add_basic_constraints": true,
    });
    let csr = vault
        .field(
            &format!("{int}/issuers/generate/intermediate/internal"),
            new_int,
            "csr",
        )
        .await?;
    let signing = json!({
        "csr": csr, "use_csr_values": true, "ttl": "8760h", "max_path_length": 0, "not_before_duration": "1h",
        "format": "pem",
    });
    let certificate = vault
        .field(
            &format!("{root}/issuer/root-1/sign-intermediate"),
            signing,
            "certificate",
        )
        .await?;
    let path = format!("{int}/intermediate/set-signed");
    let imported = vault
        .post(&path, json!({ "certificate": certificate }))
        .await?;
    let issuer = imported
        .pointer("/data/imported_issuers/0")
        .and_then(Value::as_str)
        .ok_or(SetupError::Answer {
            path,
            field: "imported_issuers",
        })?;
    vault
        .post(
            &format!("{int}/issuer/{issuer}"),
            json!({ "issuer_name": "int-1" }),
        )
        .await?;
    vault
        .post(
            &format!("{int}/config/issuers"),
            json!({ "default": issuer }),
        )
        .await?;
    vault
        .post(&format!("{int}/roles/{role}"), role_for(&domain))
        .await?;
    let policy = POLICY
        .replace("{{trust_domain}}", trust_domain.as_str())
        .replace("{{pki_mount}}", &int)
        .replace("{{root_mount}}", &root)
        .replace("{{role}}", role)
        .replace("{{kv_mount}}", "secret")
        .replace("{{kv_prefix}}", "merlon");
    let policy_name = format!("merlon-control-plane-{prefix}");
    vault
        .put(
            &format!("sys/policies/acl/{policy_name}"),
            json!({ "policy": policy }),
        )
        .await?;
    let path = "auth/token/create-orphan";
    let wanted = json!({
        "policies": [&policy_name], "no_default_policy": true, "period": "24h", "display_name": "merlon-control-plane",
    });
    let created = vault.post(path, wanted).await?;
    let token = created
        .pointer("/auth/client_token")
        .and_then(Value::as_str)
        .ok_or_else(|| SetupError::Answer {
            path: path.to_owned(),
            field: "client_token",
        })?;
    Ok(Prepared {
        token: token.into(),
        pki_mount: int,
        root_mount: root,
        role: role.to_owned(),
        policy: policy_name,
    })
}

/// Removes what [`prepare`] created: the token, the policy and both mounts with their keys.
///
/// # Errors
/// The first refused step.
pub async fn remove(
    address: &Url,
    administrator: &SecretString,
    prepared: &Prepared,
) -> Result<(), SetupError> {
    let vault = Administrator::new(address, administrator)?;
    let token = json!({ "token": prepared.token.expose_secret() });
    vault.post("auth/token/revoke", token).await?;
    for path in [
        format!("sys/policies/acl/{}", prepared.policy),
        format!("sys/mounts/{}", prepared.pki_mount),
        format!("sys/mounts/{}", prepared.root_mount),
    ] {
        vault
            .call(reqwest::Method::DELETE, &path, Value::Null)
            .await?;
    }
    Ok(())
}

pub(crate) fn role_for(domain: &str) -> Value {
    json!({
        "allowed_uri_sans": [format!("{domain}/ns/*/sa/*")],
        "use_csr_sans": false, "use_csr_common_name": false, "require_cn": false,
        "key_type": "ec", "key_bits": 256, "key_usage": ["DigitalSignature"], "server_flag": true, "client_flag": true,
        "allow_localhost": false, "allow_ip_sans": false, "allow_any_name": false, "allow_wildcard_certificates": false,
        "ttl": "1h", "max_ttl": "168h", "not_before_duration": "5m", "not_after_bound": "forbid",
        "not_before_bound": "forbid", "no_store": true, "generate_lease": false,
        "basic_constraints_valid_for_non_ca": true, "issuer_ref": "default",
    })
}

struct Administrator<'a> {
    address: &'a Url,
    token: &'a SecretString,
    http: reqwest::Client,
}

impl<'a> Administrator<'a> {
    fn new(address: &'a Url, token: &'a SecretString) -> Result<Self, SetupError> {
        let mut http = reqwest::Client::builder()
            .timeout(Duration::from_secs(10))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if address.scheme() == "http" {
            // No root certificates are needed, so none are loaded.
            http = http.tls_certs_only(Vec::new());
        }
        let http = http.build().map_err(|source| SetupError::Unreachable {
            address: address.clone(),
            source,
        })?;
        Ok(Self {
            address,
            token,
            http,
        })
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value, SetupError> {
        self.call(reqwest::Method::POST, path, body).await
    }

    async fn put(&self, path: &str, body: Value) -> Result<Value, SetupError> {
        self.call(reqwest::Method::PUT, path, body).await
    }

    async fn field(
        &self,
        path: &str,
        body: Value,
        field: &'static str,
    ) -> Result<String, SetupError> {
        let answer = self.post(path, body).await?;
        let found = answer
            .pointer(&format!("/data/{field}"))
            .and_then(Value::as_str);
        found.map(str::to_owned).ok_or_else(|| SetupError::Answer {
            path: path.to_owned(),
            field,
        })
    }

    async fn call(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Value,
    ) -> Result<Value, SetupError> {
        let unreachable = |source| SetupError::Unreachable {
            address: self.address.clone(),
            source,
        };
        let url = format!("{}/v1/{path}", self.address.as_str().trim_end_matches('/'));
        let request = self
            .http
            .request(method.clone(), url)
            .header("X-Vault-Token", self.token.expose_secret());
        let answer = request.json(&body).send().await.map_err(unreachable)?;
        let status = answer.status();
        let text = answer.text().await.map_err(unreachable)?;
        if !status.is_success() {
            let message = text.chars().take(500).collect();
            return Err(SetupError::Refused {
                method,
                path: path.to_owned(),
                status: status.as_u16(),
                message,
            });
        }
        // 204 has no body.
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}

/// The least-privilege policy that ships with Merlon.
pub const POLICY: &str = include_str!("../vault/merlon-control-plane.hcl");
