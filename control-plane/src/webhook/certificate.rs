//! The webhooks' server certificate. The API server does not know the mesh's CA, so the webhooks have a separate one:
//! its key is in a Secret that all replicas share, and each replica has a leaf certificate in memory.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use merlon_certs::{provider, time_provider};
use merlon_config::clock;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{ServerConfig, sign::CertifiedKey, sign::SingleCertAndKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::{
    cluster::{secret, watch::Contact},
    limits::WebhookLimits,
};

/// The Secret with the CA.
pub(crate) const SECRET: &str = "merlon-webhook";
/// The Service that the API server connects to.
pub(super) const SERVICE: &str = "merlon-webhook";
const KEY: &str = "ca.key";
const CERTIFICATES: &str = "ca.pem";

const CA_LIFE: Duration = Duration::from_secs(365 * 24 * 3_600);
const LEAF_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// Tolerance for clock differences.
const BACKDATED: Duration = Duration::from_secs(300);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
enum CertificateError {
    #[error("the Secret `{SECRET}`: {0}")]
    Cluster(#[from] Box<kube::Error>),
    #[error(
        "`{0}` in the Secret `{SECRET}` is missing or invalid; delete the Secret to have it created again"
    )]
    Secret(&'static str),
    #[error("the certificate cannot be created: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the certificate cannot be used: {0}")]
    Show(#[from] rustls::Error),
}

/// The CA that the replicas share.
struct Shared {
    key: Zeroizing<String>,
    /// The first one signs. The others are trusted, because they signed before or will sign.
    certificates: Vec<String>,
    /// The resource version of the Secret.
    version: Option<String>,
}

/// Issues and renews the certificate.
pub(crate) struct Certificate {
    api: Api<Secret>,
    names: Vec<String>,
    contact: Contact,
    leads: watch::Receiver<bool>,
    limits: WebhookLimits,
    tls_config: watch::Sender<Option<Arc<ServerConfig>>>,
    trusted: watch::Sender<String>,
}

impl Certificate {
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        contact: Contact,
        leads: watch::Receiver<bool>,
        limits: WebhookLimits,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            names: vec![
                format!("{SERVICE}.{namespace}.svc"),
                format!("{SERVICE}.{namespace}.svc.cluster.local"),
            ],
            contact,
            leads,
            limits,
            tls_config: watch::Sender::new(None),
            trusted: watch::Sender::new(String::new()),
        }
    }

    /// The TLS configuration for connections.
    pub(crate) fn tls_config(&self) -> watch::Receiver<Option<Arc<ServerConfig>>> {
        self.tls_config.subscribe()
    }

    /// The roots that sign it, as PEM. Empty until they are known.
    pub(crate) fn trusted(&self) -> watch::Receiver<String> {
        self.trusted.subscribe()
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut made: Option<(Timestamp, String)> = None;
        loop {
            let always = Timestamp::MIN..Timestamp::MAX;
            let (pause, good) = match self.renew(&mut made).await {
                Ok(()) => {
                    self.contact.set_webhooks_waiting(None);
                    let good = made.as_ref().map(|(since, _)| good(*since));
                    (self.limits.check, good.unwrap_or(always))
                }
                Err(error) => {
                    if made.is_none() {
                        let why = format!("the webhooks have no certificate: {error}");
                        self.contact.set_webhooks_waiting(Some(why));
                    }
                    // An unavailable API server is logged elsewhere.
                    if self.contact.outage().is_none() {
                        tracing::warn!(%error, "webhook.certificate_failed");
                    }
                    (self.limits.retry, always)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = clock::outside(good, self.limits.clock_check) => {}
                // A new leader writes the roots, and needs the newest ones.
                Ok(()) = self.leads.changed() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Reads the CA, and issues a leaf certificate if it is due.
    async fn renew(&self, made: &mut Option<(Timestamp, String)>) -> Result<(), CertificateError> {
        let shared = self.shared().await?;
        let now = clock::now();
        let signing = shared.signing()?;
        self.trusted.send_if_modified(|trusted| {
            let all = shared.certificates.concat();
            let changed = *trusted != all;
            *trusted = all;
            changed
        });
        let fresh = made
            .as_ref()
            .is_some_and(|(since, root)| good(*since).contains(&now) && root == signing);
        if !fresh {
            let config = leaf(&shared.key, signing, &self.names)?;
            self.tls_config.send_replace(Some(Arc::new(config)));
            *made = Some((now, signing.to_owned()));
            tracing::info!(names = ?self.names, "webhook.certificate_made");
        }
        // Only the leader replaces the CA: if two replicas did, one would sign with a root that was never published.
        if *self.leads.borrow() && ends_within(signing, CA_LIFE / 2) {
            self.replace(&shared).await?;
        }
        Ok(())
    }

    /// The CA, which the first replica creates.
    async fn shared(&self) -> Result<Shared, CertificateError> {
        let made = async || Ok(Shared::make()?.secret());
        Shared::read(&secret::shared::<CertificateError>(&self.api, SECRET, made).await?)
    }

    /// Replaces the root. The new one is published before it signs, and the old one is trusted until it expires.
    async fn replace(&self, old: &Shared) -> Result<(), CertificateError> {
        let mut new = Shared::make()?;
        let mut known = old.certificates.clone();
        known.extend(new.certificates.clone());
        self.trusted.send_replace(known.concat());
        tokio::time::sleep(self.limits.publish).await;
        // The new leader has written other roots.
        if !*self.leads.borrow() {
            return Ok(());
        }
        let still = old.certificates.iter();
        let still = still.filter(|pem| !ends_within(pem, Duration::ZERO));
        new.certificates.extend(still.cloned());
        let patch = serde_json::json!({
            // Fails if the Secret changed in the meantime; the next check retries.
            "metadata": { "resourceVersion": old.version },
            "stringData": { KEY: new.key.as_str(), CERTIFICATES: new.certificates.concat() },
        });
        let patched = self
            .api
            .patch(SECRET, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        patched.map_err(Box::new)?;
        Ok(())
    }
}

impl Shared {
    fn make() -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "merlon webhook");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = clock::system_time();
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + CA_LIFE).into();
        Ok(Self {
            certificates: vec![params.self_signed(&key)?.pem()],
            version: None,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    fn read(secret: &Secret) -> Result<Self, CertificateError> {
        let entry = |name: &'static str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(name));
            let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
            text.ok_or(CertificateError::Secret(name))
        };
        const END: &str = "-----END CERTIFICATE-----\n";
        let text = entry(CERTIFICATES)?.replace("\r\n", "\n");
        let text = format!("{}\n", text.trim_end());
        let certificates: Vec<String> = text.split_inclusive(END).map(str::to_owned).collect();
        if certificates
            .iter()
            .any(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).is_err())
        {
            return Err(CertificateError::Secret(CERTIFICATES));
        }
        Ok(Self {
            key: Zeroizing::new(entry(KEY)?),
            certificates,
            version: secret.metadata.resource_version.clone(),
        })
    }

    fn secret(&self) -> Secret {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = BTreeMap::from([
            (KEY.to_owned(), bytes(&self.key)),
            (CERTIFICATES.to_owned(), bytes(&self.certificates.concat())),
        ]);
        secret::of_type("merlon.io/webhook", SECRET, data)
    }

    fn signing(&self) -> Result<&str, CertificateError> {
        let first = self.certificates.first();
        first
            .map(String::as_str)
            .ok_or(CertificateError::Secret(CERTIFICATES))
    }
}

/// The time in which a leaf certificate that was issued at `since` is used. By a clock that was set back to before it, an API
/// server would reject the certificate, or will soon.
fn good(since: Timestamp) -> Range<Timestamp> {
    let end = since.saturating_add(SignedDuration::try_from(LEAF_LIFE / 2).unwrap_or_default());
    since..end.unwrap_or(Timestamp::MAX)
}

/// Whether a certificate expires within `left`. One that cannot be parsed counts as expired.
fn ends_within(pem: &str, left: Duration) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else {
        return true;
    };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else {
        return true;
    };
    let now = clock::system_time().duration_since(SystemTime::UNIX_EPOCH);
    let limit = now.unwrap_or_default() + left;
    let end = certificate.validity().not_after.timestamp();
    u64::try_from(end).map_or(true, |end| end <= limit.as_secs())
}

fn leaf(key: &str, root: &str, names: &[String]) -> Result<ServerConfig, CertificateError> {
    let signing = KeyPair::from_pem(key).map_err(|_| CertificateError::Secret(KEY))?;
    let issuer = Issuer::from_ca_cert_pem(root, signing)
        .map_err(|_| CertificateError::Secret(CERTIFICATES))?;
    let own = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let now = clock::system_time();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + LEAF_LIFE).into();
    let certificate = params.signed_by(&own, &issuer)?;
    let own = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der()));
    let certified = CertifiedKey::from_der(vec![certificate.der().clone()], own, provider())?;
    let mut config = ServerConfig::builder_with_details(Arc::clone(provider()), time_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_that_is_read_from_its_secret_signs() {
        let made = Shared::make().unwrap();
        let read = Shared::read(&made.secret()).unwrap();
        assert_eq!(read.certificates, made.certificates);
        let names = vec!["merlon-webhook.merlon-system.svc".to_owned()];
        leaf(&read.key, read.signing().unwrap(), &names).unwrap();
    }

    #[test]
    fn an_invalid_secret_is_reported_with_its_entry() {
        for entry in [KEY, CERTIFICATES] {
            let mut secret = Shared::make().unwrap().secret();
            let data = secret.data.as_mut().unwrap();
            data.insert(entry.to_owned(), ByteString(b"invalid".to_vec()));
            let wrong = Shared::read(&secret)
                .and_then(|read| leaf(&read.key, read.signing()?, &[]).map(drop));
            let wrong = wrong.unwrap_err().to_string();
            assert!(wrong.contains(entry), "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leaf_certificate_is_replaced_when_half_of_its_life_is_over_or_the_clock_was_set_back()
     {
        let check = Duration::from_secs(60);
        let hours = SignedDuration::from_hours;
        for age in [-1, 12, 13] {
            let made = clock::now().checked_sub(hours(age)).unwrap();
            clock::outside(good(made), check).await;
        }
        let made = clock::now().checked_sub(hours(11)).unwrap();
        assert!(good(made).contains(&clock::now()));
    }

    #[test]
    fn the_expiry_of_a_certificate_is_read() {
        let made = Shared::make().unwrap();
        let pem = made.signing().unwrap();
        assert!(!ends_within(pem, Duration::ZERO));
        assert!(!ends_within(pem, CA_LIFE / 2));
        assert!(ends_within(pem, CA_LIFE + Duration::from_secs(60)));
        assert!(ends_within("nothing", Duration::ZERO));
    }
}
