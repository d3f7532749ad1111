use std::{fs, sync::Arc, time::Duration};

use merlon_config::{
    causes::chain,
    loopback::is_loopback,
    resource::{KubernetesAuth, VaultIssuer},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::Mutex;
use url::Url;
use vaultrs::{
    api::{self, EndpointMiddleware},
    client::{VaultClient, VaultClientSettingsBuilder},
};

use super::{
    endpoint::Call,
    reply::{meaning, status_of},
    resolver::Hickory,
    token::{self, TokenSource},
};
use crate::error::{IssueError, OpenError};

/// A connection to the server and the token in use.
pub(super) struct Session {
    address: Url,
    http: reqwest::Client,
    /// One task at a time replaces the client; those who call take what there is. `None`: not logged in yet.
    client: Mutex<Option<Arc<VaultClient>>>,
    token_from: TokenSource,
}

/// What a token says of itself.
#[derive(Deserialize)]
pub(super) struct OwnToken {
    /// Seconds; 0 for one without end.
    pub(super) ttl: u64,
    #[serde(default)]
    pub(super) renewable: bool,
    #[serde(default)]
    pub(super) policies: Vec<String>,
}

impl Session {
    pub(super) fn connect(settings: &VaultIssuer) -> Result<Self, OpenError> {
        let address = settings.address.clone();
        if address.scheme() != "https" && !(address.scheme() == "http" && is_loopback(&address)) {
            return Err(OpenError::Vault(format!(
                "`{address}` is neither https nor http on loopback"
            )));
        }
        let token_from = TokenSource::of(settings)?;
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .dns_resolver(Arc::new(Hickory::default()))
            // The token goes where the resource says, not where an environment variable does.
            .no_proxy()
            // A standby's 307 leads to a leader that may be the dead one: the next try asks again instead.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = &settings.ca_file {
            let pem = fs::read(path).map_err(|source| OpenError::File {
                action: "read",
                path: path.clone(),
                source,
            })?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|roots| !roots.is_empty())
                .ok_or_else(|| {
                    OpenError::Vault(format!("`{}` holds no PEM certificates", path.display()))
                })?;
            // Only these count, not the system's beside them.
            http = http.tls_certs_only(roots);
        } else if address.scheme() == "http" {
            http = http.tls_certs_only(Vec::new());
        }
        let http = http
            .build()
            .map_err(|error| OpenError::Vault(error.to_string()))?;
        // A login is left to the first call: the server may be away now and come later.
        let held = match &token_from {
            TokenSource::File(path) => Some(token::from_file(path)?),
            TokenSource::Environment(token) => Some(token::from_environment(token)?),
            TokenSource::Kubernetes(_) => None,
        };
        let client = held
            .map(|token| client(&address, &http, &token).map(Arc::new))
            .transpose()
            .map_err(OpenError::Vault)?;
        Ok(Self {
            address,
            http,
            client: Mutex::new(client),
            token_from,
        })
    }

    /// Makes one call. A refused token is read anew; whether it was the token is asked of the server, since a 403 also
    /// tells of a missing right.
    pub(super) async fn call<T>(&self, what: &str, call: &Call<T>) -> Result<T, IssueError>
    where
        T: DeserializeOwned + Send + Sync,
    {
        let mut client = self.client().await?;
        // Twice: another task may have read a token that has died since.
        for _ in 0..2 {
            match api::exec_with_result(&*client, call.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) if matches!(status_of(&error), Some((403, _))) => {
                    client = self.authenticated(&client, what).await?;
                }
                Err(error) => return Err(meaning(what, &error)),
            }
        }
        api::exec_with_result(&*client, call.clone())
            .await
            .map_err(|error| meaning(what, &error))
    }

    /// The client in use, after a login if there is none.
    async fn client(&self) -> Result<Arc<VaultClient>, IssueError> {
        let mut current = self.client.lock().await;
        if let Some(client) = &*current {
            return Ok(Arc::clone(client));
        }
        let new = Arc::new(self.with(&self.new_token().await?)?);
        *current = Some(Arc::clone(&new));
        Ok(new)
    }

    /// A client with another token than the one that was refused.
    async fn authenticated(
        &self,
        refused: &Arc<VaultClient>,
        what: &str,
    ) -> Result<Arc<VaultClient>, IssueError> {
        let mut current = self.client.lock().await;
        if let Some(other) = &*current
            && !Arc::ptr_eq(other, refused)
        {
            return Ok(Arc::clone(other));
        }
        match api::exec_with_result(&**refused, own_token()).await {
            Ok(_) => return Err(IssueError::Forbidden(what.to_owned())),
            Err(error) if matches!(status_of(&error), Some((403, _))) => {}
            Err(error) => return Err(meaning(LOOK_UP, &error)),
        }
        let token = self.new_token().await?;
        if token.expose_secret() == refused.middle.token {
            return Err(IssueError::Unauthenticated);
        }
        let new = Arc::new(self.with(&token)?);
        *current = Some(Arc::clone(&new));
        Ok(new)
    }

    fn with(&self, token: &SecretString) -> Result<VaultClient, IssueError> {
        client(&self.address, &self.http, token).map_err(IssueError::Setup)
    }

    /// The token as it is now: read, or from a login.
    async fn new_token(&self) -> Result<SecretString, IssueError> {
        let setup = |error: OpenError| IssueError::Setup(error.to_string());
        match &self.token_from {
            TokenSource::File(path) => {
                let token = token::from_file(path).map_err(setup)?;
                tracing::info!("the token of the certificate issuer was read anew");
                Ok(token)
            }
            TokenSource::Environment(token) => token::from_environment(token).map_err(setup),
            TokenSource::Kubernetes(login) => self.log_in(login).await,
        }
    }

    async fn log_in(&self, login: &KubernetesAuth) -> Result<SecretString, IssueError> {
        // The cluster replaces the file well before its token ends, so it is read each time.
        let own = token::from_file(&login.token_file).map_err(|error| {
            // Its first writing may be yet to come; what is wrong in the file is a person's business all the same.
            IssueError::Unavailable(chain(&error))
        })?;
        let path = format!("auth/{}/login", login.mount);
        let body = serde_json::json!({ "role": login.role, "jwt": own.expose_secret() });
        // Nothing proves us yet.
        let anonymous = self.with(&SecretString::from(String::new()))?;
        let said = api::auth(&anonymous, Call::post(path.clone(), body)).await;
        let auth = said.map_err(|error| match status_of(&error) {
            // The same words tell of a wrong role, of a wrong token, and of an API server that is away.
            Some((403, said)) => IssueError::Login(login.role.clone(), path.clone(), said),
            Some((400, said)) => IssueError::Setup(format!(
                "cannot log in as `{}` by `{path}`: {said}",
                login.role
            )),
            _ => meaning(&format!("log in by `{path}`"), &error),
        })?;
        tracing::info!(role = login.role, lease_seconds = auth.lease_duration, policies = ?auth.policies, "logged in to the certificate issuer");
        token::checked(&auth.client_token, "the answer to the login")
            .map_err(|error| IssueError::Answer(error.to_string()))
    }

    pub(super) async fn own_token(&self) -> Result<OwnToken, IssueError> {
        self.call(LOOK_UP, &own_token()).await
    }

    pub(super) async fn keep_alive(&self) {
        loop {
            let pause = match self.renew().await {
                // Hourly at least: the token may be replaced at any time by one that lives less long.
                Ok(Some(life)) => (life / 2).clamp(Duration::from_secs(1), RENEWED_EVERY),
                Ok(None) => RENEWED_EVERY,
                Err(error) => {
                    tracing::warn!(%error, "the token of the certificate issuer was not renewed");
                    RENEWAL_RETRIED
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// How long the token lives from now; `None` for one that needs no renewal.
    async fn renew(&self) -> Result<Option<Duration>, IssueError> {
        let token = self.own_token().await?;
        if token.ttl == 0 || !token.renewable {
            return Ok(None);
        }
        let client = self.client().await?;
        let call = Call::post("auth/token/renew-self", serde_json::json!({}));
        let renewed = api::auth(&*client, call)
            .await
            .map_err(|error| meaning("renew its own token", &error))?;
        Ok(Some(Duration::from_secs(renewed.lease_duration)))
    }
}

fn own_token() -> Call<OwnToken> {
    Call::get("auth/token/lookup-self")
}

/// Every setting is given: what is left out, vaultrs takes from the environment, where a `VAULT_SKIP_VERIFY=no` would
/// switch verification off.
fn client(
    address: &Url,
    http: &reqwest::Client,
    token: &SecretString,
) -> Result<VaultClient, String> {
    let address = address.as_str().trim_end_matches('/');
    let given = VaultClientSettingsBuilder::default()
        .address(address)
        .token("")
        .verify(true)
        .ca_certs(Vec::new())
        .identity(None)
        .timeout(Some(REQUEST_TIMEOUT))
        .build()
        .map_err(|error| error.to_string())?;
    Ok(VaultClient {
        http: rustify::clients::reqwest::Client::new(address, http.clone()),
        middle: EndpointMiddleware {
            token: token.expose_secret().to_owned(),
            version: "v1".to_owned(),
            wrap: None,
            namespace: None,
        },
        settings: given,
    })
}

const LOOK_UP: &str = "look up its own token";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const RENEWED_EVERY: Duration = Duration::from_secs(3_600);
const RENEWAL_RETRIED: Duration = Duration::from_secs(10);
