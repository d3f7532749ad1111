use std::{fmt, fs, path::PathBuf, sync::Arc, time::Duration};

use merlon_certs::TrustRoots;
use merlon_config::{
    name::{SpiffeId, TrustDomain},
    resource::VaultIssuer,
    snapshot::TrustBundle,
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject as _};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;
use vaultrs::{
    api::{
        self, EndpointMiddleware,
        pki::requests::{
            ListIssuersRequest, ReadIssuerCertificateRequest, ReadRoleRequest,
            SignCertificateRequest,
        },
        token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest},
    },
    client::{VaultClient, VaultClientSettingsBuilder},
    error::ClientError,
};

use crate::{
    checks::{self, Request},
    error::{IssueError, OpenError},
};

/// Vault or OpenBao with the PKI engine: every leaf is signed there, through one role.
///
/// The token is read from a file (or `VAULT_TOKEN`), and read anew when the server refuses it, so that whoever
/// rotates it need tell nobody.
pub struct Vault {
    settings: VaultIssuer,
    trust_domain: TrustDomain,
    http: reqwest::Client,
    /// One task at a time replaces the client; those who sign take what there is.
    client: Mutex<Arc<VaultClient>>,
    token_from: TokenSource,
}

enum TokenSource {
    File(PathBuf),
    Environment(SecretString),
}

impl Vault {
    /// Sets up the connection. Nothing is sent yet.
    ///
    /// # Errors
    /// An address that is neither `https` nor on loopback, an unreadable CA file, no token.
    pub fn connect(settings: &VaultIssuer, trust_domain: &TrustDomain) -> Result<Self, OpenError> {
        let address = &settings.address;
        let loopback = match address.host() {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        if address.scheme() != "https" && !(address.scheme() == "http" && loopback) {
            return Err(OpenError::Vault(format!(
                "`{address}` is neither https nor http on loopback"
            )));
        }
        let token_from = match &settings.token_file {
            Some(path) => TokenSource::File(path.clone()),
            None => TokenSource::Environment(
                std::env::var("VAULT_TOKEN")
                    .map_err(|_| {
                        OpenError::Vault(
                            "there is no `tokenFile`, and `VAULT_TOKEN` is not set".to_owned(),
                        )
                    })?
                    .into(),
            ),
        };
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            // A standby's 307 leads to a leader that may be the dead one: the next try asks again instead.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(path) = &settings.ca_file {
            let pem = fs::read(path).map_err(|source| OpenError::File {
                action: "read",
                path: path.clone(),
                source,
            })?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).map_err(|_| {
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
        let token = token_from.read()?;
        let client = client(settings, &http, &token).map_err(OpenError::Vault)?;
        Ok(Self {
            settings: settings.clone(),
            trust_domain: trust_domain.clone(),
            http,
            client: Mutex::new(Arc::new(client)),
            token_from,
        })
    }

    /// One sentence for the log.
    pub fn describe(&self) -> String {
        let VaultIssuer {
            address,
            pki_mount,
            role,
            ..
        } = &self.settings;
        format!(
            "certificates of `{}` are signed by Vault at {address}, role `{pki_mount}/{role}`",
            self.trust_domain
        )
    }

    /// As [`crate::CertIssuer::sign`].
    ///
    /// # Errors
    /// [`IssueError`].
    pub async fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let request = Request::parse(csr)?;
        if *id.trust_domain() != self.trust_domain {
            return Err(IssueError::Request("is for another trust domain"));
        }
        let pem = pem("CERTIFICATE REQUEST", csr);
        let (mount, role) = (&self.settings.pki_mount, &self.settings.role);
        let answer = self
            .call(&format!("sign through `{mount}/sign/{role}`"), || {
                SignCertificateRequest::builder()
                    .mount(mount)
                    .role(role)
                    .csr(pem.as_str())
                    .uri_sans(id.to_string())
                    .ttl(format!("{}s", lifetime.as_secs()))
                    .format("pem")
                    .build()
                    .map_err(|error| IssueError::Setup(error.to_string()))
            })
            .await?;
        let roots = TrustRoots::from_bundle(&self.bundle().await?)?;
        let mut chain = certificates(&answer.certificate)?;
        for other in answer.ca_chain.unwrap_or_default() {
            for certificate in certificates(&other)? {
                // Roots are known to those who trust them, and the mount may list more issuers than this path has.
                if !chain.contains(&certificate) && !roots.certificates().contains(&certificate) {
                    chain.push(certificate);
                }
            }
        }
        checks::answer(&chain, &request, id, lifetime, roots, UnixTime::now())?;
        Ok(chain)
    }

    /// The self-signed issuers of the root mount.
    ///
    /// # Errors
    /// [`IssueError`]; a mount without one is an error, never an empty bundle.
    pub async fn bundle(&self) -> Result<TrustBundle, IssueError> {
        let mount = &self.settings.root_mount;
        let listed = self
            .call(&format!("list `{mount}/issuers`"), || {
                ListIssuersRequest::builder()
                    .mount(mount)
                    .build()
                    .map_err(|error| IssueError::Setup(error.to_string()))
            })
            .await?;
        let mut references = listed.keys;
        references.sort();
        let mut roots = Vec::new();
        for reference in references {
            let issuer = self
                .call(&format!("read `{mount}/issuer/{reference}`"), || {
                    ReadIssuerCertificateRequest::builder()
                        .mount(mount)
                        .issuer(reference.as_str())
                        .build()
                        .map_err(|error| IssueError::Setup(error.to_string()))
                })
                .await?;
            let certificate = issuer.certificate.trim().to_owned() + "\n";
            let alone = TrustBundle {
                trust_domain: self.trust_domain.clone(),
                roots: vec![certificate.clone()],
            };
            // Cross-certificates stand in the same mount; only what signs itself is a root.
            if TrustRoots::from_bundle(&alone).is_ok() {
                roots.push(certificate);
            }
        }
        let bundle = TrustBundle {
            trust_domain: self.trust_domain.clone(),
            roots,
        };
        TrustRoots::from_bundle(&bundle)?;
        Ok(bundle)
    }

    /// Looks at the token and at the role: what would let a wrong certificate be signed is refused by name.
    ///
    /// # Errors
    /// [`IssueError::Setup`] with the field of the role; or why it could not be looked at.
    pub async fn check(&self) -> Result<(), IssueError> {
        let (mount, name) = (&self.settings.pki_mount, &self.settings.role);
        let role = self
            .call(&format!("read `{mount}/roles/{name}`"), || {
                ReadRoleRequest::builder()
                    .mount(mount)
                    .name(name)
                    .build()
                    .map_err(|error| IssueError::Setup(error.to_string()))
            })
            .await?;
        let expected = format!("spiffe://{}/ns/*/sa/*", self.trust_domain);
        let faults = [
            (
                !role.no_store,
                "no_store",
                "must be true: every renewal would be written to storage",
            ),
            (role.generate_lease, "generate_lease", "must be false"),
            (
                role.use_csr_sans,
                "use_csr_sans",
                "must be false: names come from the control plane, not from the request",
            ),
            (
                role.use_csr_common_name,
                "use_csr_common_name",
                "must be false",
            ),
            (role.allow_any_name, "allow_any_name", "must be false"),
            (
                role.require_cn,
                "require_cn",
                "must be false: an X.509-SVID has no common name",
            ),
            (role.key_type != "ec", "key_type", "must be `ec`"),
            (
                !role.client_flag || !role.server_flag,
                "client_flag and server_flag",
                "must be true",
            ),
            (
                role.allowed_uri_sans != [expected.as_str()],
                "allowed_uri_sans",
                "must be the trust domain's workloads and no more",
            ),
        ];
        match faults.iter().find(|(wrong, _, _)| *wrong) {
            None => Ok(()),
            Some((_, field, why)) => {
                let hint = if *field == "allowed_uri_sans" {
                    format!(", `{expected}`")
                } else {
                    String::new()
                };
                Err(IssueError::Setup(format!(
                    "`{field}` of role `{mount}/roles/{name}` {why}{hint}"
                )))
            }
        }
    }

    /// Renews the token at half of its life, for ever. A token that cannot be renewed is left to its end; the file it
    /// came from is then read anew.
    pub async fn keep_alive(&self) {
        loop {
            let pause = match self.renew().await {
                Ok(Some(life)) => (life / 2).max(Duration::from_secs(1)),
                Ok(None) => Duration::from_secs(3_600),
                Err(error) => {
                    tracing::warn!(%error, "the token of the certificate issuer was not renewed");
                    Duration::from_secs(10)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// How long the token lives from now; `None` for one that needs no renewal.
    async fn renew(&self) -> Result<Option<Duration>, IssueError> {
        let token = self
            .call("look up its own token", || {
                Ok(LookupTokenSelfRequest::builder()
                    .build()
                    .unwrap_or_default())
            })
            .await?;
        if token.ttl == 0 || !token.renewable.unwrap_or_default() {
            return Ok(None);
        }
        let client = Arc::clone(&*self.client.lock().await);
        let renewed = api::auth(
            &*client,
            RenewTokenSelfRequest::builder().build().unwrap_or_default(),
        )
        .await
        .map_err(|error| of_client("renew its own token", &error))?;
        Ok(Some(Duration::from_secs(renewed.lease_duration)))
    }

    /// Makes one call. A refused token is read anew once; whether it was the token is asked of the server, since a
    /// 403 also tells of a missing right.
    async fn call<E>(
        &self,
        what: &str,
        request: impl Fn() -> Result<E, IssueError>,
    ) -> Result<E::Response, IssueError>
    where
        E: rustify::endpoint::Endpoint,
    {
        let client = Arc::clone(&*self.client.lock().await);
        match api::exec_with_result(&*client, request()?).await {
            Err(ClientError::APIError { code: 403, .. }) => {
                let client = self.authenticated(&client, what).await?;
                api::exec_with_result(&*client, request()?)
                    .await
                    .map_err(|error| of_client(what, &error))
            }
            answer => answer.map_err(|error| of_client(what, &error)),
        }
    }

    /// A client whose token the server knows, other than the one that was refused.
    async fn authenticated(
        &self,
        refused: &Arc<VaultClient>,
        what: &str,
    ) -> Result<Arc<VaultClient>, IssueError> {
        let mut current = self.client.lock().await;
        if !Arc::ptr_eq(&current, refused) {
            return Ok(Arc::clone(&current));
        }
        let known = LookupTokenSelfRequest::builder()
            .build()
            .unwrap_or_default();
        match api::exec_with_result(&**current, known).await {
            Ok(_) => return Err(IssueError::Forbidden(what.to_owned())),
            Err(ClientError::APIError { code: 403, .. }) => {}
            Err(error) => return Err(of_client("look up its own token", &error)),
        }
        let token = self
            .token_from
            .read()
            .map_err(|error| IssueError::Setup(error.to_string()))?;
        if token.expose_secret() == current.middle.token {
            return Err(IssueError::Unauthenticated);
        }
        *current = Arc::new(client(&self.settings, &self.http, &token).map_err(IssueError::Setup)?);
        tracing::info!("the token of the certificate issuer was read anew");
        Ok(Arc::clone(&current))
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the client: its `Debug` shows the token.
        f.debug_struct("Vault")
            .field("address", &self.settings.address.as_str())
            .finish_non_exhaustive()
    }
}

impl TokenSource {
    fn read(&self) -> Result<SecretString, OpenError> {
        match self {
            Self::Environment(token) => Ok(token.clone()),
            Self::File(path) => {
                let text = fs::read_to_string(path).map_err(|source| OpenError::File {
                    action: "read",
                    path: path.clone(),
                    source,
                })?;
                let token = text.trim();
                if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(OpenError::Vault(format!(
                        "`{}` holds no token",
                        path.display()
                    )));
                }
                Ok(token.to_owned().into())
            }
        }
    }
}

/// Every setting is given: what is left out, vaultrs takes from the environment, where a `VAULT_SKIP_VERIFY=no` would
/// switch verification off.
fn client(
    settings: &VaultIssuer,
    http: &reqwest::Client,
    token: &SecretString,
) -> Result<VaultClient, String> {
    let address = settings.address.as_str().trim_end_matches('/');
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

/// What an error means for whoever waits for a certificate. Status codes alone do not say it: a sealed server, a
/// change of leader and a full audit disk differ only in their words.
pub(crate) fn of_client(what: &str, error: &ClientError) -> IssueError {
    match error {
        ClientError::APIError { code, errors } => {
            let said = errors.join("; ");
            let said: String = said.chars().take(300).collect();
            match code {
                403 => IssueError::Forbidden(what.to_owned()),
                307 | 412 | 429 | 502..=504 => IssueError::Unavailable(format!("{code} {said}")),
                500 if said.contains("not active")
                    || said.contains("internal error")
                    || said.is_empty() =>
                {
                    IssueError::Unavailable(format!("500 {said}"))
                }
                _ => IssueError::Setup(format!("cannot {what}: {code} {said}")),
            }
        }
        ClientError::RestClientError { source } => {
            let mut said = source.to_string();
            let mut inner = std::error::Error::source(source);
            while let Some(cause) = inner {
                said = format!("{said}: {cause}");
                inner = cause.source();
            }
            IssueError::Unavailable(said)
        }
        other => IssueError::Answer(other.to_string()),
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let mut lines = format!("-----BEGIN {label}-----\n");
    for (at, letter) in text.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            lines.push('\n');
        }
        lines.push(letter);
    }
    lines + &format!("\n-----END {label}-----\n")
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|each| {
            each.map_err(|_| {
                IssueError::Answer("it holds something that is no PEM certificate".to_owned())
            })
        })
        .collect()
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
