use std::{
    fs,
    path::{Path, PathBuf},
};

use merlon_config::resource::{KubernetesAuth, VaultIssuer};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::error::OpenError;

/// The source of the token, read each time a token is needed.
pub(super) enum TokenSource {
    File(PathBuf),
    Environment(SecretString),
    /// A login, which returns a new token each time.
    Kubernetes(KubernetesAuth),
}

impl TokenSource {
    pub(super) fn of(settings: &VaultIssuer) -> Result<Self, OpenError> {
        match (&settings.kubernetes_auth, &settings.token_file) {
            (Some(_), Some(_)) => Err(OpenError::Vault(
                "both `tokenFile` and `kubernetesAuth` are set".to_owned(),
            )),
            (Some(login), None) => Ok(Self::Kubernetes((**login).clone())),
            (None, Some(path)) => Ok(Self::File(path.clone())),
            (None, None) => {
                let token = std::env::var("VAULT_TOKEN").map_err(|_| {
                    OpenError::Vault(
                        "none of `tokenFile`, `kubernetesAuth` and `VAULT_TOKEN` is set".to_owned(),
                    )
                })?;
                Ok(Self::Environment(token.into()))
            }
        }
    }
}

/// Reads the token from a file.
pub(super) fn from_file(path: &Path) -> Result<SecretString, OpenError> {
    let text = fs::read_to_string(path).map_err(|source| OpenError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    checked(&Zeroizing::new(text), &format!("`{}`", path.display()))
}

/// Trims the text, and accepts only what is valid in a header: vaultrs would panic on anything else.
pub(super) fn checked(text: &str, origin: &str) -> Result<SecretString, OpenError> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(OpenError::Vault(format!("{origin} is not a token")));
    }
    Ok(token.to_owned().into())
}

/// The token from `VAULT_TOKEN`.
pub(super) fn from_environment(token: &SecretString) -> Result<SecretString, OpenError> {
    checked(token.expose_secret(), "`VAULT_TOKEN`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_trimmed_and_other_text_is_rejected() {
        let token = checked(" s.abc\n", "here").unwrap();
        assert_eq!(token.expose_secret(), "s.abc");
        for wrong in ["", "\n", "two words", "line\nline", "tök", "a\u{7f}"] {
            assert!(checked(wrong, "here").is_err(), "{wrong:?}");
        }
    }
}
