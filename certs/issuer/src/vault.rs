mod endpoint;
pub(crate) mod kv;
pub(crate) mod reply;
mod resolver;
mod session;
mod setup_check;
mod times;
mod token;

use std::{fmt, time::Duration};

use merlon_certs::{CertificateDer, TrustRoots, pem, unix_now};
use merlon_config::{
    name::{SpiffeId, TrustDomain},
    resource::VaultIssuer,
    snapshot::TrustBundle,
};
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::Mutex, time::Instant};

use self::{
    endpoint::{Call, is_path},
    session::Session,
};
pub use self::{kv::KvSecret, times::VaultTimes};
use crate::{
    checks::{self, Request},
    error::{IssueError, OpenError},
};

/// Vault or OpenBao with the PKI engine, which signs every leaf through one role.
///
/// The token is read from a file (or `VAULT_TOKEN`), and read again when the server refuses it, so a rotation of the file
/// needs no notification.
pub struct Vault {
    settings: VaultIssuer,
    trust_domain: TrustDomain,
    session: Session,
    times: VaultTimes,
    /// The roots, and when they were fetched.
    roots: Mutex<Option<(Instant, TrustRoots)>>,
    /// When the last successful check of the set-up was.
    checked: Mutex<Option<Instant>>,
}

/// A signed certificate.
#[derive(Deserialize)]
pub(crate) struct Signed {
    certificate: String,
    #[serde(default)]
    ca_chain: Vec<String>,
}

#[derive(Deserialize)]
struct Listed {
    keys: Vec<String>,
}

#[derive(Deserialize)]
struct IssuerCertificate {
    certificate: String,
}

impl Vault {
    /// Sets up the connection. Sends no request.
    ///
    /// # Errors
    /// An address that is neither `https` nor on loopback, an unreadable CA file, or no token.
    pub fn connect(
        settings: &VaultIssuer,
        trust_domain: &TrustDomain,
        times: VaultTimes,
    ) -> Result<Self, OpenError> {
        for (field, name) in [
            ("pkiMount", &settings.pki_mount),
            ("rootMount", &settings.root_mount),
            ("role", &settings.role),
            ("kvMount", &settings.kv_mount),
            ("kvPrefix", &settings.kv_prefix),
        ] {
            if !is_path(name) {
                return Err(OpenError::Vault(format!(
                    "`{field}` is not a path: `{name}`"
                )));
            }
        }
        Ok(Self {
            session: Session::connect(settings, times)?,
            times,
            settings: settings.clone(),
            trust_domain: trust_domain.clone(),
            roots: Mutex::new(None),
            checked: Mutex::new(None),
        })
    }

    /// A description for the log.
    pub fn describe(&self) -> String {
        let VaultIssuer {
            address,
            pki_mount,
            role,
            ..
        } = &self.settings;
        format!(
            "Vault at {address}, role `{pki_mount}/{role}`, signs the certificates of `{}`",
            self.trust_domain
        )
    }

    /// See [`crate::CertIssuer::sign`].
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
        self.check_if_due().await?;
        let path = format!("{}/sign/{}", self.settings.pki_mount, self.settings.role);
        // No common name, not even an empty one: the policy refuses any other field.
        let body = json!({
            "csr": pem::encode("CERTIFICATE REQUEST", csr).as_str(),
            "uri_sans": id.to_string(),
            "ttl": format!("{}s", lifetime.as_secs()),
            "format": "pem",
        });
        let signed: Signed = self
            .session
            .call(&format!("sign through `{path}`"), &Call::post(path, body))
            .await?;
        let roots = self.roots(self.times.roots).await?;
        let chain = chain_of(&signed, &roots)?;
        let accepted = checks::check_answer(&chain, &request, id, lifetime, roots, unix_now());
        if accepted.is_ok() {
            return Ok(chain);
        }
        // A root may have been added since the last fetch.
        let roots = self.roots(Duration::ZERO).await?;
        let chain = chain_of(&signed, &roots)?;
        checks::check_answer(&chain, &request, id, lifetime, roots, unix_now())?;
        Ok(chain)
    }

    /// The self-signed issuers of the root mount.
    ///
    /// # Errors
    /// [`IssueError`]. A mount without a root is an error, never an empty bundle.
    pub async fn bundle(&self) -> Result<TrustBundle, IssueError> {
        let mount = &self.settings.root_mount;
        let path = format!("{mount}/issuers");
        let listed: Listed = self
            .session
            .call(&format!("list `{path}`"), &Call::list(path))
            .await?;
        let mut references = listed.keys;
        references.sort();
        let mut bundle = TrustBundle {
            trust_domain: self.trust_domain.clone(),
            roots: Vec::new(),
        };
        for reference in references {
            if !is_path(&reference) {
                continue;
            }
            let path = format!("{mount}/issuer/{reference}");
            let issuer: IssuerCertificate = self
                .session
                .call(&format!("read `{path}`"), &Call::get(path))
                .await?;
            let single = TrustBundle {
                roots: vec![issuer.certificate.trim().to_owned() + "\n"],
                ..bundle.clone()
            };
            // The mount also contains cross-certificates; only self-signed certificates are roots.
            if TrustRoots::from_bundle(&single).is_ok() {
                bundle.roots.extend(single.roots);
            }
        }
        let roots = TrustRoots::from_bundle(&bundle)?;
        *self.roots.lock().await = Some((Instant::now(), roots));
        Ok(bundle)
    }

    /// The secret at `path`, below the mount and prefix that `MeshConfig` names.
    ///
    /// # Errors
    /// [`IssueError`]; also if there is no secret, or it was deleted.
    pub async fn secret(&self, path: &str) -> Result<KvSecret, IssueError> {
        kv::read(&self.session, &self.settings, path).await
    }

    /// The cached roots; fetched again if they are older than `max_age`.
    async fn roots(&self, max_age: Duration) -> Result<TrustRoots, IssueError> {
        let known = self.roots.lock().await.clone();
        if let Some((since, roots)) = known
            && since.elapsed() < max_age
        {
            return Ok(roots);
        }
        Ok(TrustRoots::from_bundle(&self.bundle().await?)?)
    }

    /// Checks the token, the role and the issuer of the role for settings that would allow a wrong certificate.
    ///
    /// # Errors
    /// [`IssueError::Setup`] with the wrong setting, or why the check failed.
    pub async fn check(&self) -> Result<(), IssueError> {
        let result = setup_check::check(&self.session, &self.settings, &self.trust_domain).await;
        match &result {
            Ok(()) => *self.checked.lock().await = Some(Instant::now()),
            Err(IssueError::Setup(_)) => *self.checked.lock().await = None,
            // The set-up could not be read, so the last result stays.
            Err(_) => {}
        }
        result
    }

    /// Checks before the first signature and every hour. Without a successful check nothing is signed.
    async fn check_if_due(&self) -> Result<(), IssueError> {
        let checked = *self.checked.lock().await;
        match checked {
            Some(since) if since.elapsed() < self.times.check => Ok(()),
            None => self.check().await,
            Some(_) => match self.check().await {
                Err(error @ IssueError::Setup(_)) => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Renews the token at half of its lifetime, at least hourly, without end. A token that cannot be renewed is used until
    /// it expires; then its file is read again.
    pub async fn keep_alive(&self) {
        self.session.keep_alive().await;
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the client of the session: its `Debug` shows the token.
        f.debug_struct("Vault")
            .field("address", &self.settings.address.as_str())
            .finish_non_exhaustive()
    }
}

/// The leaf, then the certificates of `ca_chain` except roots, which peers already have.
pub(crate) fn chain_of(
    signed: &Signed,
    roots: &TrustRoots,
) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let mut chain = certificates(&signed.certificate)?;
    for other in &signed.ca_chain {
        for certificate in certificates(other)? {
            if !chain.contains(&certificate) && !roots.certificates().contains(&certificate) {
                chain.push(certificate);
            }
        }
    }
    Ok(chain)
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    pem::certificates(text.as_bytes()).map_err(|error| IssueError::Answer(error.to_string()))
}
