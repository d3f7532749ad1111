mod endpoint;
mod kv;
mod reply;
mod resolver;
mod session;
mod setup_check;
mod token;

use std::{fmt, time::Duration};

use merlon_certs::{CertificateDer, TrustRoots, pem};
use merlon_config::{
    name::{SpiffeId, TrustDomain},
    resource::VaultIssuer,
    snapshot::TrustBundle,
};
use rustls_pki_types::UnixTime;
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::Mutex, time::Instant};

pub use self::kv::KvSecret;
use self::{
    endpoint::{Call, is_path},
    session::Session,
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
    session: Session,
    /// The roots, since when.
    roots: Mutex<Option<(Instant, TrustRoots)>>,
    /// When the set-up was last found to be right.
    sound: Mutex<Option<Instant>>,
}

/// What the server signs.
#[derive(Deserialize)]
struct Signed {
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
    /// Sets up the connection. Nothing is sent yet.
    ///
    /// # Errors
    /// An address that is neither `https` nor on loopback, an unreadable CA file, no token.
    pub fn connect(settings: &VaultIssuer, trust_domain: &TrustDomain) -> Result<Self, OpenError> {
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
            session: Session::connect(settings)?,
            settings: settings.clone(),
            trust_domain: trust_domain.clone(),
            roots: Mutex::new(None),
            sound: Mutex::new(None),
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
        self.check_now_and_then().await?;
        let path = format!("{}/sign/{}", self.settings.pki_mount, self.settings.role);
        // No common name, not even an empty one: the policy lets no other field pass than these.
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
        let roots = self.roots(ROOTS_KEPT).await?;
        let chain = chain_of(&signed, &roots)?;
        let accepted = checks::answer(&chain, &request, id, lifetime, roots, UnixTime::now());
        if accepted.is_ok() {
            return Ok(chain);
        }
        // A root may have come after the last look.
        let roots = self.roots(Duration::ZERO).await?;
        let chain = chain_of(&signed, &roots)?;
        checks::answer(&chain, &request, id, lifetime, roots, UnixTime::now())?;
        Ok(chain)
    }

    /// The self-signed issuers of the root mount.
    ///
    /// # Errors
    /// [`IssueError`]; a mount without one is an error, never an empty bundle.
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
            let alone = TrustBundle {
                roots: vec![issuer.certificate.trim().to_owned() + "\n"],
                ..bundle.clone()
            };
            // Cross-certificates stand in the same mount; only what signs itself is a root.
            if TrustRoots::from_bundle(&alone).is_ok() {
                bundle.roots.extend(alone.roots);
            }
        }
        let roots = TrustRoots::from_bundle(&bundle)?;
        *self.roots.lock().await = Some((Instant::now(), roots));
        Ok(bundle)
    }

    /// The secret at `path`, below the mount and prefix that `MeshConfig` names.
    ///
    /// # Errors
    /// [`IssueError`]; also when nothing is there, or it was deleted.
    pub async fn secret(&self, path: &str) -> Result<KvSecret, IssueError> {
        kv::read(&self.session, &self.settings, path).await
    }

    /// The roots as known, asked for when what is known is older than `age`.
    async fn roots(&self, age: Duration) -> Result<TrustRoots, IssueError> {
        let known = self.roots.lock().await.clone();
        if let Some((since, roots)) = known
            && since.elapsed() < age
        {
            return Ok(roots);
        }
        Ok(TrustRoots::from_bundle(&self.bundle().await?)?)
    }

    /// Looks at the token, the role and the issuer behind it: what would let a wrong certificate be signed is refused by
    /// name.
    ///
    /// # Errors
    /// [`IssueError::Setup`] with the field that is wrong; or why it could not be looked at.
    pub async fn check(&self) -> Result<(), IssueError> {
        let checked = setup_check::check(&self.session, &self.settings, &self.trust_domain).await;
        match &checked {
            Ok(()) => *self.sound.lock().await = Some(Instant::now()),
            Err(IssueError::Setup(_)) => *self.sound.lock().await = None,
            // Nothing new is known.
            Err(_) => {}
        }
        checked
    }

    /// Before the first signature and every hour; nothing is signed by what was never found right.
    async fn check_now_and_then(&self) -> Result<(), IssueError> {
        let sound = *self.sound.lock().await;
        match sound {
            Some(since) if since.elapsed() < CHECKED_EVERY => Ok(()),
            None => self.check().await,
            Some(_) => match self.check().await {
                Err(error @ IssueError::Setup(_)) => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Renews the token at half of its life, at least hourly, for ever. A token that cannot be renewed is left to its
    /// end; the file it came from is then read anew.
    pub async fn keep_alive(&self) {
        self.session.keep_alive().await;
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the session's client: its `Debug` shows the token.
        f.debug_struct("Vault")
            .field("address", &self.settings.address.as_str())
            .finish_non_exhaustive()
    }
}

/// Leaf first, and of `ca_chain` what is no root: those are known to whoever trusts them.
fn chain_of(
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

const ROOTS_KEPT: Duration = Duration::from_secs(60);
const CHECKED_EVERY: Duration = Duration::from_secs(3_600);
