//! Certificates and keys as text (RFC 7468).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use zeroize::Zeroizing;

/// Why a text is not certificates in PEM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not certificates in PEM: {0}")]
pub struct PemError(String);

/// All certificates in a PEM text, in order. Other sections are ignored.
///
/// # Errors
/// If a section is malformed, or none is a certificate.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PemError(error.to_string()))?;
    if found.is_empty() {
        return Err(PemError("no `BEGIN CERTIFICATE` section".to_owned()));
    }
    Ok(found)
}

/// One certificate as PEM.
pub fn certificate(der: &CertificateDer<'_>) -> String {
    let mut text = encode("CERTIFICATE", der);
    std::mem::take(&mut *text)
}

/// Any section, such as `CERTIFICATE REQUEST`. The text may be a key: it is zeroed on drop, and allocated at its full size,
/// so that growing leaves no copy.
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text = Zeroizing::new(String::with_capacity(
        body.len() + body.len() / 64 + 64 + 2 * label.len(),
    ));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so every index is a character boundary.
        let (line, others) = rest.split_at_checked(64).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = others;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}
