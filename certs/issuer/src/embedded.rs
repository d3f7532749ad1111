use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::Duration,
};

use merlon_certs::{LEAF_BACKDATE, PrivateKey, TrustRoots, pem, unix_now};
use merlon_config::{
    clock,
    name::{SpiffeId, TrustDomain},
    snapshot::TrustBundle,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::{
    checks::{self, Request},
    error::{IssueError, OpenError},
};

/// The embedded certification authority, with a root key in a file. For development, demos and tests.
///
/// Signing takes about 80 µs and does no I/O.
pub struct Embedded {
    issuer: Issuer<'static, PrivateKey>,
    bundle: TrustBundle,
    roots: TrustRoots,
}

impl Embedded {
    /// Opens the CA in `state_dir`. Creates the directory (mode 0700) and a root that is valid for ten years if there is
    /// none. The key is in `ca.key` (mode 0600), the certificate in `ca.pem`.
    ///
    /// # Errors
    /// Unreadable files, or a root of another trust domain. It is never replaced: all proxies that trust the old root
    /// would be cut off.
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
        let key = match read(&key_file)? {
            Some(key) => {
                PrivateKey::from_pkcs8_pem(&Zeroizing::new(key)).map_err(|_| OpenError::State {
                    path: key_file,
                    why: "is not an ECDSA P-256 key",
                })?
            }
            // A root without its key cannot sign, but proxies trust it: an administrator has to decide.
            None if root_file.exists() => {
                return Err(OpenError::State {
                    path: root_file,
                    why: "exists without its key, `ca.key`",
                });
            }
            None => {
                let key = PrivateKey::generate()?;
                write_private(&key_file, key.to_pkcs8_pem()?.as_bytes())?;
                key
            }
        };
        let root = match read(&root_file)? {
            Some(root) => root,
            // An earlier start was interrupted. A new certificate with the same name and key verifies the same leaves.
            None => {
                let root = new_root(trust_domain, &key)?.into_bytes();
                write_private(&root_file, &root)?;
                root
            }
        };
        Self::from_files(key, &root, &root_file, trust_domain)
    }

    fn from_files(
        key: PrivateKey,
        root: &[u8],
        root_file: &Path,
        trust_domain: &TrustDomain,
    ) -> Result<Self, OpenError> {
        let wrong = |why| OpenError::State {
            path: root_file.to_owned(),
            why,
        };
        let text = std::str::from_utf8(root).map_err(|_| wrong("is not PEM"))?;
        let der = match pem::certificates(root).as_deref() {
            Ok([root]) => root.clone(),
            _ => return Err(wrong("is not exactly one certificate")),
        };
        match spki_of(&der, trust_domain) {
            None => return Err(wrong("is the root of another trust domain")),
            Some(spki) if spki != key.public_key_info()? => {
                return Err(wrong("is not for the key in `ca.key`"));
            }
            Some(_) => {}
        }
        let bundle = TrustBundle {
            trust_domain: trust_domain.clone(),
            roots: vec![text.to_owned()],
        };
        let roots = TrustRoots::from_bundle(&bundle).map_err(|_| wrong("is not a valid root"))?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self {
            issuer,
            bundle,
            roots,
        })
    }

    /// A description for the log.
    pub fn describe(&self) -> String {
        format!(
            "the embedded certification authority, whose key is in a file, signs the certificates of `{}`: \
             for development only, use Vault or OpenBao for anything else",
            self.bundle.trust_domain
        )
    }

    /// The root.
    pub fn bundle(&self) -> TrustBundle {
        self.bundle.clone()
    }

    /// See [`crate::CertIssuer::sign`].
    ///
    /// # Errors
    /// [`IssueError::Request`] for an invalid request.
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
        let now = clock::system_time();
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
        leaf.not_before = (now - LEAF_BACKDATE).into();
        leaf.not_after = (now + lifetime).into();
        let key = SubjectPublicKeyInfo::from_der(&request.public_key_info)?;
        let chain = vec![leaf.signed_by(&key, &self.issuer)?.der().clone()];
        checks::check_answer(
            &chain,
            &request,
            id,
            lifetime,
            self.roots.clone(),
            unix_now(),
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

fn new_root(trust_domain: &TrustDomain, key: &PrivateKey) -> Result<String, OpenError> {
    let now = clock::system_time();
    let mut root = CertificateParams::default();
    root.distinguished_name = DistinguishedName::new();
    root.distinguished_name
        .push(DnType::OrganizationName, "Merlon");
    root.distinguished_name.push(
        DnType::CommonName,
        format!("{trust_domain} development root"),
    );
    root.subject_alt_names = vec![SanType::URI(trust_domain_uri(trust_domain).try_into()?)];
    // No path length, which would prevent the cross-signing of a later root.
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    root.serial_number = Some(serial()?);
    root.not_before = (now - ROOT_BACKDATE).into();
    root.not_after = (now + ROOT_LIFETIME).into();
    Ok(root.self_signed(key)?.pem())
}

/// 128 random bits with a clear first bit, so that the number is positive (RFC 5280 §4.1.2.2).
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

/// The public key of the root, if it belongs to this trust domain.
fn spki_of(root: &CertificateDer<'_>, trust_domain: &TrustDomain) -> Option<Vec<u8>> {
    let wanted = trust_domain_uri(trust_domain);
    let (_, root) = X509Certificate::from_der(root).ok()?;
    let names = root.subject_alternative_name().ok()??;
    let is_ours = |name: &GeneralName<'_>| matches!(name, GeneralName::URI(uri) if *uri == wanted);
    let ours = names.value.general_names.iter().any(is_ours);
    ours.then(|| root.public_key().raw.to_vec())
}

/// The content of a file; `None` if it does not exist.
fn read(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenError::File {
            action: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a file atomically. Only its owner can read it from the start.
fn write_private(path: &Path, content: &[u8]) -> Result<(), OpenError> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        // A file from an interrupted run may have other permissions.
        if let Err(error) = fs::remove_file(&temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent()
            .map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
    };
    write().map_err(|source| OpenError::File {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

const ROOT_BACKDATE: Duration = Duration::from_secs(24 * 3_600);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
