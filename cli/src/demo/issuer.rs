//! `merlon demo-issuer`: a minimal OpenID provider with real discovery, keys and tokens.
//!
//! It signs every token that is requested, because the demo also needs bad tokens.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, rc::Rc};

use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{
    server::{self, answer},
    token::{Claims, SigningKey},
};
use crate::failure::Failure;

/// Run the demo's token issuer.
#[derive(Debug, Args)]
pub(crate) struct IssuerArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    addresses_file: PathBuf,
    /// Folder of its keys, which it keeps across restarts.
    #[arg(long)]
    state_dir: PathBuf,
    /// A JSON Web Key to publish as the next key instead of its own.
    #[arg(long)]
    next_key: Option<PathBuf>,
}

/// The key that signs.
pub(crate) const CURRENT: &str = "demo-1";
/// The key that is published in advance, for the next rotation.
pub(crate) const NEXT: &str = "demo-2";

struct Issuer {
    url: String,
    key: SigningKey,
    published: Value,
}

pub(crate) async fn run(args: &IssuerArgs) -> Result<(), Failure> {
    let key = SigningKey::load_or_create(CURRENT, &args.state_dir.join(CURRENT))?;
    let next = match &args.next_key {
        Some(file) => {
            let text = std::fs::read(file)
                .map_err(|error| Failure::runtime(format!("{}: {error}", file.display())))?;
            serde_json::from_slice(&text)
                .map_err(|error| Failure::runtime(format!("{}: {error}", file.display())))?
        }
        None => SigningKey::load_or_create(NEXT, &args.state_dir.join(NEXT))?.public_jwk(),
    };
    let (listener, address) = server::listen(args.listen, &args.addresses_file).await?;
    let issuer = Rc::new(Issuer {
        url: format!("http://{address}"),
        published: json!({"keys": [key.public_jwk(), next]}),
        key,
    });
    server::serve(listener, move |request| {
        let issuer = Rc::clone(&issuer);
        async move { Ok::<_, Infallible>(issuer.answer(request).await) }
    })
    .await
}

impl Issuer {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/.well-known/openid-configuration") => answer(
                StatusCode::OK,
                &json!({
                    "issuer": self.url,
                    "jwks_uri": format!("{}/jwks", self.url),
                    "token_endpoint": format!("{}/token", self.url),
                    "authorization_endpoint": format!("{}/authorize", self.url),
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["ES256"],
                    "grant_types_supported": ["client_credentials"],
                    "token_endpoint_auth_methods_supported": ["none"],
                }),
            ),
            (&Method::GET, "/jwks") => answer(StatusCode::OK, &self.published),
            (&Method::POST, "/token") => self.token(request).await,
            _ => answer(StatusCode::NOT_FOUND, &json!({"error": "not_found"})),
        }
    }

    /// The token endpoint (RFC 6749 §4.4). The caller chooses `sub`, `audience`, `scope` and `expires_in`.
    async fn token(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Ok(body) = Limited::new(request.into_body(), 4_096).collect().await else {
            return answer(
                StatusCode::BAD_REQUEST,
                &json!({"error": "invalid_request"}),
            );
        };
        let mut claims = Claims {
            issuer: self.url.clone(),
            subject: "alice".to_owned(),
            audience: "orders".to_owned(),
            scope: "orders:read orders:write".to_owned(),
            expires_in: 3_600,
        };
        for (name, value) in url::form_urlencoded::parse(&body.to_bytes()) {
            match &*name {
                "sub" => claims.subject = value.into_owned(),
                "audience" => claims.audience = value.into_owned(),
                "scope" => claims.scope = value.into_owned(),
                "expires_in" => claims.expires_in = value.parse().unwrap_or(claims.expires_in),
                _ => {}
            }
        }
        match claims.signed_by(&self.key) {
            Ok(token) => answer(
                StatusCode::OK,
                &json!({
                    "access_token": token, "token_type": "Bearer",
                    "expires_in": claims.expires_in, "scope": claims.scope,
                }),
            ),
            Err(failure) => answer(
                StatusCode::INTERNAL_SERVER_ERROR,
                &json!({"error": "server_error", "error_description": failure.message()}),
            ),
        }
    }
}
