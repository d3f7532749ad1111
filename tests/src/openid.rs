//! An OpenID provider, the real one of npm's `oidc-provider`.

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

/// One issuer of the provider, with keys and clients of its own.
#[derive(Debug)]
pub struct OpenIdProvider {
    server: &'static Server,
    name: String,
    http: reqwest::Client,
}

/// For whom the tokens of tests are meant, when nothing else is said.
pub const AUDIENCE: &str = "https://orders.example";

impl OpenIdProvider {
    /// A fresh issuer with ES256 keys and the clients `alice` (group `buyers`) and `bob` (group `clerks`).
    pub async fn new() -> Self {
        Self::with(json!({})).await
    }

    /// The same with keys for this algorithm.
    pub async fn with_algorithm(algorithm: &str) -> Self {
        Self::with(json!({ "alg": algorithm })).await
    }

    async fn with(mut wanted: Value) -> Self {
        let server = SERVER.get_or_init(start).await;
        let this = Self {
            server,
            name: format!("issuer-{}", ISSUERS.fetch_add(1, Ordering::Relaxed)),
            http: fresh_connections(),
        };
        wanted["clients"] = json!([
            { "id": "alice", "claims": { "groups": ["buyers"], "department": "sales" } },
            { "id": "bob", "claims": { "groups": ["clerks"] } },
        ]);
        this.control("", wanted).await;
        this
    }

    /// The value of `iss`.
    pub fn issuer(&self) -> String {
        format!("{}/{}", self.server.base, self.name)
    }

    /// What a client gets at the token endpoint for [`AUDIENCE`] (client_credentials, JWT of RFC 9068).
    pub async fn token_of(&self, client: &str) -> String {
        self.token_for(client, AUDIENCE, "orders:read").await
    }

    /// The same for another audience or scope.
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

    /// A token that the provider would never issue, signed with its own key: `claims` and `header` replace the usual
    /// ones, and null takes one away.
    pub async fn sign(&self, header: Value, claims: Value) -> String {
        self.signed_by("own", header, claims).await
    }

    /// The same by a key of nobody's, under the provider's key id.
    pub async fn sign_with_unknown_key(&self) -> String {
        self.signed_by("unknown", json!({}), json!({})).await
    }

    /// The same by the last key that was retired.
    pub async fn sign_with_retired_key(&self) -> String {
        self.signed_by("retired", json!({}), json!({})).await
    }

    /// A token with these bytes as its payload, well signed.
    pub async fn sign_payload(&self, payload: &str) -> String {
        let asked = json!({ "payload": payload });
        text(&self.control("sign", asked).await, "token")
    }

    async fn signed_by(&self, key: &str, header: Value, claims: Value) -> String {
        let asked = json!({ "key": key, "header": header, "claims": claims });
        text(&self.control("sign", asked).await, "token")
    }

    /// New keys in place of the old; the new key's id.
    pub async fn rotate_keys(&self) -> String {
        text(&self.control("rotate", json!({})).await, "kid")
    }

    /// A new key in front of the old ones, which stay published.
    pub async fn add_key(&self) -> String {
        text(
            &self.control("rotate", json!({ "overlap": true })).await,
            "kid",
        )
    }

    /// Makes it `ok`, `down` (closes), `silent`, `error` (500), `html`, or `huge`.
    pub async fn set_mode(&self, mode: &str) {
        self.control("mode", json!({ "mode": mode })).await;
    }

    /// How often its keys were fetched.
    pub async fn keys_fetched(&self) -> u64 {
        let fetched = self.control("fetched", json!({})).await;
        fetched["jwks"].as_u64().unwrap_or_default()
    }

    /// The public key of the current key, PEM, and its id.
    pub async fn public_key(&self) -> (String, String) {
        let key = self.control("public-key", json!({})).await;
        (text(&key, "pem"), text(&key, "kid"))
    }

    async fn control(&self, action: &str, asked: Value) -> Value {
        let path = format!("{}/control/{}/{action}", self.server.base, self.name);
        let response = self
            .http
            .post(path.trim_end_matches('/'))
            .json(&asked)
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

/// A token put together by hand: no library makes these.
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

/// A client that keeps no connection: an issuer may outlive the test, and with it the runtime, that called it last.
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
