use std::{fs, path::PathBuf};

use merlon_config::resource::VaultIssuer;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::error::OpenError;

/// Where the token comes from, each time it is needed.
pub(super) enum TokenSource {
    File(PathBuf),
    Environment(SecretString),
}

impl TokenSource {
    pub(super) fn of(settings: &VaultIssuer) -> Result<Self, OpenError> {
        let Some(path) = &settings.token_file else {
            let token = std::env::var("VAULT_TOKEN").map_err(|_| {
                OpenError::Vault("there is no `tokenFile`, and `VAULT_TOKEN` is not set".to_owned())
            })?;
            return Ok(Self::Environment(token.into()));
        };
        Ok(Self::File(path.clone()))
    }

    pub(super) fn read(&self) -> Result<SecretString, OpenError> {
        match self {
            Self::Environment(token) => checked(token.expose_secret(), "`VAULT_TOKEN`"),
            Self::File(path) => {
                let text = fs::read_to_string(path).map_err(|source| OpenError::File {
                    action: "read",
                    path: path.clone(),
                    source,
                })?;
                checked(&Zeroizing::new(text), &format!("`{}`", path.display()))
            }
        }
    }
}

/// Only what may stand in a header: vaultrs would panic on anything else.
fn checked(text: &str, origin: &str) -> Result<SecretString, OpenError> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(OpenError::Vault(format!("{origin} holds no token")));
    }
    Ok(token.to_owned().into())
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
