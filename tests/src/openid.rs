//! An OpenID provider: `oidc-provider` from npm.

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{
    process::{Plan, Process},
    tools,
};

/// The server process that the tests of this binary share.
#[derive(Debug)]
struct Server {
    process: Process,
    base: String,
    _folder: TempDir,
}

static SERVER: OnceCell<Server> = OnceCell::const_new();
static ISSUERS: AtomicU32 = AtomicU32::new(0);

/// An issuer of the provider, with its own keys and clients.
#[derive(Debug)]
pub struct OpenIdProvider {
    server: &'static Server,
    name: String,
    http: reqwest::Client,
}

/// The default audience of tokens.
pub const AUDIENCE: &str = "https://orders.example";

impl OpenIdProvider {
    /// A new issuer with ES256 keys and the clients `alice` (group `buyers`) and `bob` (group `clerks`).
    pub async fn new() -> Self {
        Self::with(json!({})).await
    }

    /// Like [`OpenIdProvider::new`], with keys for this algorithm.
    pub async fn with_algorithm(algorithm: &str) -> Self {
        Self::with(json!({ "alg": algorithm })).await
    }

    async fn with(mut options: Value) -> Self {
        let server = SERVER.get_or_init(start).await;
        let this = Self {
            server,
            name: format!("issuer-{}", ISSUERS.fetch_add(1, Ordering::Relaxed)),
            http: fresh_connections(),
        };
        options["clients"] = json!([
            { "id": "alice", "claims": { "groups": ["buyers"], "department": "sales" } },
            { "id": "bob", "claims": { "groups": ["clerks"] } },
        ]);
        this.control("", options).await;
        this
    }

    /// The value of `iss`.
    pub fn issuer(&self) -> String {
        format!("{}/{}", self.server.base, self.name)
    }

    /// A token for [`AUDIENCE`] that a client gets from the token endpoint (client_credentials, JWT of RFC 9068).
    pub async fn token_of(&self, client: &str) -> String {
        self.token_for(client, AUDIENCE, "orders:read").await
    }

    /// [`OpenIdProvider::token_of`] for another audience or scope.
    pub async fn token_for(&self, client: &str, audience: &str, scope: &str) -> String {
        let response = self
            .http
            .post(format!("{}/token", self.issuer()))
            .basic_auth(client, Some(format!("{client}-secret")))
            .form(&[
                ("grant_type", "client_credentials"),
                ("resource", audience),
                ("scope", scope),
            ])
            .send()
            .await
            .expect("the provider answers");
        let body: Value = response.json().await.expect("JSON");
        text(&body, "access_token")
    }

    /// A token that the provider would not issue, signed with its current key. `claims` and `header` replace the default
    /// ones; null removes one.
    pub async fn sign(&self, header: Value, claims: Value) -> String {
        self.signed_by("own", header, claims).await
    }

    /// A token signed with a key that was never published, with the id of the provider's current key.
    pub async fn sign_with_unknown_key(&self) -> String {
        self.signed_by("unknown", json!({}), json!({})).await
    }

    /// A token signed with the last retired key.
    pub async fn sign_with_retired_key(&self) -> String {
        self.signed_by("retired", json!({}), json!({})).await
    }

    /// A token with this payload and a valid signature.
    pub async fn sign_payload(&self, payload: &str) -> String {
        let options = json!({ "payload": payload });
        text(&self.control("sign", options).await, "token")
    }

    async fn signed_by(&self, key: &str, header: Value, claims: Value) -> String {
        let options = json!({ "key": key, "header": header, "claims": claims });
        text(&self.control("sign", options).await, "token")
    }

    /// Replaces the keys. Returns the id of the new key.
    pub async fn rotate_keys(&self) -> String {
        text(&self.control("rotate", json!({})).await, "kid")
    }

    /// Adds a new current key; the old ones stay published. Returns its id.
    pub async fn add_key(&self) -> String {
        text(
            &self.control("rotate", json!({ "overlap": true })).await,
            "kid",
        )
    }

    /// Sets its behaviour: `ok`, `down` (closes connections), `silent`, `error` (500), `html`, or `huge`.
    pub async fn set_mode(&self, mode: &str) {
        self.control("mode", json!({ "mode": mode })).await;
    }

    /// How often its JWKS was fetched.
    pub async fn keys_fetched(&self) -> u64 {
        let fetched = self.control("fetched", json!({})).await;
        fetched["jwks"].as_u64().unwrap_or_default()
    }

    /// The current public key in PEM, and its id.
    pub async fn public_key(&self) -> (String, String) {
        let key = self.control("public-key", json!({})).await;
        (text(&key, "pem"), text(&key, "kid"))
    }

    async fn control(&self, action: &str, options: Value) -> Value {
        let path = format!("{}/control/{}/{action}", self.server.base, self.name);
        let response = self
            .http
            .post(path.trim_end_matches('/'))
            .json(&options)
            .send()
            .await
            .expect("the provider answers");
        let status = response.status();
        let body = response.text().await.expect("a body");
        assert!(
            status.is_success(),
            "{action}: {body}\n{:?}",
            self.server.process
        );
        serde_json::from_str(&body).expect("JSON")
    }
}

/// A token assembled from parts that JWT libraries would reject.
pub fn forge(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let (header, claims) = (header.to_string(), claims.to_string());
    format!(
        "{}.{}.{}",
        encode(header.as_bytes()),
        encode(claims.as_bytes()),
        encode(signature)
    )
}

/// A client without idle connections: an issuer may outlive the test whose runtime drives them.
fn fresh_connections() -> reqwest::Client {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build();
    client.expect("a client")
}

async fn start() -> Server {
    let folder = crate::folder::fresh();
    let modules = tools::folder().join("openid-provider");
    assert!(
        modules.join("node_modules/oidc-provider").is_dir(),
        "the OpenID provider is not installed; install it with: make tools"
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc/provider.mjs");
    let process = Plan::new("openid-provider", "node", folder.path())
        .arg(script)
        .arg(modules)
        .start();
    process
        .until("listens", async || process.out().contains("base "))
        .await;
    let out = process.out();
    let base = out.lines().find_map(|line| line.strip_prefix("base "));
    Server {
        base: base.expect("its address").to_owned(),
        process,
        _folder: folder,
    }
}

fn text(value: &Value, field: &str) -> String {
    match value.get(field).and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => panic!("no `{field}` in {value}"),
    }
}
