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
    reply::{issue_error, status_of},
    resolver::Hickory,
    times::VaultTimes,
    token::{self, TokenSource},
};
use crate::error::{IssueError, OpenError};

/// A connection to the server and the token in use.
pub(super) struct Session {
    address: Url,
    http: reqwest::Client,
    /// One task at a time replaces the client; callers use the current one. `None` before the first login.
    client: Mutex<Option<Arc<VaultClient>>>,
    token_source: TokenSource,
    times: VaultTimes,
}

/// The properties of the current token.
#[derive(Deserialize)]
pub(super) struct OwnToken {
    /// Seconds; 0 for a token that does not expire.
    pub(super) ttl: u64,
    #[serde(default)]
    pub(super) renewable: bool,
    #[serde(default)]
    pub(super) policies: Vec<String>,
}

impl Session {
    pub(super) fn connect(settings: &VaultIssuer, times: VaultTimes) -> Result<Self, OpenError> {
        let address = settings.address.clone();
        if address.scheme() != "https" && !(address.scheme() == "http" && is_loopback(&address)) {
            return Err(OpenError::Vault(format!(
                "`{address}` is neither https nor http on loopback"
            )));
        }
        let token_source = TokenSource::of(settings)?;
        let mut http = reqwest::Client::builder()
            .connect_timeout(times.connect)
            .timeout(times.request)
            .dns_resolver(Arc::new(Hickory::default()))
            // The token is only sent to the address in the resource, not to a proxy from an environment variable.
            .no_proxy()
            // The 307 of a standby may lead to a dead leader; a retry is sent to the configured address instead.
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
                    OpenError::Vault(format!("`{}` has no PEM certificates", path.display()))
                })?;
            // Only these are trusted, not the roots of the system.
            http = http.tls_certs_only(roots);
        } else if address.scheme() == "http" {
            http = http.tls_certs_only(Vec::new());
        }
        let http = http
            .build()
            .map_err(|error| OpenError::Vault(error.to_string()))?;
        // The first call logs in: the server may be down at the start.
        let token = match &token_source {
            TokenSource::File(path) => Some(token::from_file(path)?),
            TokenSource::Environment(token) => Some(token::from_environment(token)?),
            TokenSource::Kubernetes(_) => None,
        };
        let client = token
            .map(|token| client(&address, &http, &token, times.request).map(Arc::new))
            .transpose()
            .map_err(OpenError::Vault)?;
        Ok(Self {
            address,
            http,
            client: Mutex::new(client),
            token_source,
            times,
        })
    }

    /// Sends one call. After a 403 it looks up the token, because a 403 can also mean a missing permission; a refused token
    /// is read again.
    pub(super) async fn call<T>(&self, what: &str, call: &Call<T>) -> Result<T, IssueError>
    where
        T: DeserializeOwned + Send + Sync,
    {
        let mut client = self.client().await?;
        // Twice: another task may have read a token that expired since.
        for _ in 0..2 {
            match api::exec_with_result(&*client, call.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) if matches!(status_of(&error), Some((403, _))) => {
                    client = self.authenticated(&client, what).await?;
                }
                Err(error) => return Err(issue_error(what, &error)),
            }
        }
        api::exec_with_result(&*client, call.clone())
            .await
            .map_err(|error| issue_error(what, &error))
    }

    /// The current client, after a login if there is none.
    async fn client(&self) -> Result<Arc<VaultClient>, IssueError> {
        let mut current = self.client.lock().await;
        if let Some(client) = &*current {
            return Ok(Arc::clone(client));
        }
        let new = Arc::new(self.with(&self.new_token().await?)?);
        *current = Some(Arc::clone(&new));
        Ok(new)
    }

    /// A client with another token than the refused one.
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
            Err(error) => return Err(issue_error(LOOK_UP, &error)),
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
        let timeout = self.times.request;
        client(&self.address, &self.http, token, timeout).map_err(IssueError::Setup)
    }

    /// A new token, read from its source or from a login.
    async fn new_token(&self) -> Result<SecretString, IssueError> {
        let setup = |error: OpenError| IssueError::Setup(error.to_string());
        match &self.token_source {
            TokenSource::File(path) => {
                let token = token::from_file(path).map_err(setup)?;
                tracing::info!("issuer.token_read");
                Ok(token)
            }
            TokenSource::Environment(token) => token::from_environment(token).map_err(setup),
            TokenSource::Kubernetes(login) => self.log_in(login).await,
        }
    }

    async fn log_in(&self, login: &KubernetesAuth) -> Result<SecretString, IssueError> {
        // The cluster replaces the file before its token expires, so it is read each time.
        let own = token::from_file(&login.token_file).map_err(|error| {
            // The file may not be written yet, so this is retried; the error shows any other problem of the file.
            IssueError::Unavailable(chain(&error))
        })?;
        let path = format!("auth/{}/login", login.mount);
        let body = serde_json::json!({ "role": login.role, "jwt": own.expose_secret() });
        // The login needs no token.
        let anonymous = self.with(&SecretString::from(String::new()))?;
        let answer = api::auth(&anonymous, Call::post(path.clone(), body)).await;
        let auth = answer.map_err(|error| match status_of(&error) {
            // The message is the same for a wrong role, a wrong token, and an API server that is down.
            Some((403, message)) => IssueError::Login(login.role.clone(), path.clone(), message),
            Some((400, message)) => IssueError::Setup(format!(
                "cannot log in as `{}` at `{path}`: {message}",
                login.role
            )),
            _ => issue_error(&format!("log in at `{path}`"), &error),
        })?;
        tracing::info!(role = login.role, lease_seconds = auth.lease_duration, policies = ?auth.policies, "issuer.logged_in");
        token::checked(&auth.client_token, "the answer to the login")
            .map_err(|error| IssueError::Answer(error.to_string()))
    }

    pub(super) async fn own_token(&self) -> Result<OwnToken, IssueError> {
        self.call(LOOK_UP, &own_token()).await
    }

    pub(super) async fn keep_alive(&self) {
        loop {
            let pause = match self.renew().await {
                Ok(life) => renewal_pause(life, self.times.renewal),
                Err(error) => {
                    tracing::warn!(%error, "issuer.token_renewal_failed");
                    self.times.renewal_retry
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// The remaining lifetime of the token; `None` if it needs no renewal.
    async fn renew(&self) -> Result<Option<Duration>, IssueError> {
        let token = self.own_token().await?;
        if token.ttl == 0 || !token.renewable {
            return Ok(None);
        }
        let client = self.client().await?;
        let call = Call::post("auth/token/renew-self", serde_json::json!({}));
        let renewed = api::auth(&*client, call)
            .await
            .map_err(|error| issue_error("renew its own token", &error))?;
        Ok(Some(Duration::from_secs(renewed.lease_duration)))
    }
}

/// Until half of the token's lifetime has passed, and at most `longest`: the token may be replaced at any time by one with a
/// shorter lifetime.
fn renewal_pause(life: Option<Duration>, longest: Duration) -> Duration {
    life.map_or(longest, |life| {
        (life / 2).max(Duration::from_secs(1)).min(longest)
    })
}

fn own_token() -> Call<OwnToken> {
    Call::get("auth/token/lookup-self")
}

/// Sets every setting explicitly: vaultrs takes missing ones from the environment, where `VAULT_SKIP_VERIFY=no` would
/// disable verification.
fn client(
    address: &Url,
    http: &reqwest::Client,
    token: &SecretString,
    timeout: Duration,
) -> Result<VaultClient, String> {
    let address = address.as_str().trim_end_matches('/');
    let settings = VaultClientSettingsBuilder::default()
        .address(address)
        .token("")
        .verify(true)
        .ca_certs(Vec::new())
        .identity(None)
        .timeout(Some(timeout))
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
        settings,
    })
}

const LOOK_UP: &str = "look up its own token";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_half_of_its_lifetime_and_at_least_hourly() {
        let hour = Duration::from_secs(3_600);
        let pause = |seconds| renewal_pause(Some(Duration::from_secs(seconds)), hour).as_secs();
        assert_eq!(
            [pause(600), pause(7_200), pause(86_400)],
            [300, 3_600, 3_600]
        );
        // Never without a pause.
        assert_eq!([pause(0), pause(1)], [1, 1]);
        assert_eq!(renewal_pause(None, hour), hour);
    }
}
