use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use merlon_certs::{PrivateKey, TrustRoots};
use merlon_config::{
    name::{SpiffeId, TrustDomain},
    snapshot::TrustBundle,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject as _};

use crate::{
    checks::{self, Request},
    error::{IssueError, OpenError},
};

/// The embedded certification authority: a root key in a file. For development, demos and tests.
///
/// Signing takes some 80 µs and no I/O.
pub struct Embedded {
    issuer: Issuer<'static, KeyPair>,
    bundle: TrustBundle,
    roots: TrustRoots,
}

impl Embedded {
    /// Opens the CA in `state_dir`, making a root of ten years and the directory (mode 0700) when there is none.
    /// The key is in `ca.key` (mode 0600), the certificate in `ca.pem`.
    ///
    /// # Errors
    /// Unreadable files, or a root that is of another trust domain: never replaced silently, since everybody who
    /// trusts the old one would be cut off.
    pub fn open(state_dir: &Path, trust_domain: &TrustDomain) -> Result<Self, OpenError> {
        let (key_file, root_file) = (state_dir.join("ca.key"), state_dir.join("ca.pem"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|source| OpenError::File {
                action: "create",
                path: state_dir.to_owned(),
                source,
            })?;
        match fs::read(&key_file) {
            Ok(key) => {
                let root = fs::read(&root_file).map_err(|source| OpenError::File {
                    action: "read",
                    path: root_file.clone(),
                    source,
                })?;
                Self::of_files(&key, &root, (key_file, root_file), trust_domain)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (key, root) = new_root(trust_domain)?;
                // The certificate first: a key without its certificate would stop the next start.
                write_private(&root_file, root.as_bytes())?;
                write_private(&key_file, key.as_bytes())?;
                Self::of_files(
                    key.as_bytes(),
                    root.as_bytes(),
                    (key_file, root_file),
                    trust_domain,
                )
            }
            Err(source) => Err(OpenError::File {
                action: "read",
                path: key_file,
                source,
            }),
        }
    }

    fn of_files(
        key: &[u8],
        root: &[u8],
        (key_file, root_file): (PathBuf, PathBuf),
        trust_domain: &TrustDomain,
    ) -> Result<Self, OpenError> {
        let wrong = |path: &PathBuf, why| OpenError::State {
            path: path.clone(),
            why,
        };
        let key = PrivateKey::from_pkcs8_pem(key)
            .map_err(|_| wrong(&key_file, "holds no ECDSA P-256 key"))?;
        let pair = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key.to_pkcs8_der().as_slice()))?;
        let text = std::str::from_utf8(root).map_err(|_| wrong(&root_file, "is not PEM"))?;
        let der = CertificateDer::from_pem_slice(root)
            .map_err(|_| wrong(&root_file, "holds no certificate"))?;
        if !names(&der, trust_domain) {
            return Err(wrong(&root_file, "is the root of another trust domain"));
        }
        let bundle = TrustBundle {
            trust_domain: trust_domain.clone(),
            roots: vec![text.to_owned()],
        };
        let roots =
            TrustRoots::from_bundle(&bundle).map_err(|_| wrong(&root_file, "cannot be a root"))?;
        let issuer = Issuer::from_ca_cert_der(&der, pair)?;
        Ok(Self {
            issuer,
            bundle,
            roots,
        })
    }

    /// One sentence for the log.
    pub fn describe(&self) -> String {
        format!(
            "certificates of `{}` are signed by the embedded certification authority, whose key lies in a file: \
             for development only, use Vault or OpenBao for anything else",
            self.bundle.trust_domain
        )
    }

    /// The root.
    pub fn bundle(&self) -> TrustBundle {
        self.bundle.clone()
    }

    /// As [`crate::CertIssuer::sign`].
    ///
    /// # Errors
    /// [`IssueError::Request`] for a wrong request.
    pub fn sign(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let request = Request::parse(csr)?;
        if *id.trust_domain() != self.bundle.trust_domain {
            return Err(IssueError::Request("is for another trust domain"));
        }
        let now = SystemTime::now();
        let mut leaf = CertificateParams::default();
        // An empty subject: the name is the URI, in a critical extension (RFC 5280 §4.1.2.6).
        leaf.distinguished_name = DistinguishedName::new();
        leaf.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        leaf.use_authority_key_identifier_extension = true;
        leaf.serial_number = Some(serial()?);
        leaf.not_before = (now - LEAF_BACKDATED).into();
        leaf.not_after = (now + lifetime).into();
        let key = SubjectPublicKeyInfo::from_der(&request.public_key_info)?;
        let chain = vec![leaf.signed_by(&key, &self.issuer)?.der().clone()];
        checks::answer(
            &chain,
            &request,
            id,
            lifetime,
            self.roots.clone(),
            UnixTime::now(),
        )?;
        Ok(chain)
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("trust_domain", &self.bundle.trust_domain)
            .finish_non_exhaustive()
    }
}

fn new_root(trust_domain: &TrustDomain) -> Result<(zeroize::Zeroizing<String>, String), OpenError> {
    let failed = || rcgen::Error::RemoteKeyError;
    let key = PrivateKey::generate().map_err(|_| failed())?;
    let pem = key.to_pkcs8_pem().map_err(|_| failed())?;
    let pair = KeyPair::from_pem(&pem)?;
    let now = SystemTime::now();
    let mut root = CertificateParams::default();
    root.distinguished_name = DistinguishedName::new();
    root.distinguished_name
        .push(DnType::OrganizationName, "Merlon");
    root.distinguished_name.push(
        DnType::CommonName,
        format!("{trust_domain} development root"),
    );
    root.subject_alt_names = vec![SanType::URI(trust_domain_uri(trust_domain).try_into()?)];
    // No path length: with one, a later root could not be cross-signed.
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    root.serial_number = Some(serial()?);
    root.not_before = (now - ROOT_BACKDATED).into();
    root.not_after = (now + ROOT_LIFE).into();
    Ok((pem, root.self_signed(&pair)?.pem()))
}

/// 128 random bits, the first one clear so that the number is positive (RFC 5280 §4.1.2.2).
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn trust_domain_uri(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}")
}

fn names(root: &CertificateDer<'_>, trust_domain: &TrustDomain) -> bool {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
    let wanted = trust_domain_uri(trust_domain);
    X509Certificate::from_der(root).is_ok_and(|(_, root)| {
        root.subject_alternative_name()
            .ok()
            .flatten()
            .is_some_and(|names| {
                names
                    .value
                    .general_names
                    .iter()
                    .any(|name| matches!(name, GeneralName::URI(uri) if *uri == wanted))
            })
    })
}

/// Whole or not at all, and readable by nobody else from the first moment.
fn write_private(path: &Path, content: &[u8]) -> Result<(), OpenError> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        // A leftover of a run that was cut off may have other rights.
        if let Err(error) = fs::remove_file(&beside)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent()
            .map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    };
    write().map_err(|source| OpenError::File {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

const LEAF_BACKDATED: Duration = Duration::from_secs(5 * 60);
const ROOT_BACKDATED: Duration = Duration::from_secs(24 * 3_600);
const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
