//! Checks a certificate signing request before the issuer signs it.

use merlon_config::name::SpiffeId;
use x509_parser::{
    certification_request::X509CertificationRequest, extensions::GeneralName,
    extensions::ParsedExtension, prelude::FromDer as _,
};

/// Why a request is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CsrError {
    #[error("`csr` is not a certificate signing request (PKCS #10, DER)")]
    Encoding,
    #[error("`csr` must ask for one URI name and nothing else, `{0}`")]
    Names(SpiffeId),
    #[error("`csr` asks for `{asked}`; the evidence is for `{proved}`")]
    OtherIdentity { asked: String, proved: SpiffeId },
}

/// A request for the authenticated identity. The issuer checks key and signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Csr {
    public_key_info: Vec<u8>,
}

impl Csr {
    /// Checks the requested name. The issuer puts the authenticated name into the certificate in any case, but a request
    /// for another name is a mistake or an attack, and gets an error.
    pub(crate) fn check(der: &[u8], proved: &SpiffeId) -> Result<Self, CsrError> {
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|_| CsrError::Encoding)?;
        if !rest.is_empty() {
            return Err(CsrError::Encoding);
        }
        let mut names = Vec::new();
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(found) = extension {
                names.extend(&found.general_names);
            }
        }
        let [GeneralName::URI(asked)] = names.as_slice() else {
            return Err(CsrError::Names(proved.clone()));
        };
        if *asked != proved.to_string() {
            return Err(CsrError::OtherIdentity {
                asked: asked.escape_debug().take(2_048).collect(),
                proved: proved.clone(),
            });
        }
        let info = &csr.certification_request_info.subject_pki;
        Ok(Self {
            public_key_info: info.raw.to_vec(),
        })
    }

    pub(crate) fn public_key_info(&self) -> &[u8] {
        &self.public_key_info
    }
}
