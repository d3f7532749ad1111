use std::{
    fs,
    path::{Path, PathBuf},
};

use merlon_config::resource::{KubernetesAuth, VaultIssuer};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::error::OpenError;

/// Where the token comes from, each time it is needed.
pub(super) enum TokenSource {
    File(PathBuf),
    Environment(SecretString),
    /// A login: each gives another one.
    Kubernetes(KubernetesAuth),
}

impl TokenSource {
    pub(super) fn of(settings: &VaultIssuer) -> Result<Self, OpenError> {
        match (&settings.kubernetes_auth, &settings.token_file) {
            (Some(_), Some(_)) => Err(OpenError::Vault(
                "there are both `tokenFile` and `kubernetesAuth`".to_owned(),
            )),
            (Some(login), None) => Ok(Self::Kubernetes((**login).clone())),
            (None, Some(path)) => Ok(Self::File(path.clone())),
            (None, None) => {
                let token = std::env::var("VAULT_TOKEN").map_err(|_| {
                    OpenError::Vault(
                        "there is neither `tokenFile` nor `kubernetesAuth`, and `VAULT_TOKEN` is not set"
                            .to_owned(),
                    )
                })?;
                Ok(Self::Environment(token.into()))
            }
        }
    }
}

/// The token in a file.
pub(super) fn from_file(path: &Path) -> Result<SecretString, OpenError> {
    let text = fs::read_to_string(path).map_err(|source| OpenError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    checked(&Zeroizing::new(text), &format!("`{}`", path.display()))
}

/// Only what may stand in a header: vaultrs would panic on anything else.
pub(super) fn checked(text: &str, origin: &str) -> Result<SecretString, OpenError> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(OpenError::Vault(format!("{origin} holds no token")));
    }
    Ok(token.to_owned().into())
}

/// What stands in `VAULT_TOKEN`.
pub(super) fn from_environment(token: &SecretString) -> Result<SecretString, OpenError> {
    checked(token.expose_secret(), "`VAULT_TOKEN`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_without_the_space_around_it_and_nothing_else_is() {
        let token = checked(" s.abc\n", "here").unwrap();
        assert_eq!(token.expose_secret(), "s.abc");
        for wrong in ["", "\n", "two words", "line\nline", "tök", "a\u{7f}"] {
            assert!(checked(wrong, "here").is_err(), "{wrong:?}");
        }
    }
}
