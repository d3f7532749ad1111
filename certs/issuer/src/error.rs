use std::path::PathBuf;

use merlon_certs::{KeyError, LeafError, RootsError};

/// Whose fault it is that no certificate was signed, and what helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is wrong; the same one will be refused again.
    Request,
    /// The issuer cannot now; try again, with pauses that grow.
    Unavailable,
    /// The issuer is set up wrongly, or answered what it must not; a person has to look.
    Issuer,
}

/// Why no certificate was signed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request for a certificate breaks a rule.
    #[error("the request for a certificate {0}")]
    Request(&'static str),
    /// The issuer cannot be reached, is sealed, overloaded, or between two leaders.
    #[error("the certificate issuer is not available: {0}")]
    Unavailable(String),
    /// The token was refused, and reading it anew did not help.
    #[error("the certificate issuer refuses the control plane's token")]
    Unauthenticated,
    /// The login was refused. Which of a wrong role, a wrong token and an API server that is away it was, the server does
    /// not tell.
    #[error("the certificate issuer refuses the login to the role `{0}` by `{1}`: {2}")]
    Login(String, String, String),
    /// The token is good and lacks the right.
    #[error("the control plane's token may not {0}")]
    Forbidden(String),
    /// The issuer's set-up is not what signing needs.
    #[error("the certificate issuer is set up wrongly: {0}")]
    Setup(String),
    /// The issuer's answer was not what had been asked for. Nothing of it was used.
    #[error("the certificate issuer's answer is refused: {0}")]
    Answer(String),
    /// The issuer's roots cannot be used.
    #[error("the certificate issuer's roots are refused: {0}")]
    Roots(#[from] RootsError),
    /// The embedded CA failed.
    #[error("the embedded certification authority failed: {0}")]
    Embedded(#[from] rcgen::Error),
}

impl IssueError {
    /// Whose fault it is, and what helps.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Request(_) => Fault::Request,
            // A token that expired may be replaced at any moment by whoever writes the file.
            Self::Unavailable(_) | Self::Unauthenticated | Self::Login(..) => Fault::Unavailable,
            Self::Forbidden(_)
            | Self::Setup(_)
            | Self::Answer(_)
            | Self::Roots(_)
            | Self::Embedded(_) => Fault::Issuer,
        }
    }
}

impl From<LeafError> for IssueError {
    fn from(error: LeafError) -> Self {
        Self::Answer(error.to_string())
    }
}

/// Why an issuer cannot be opened at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read or written.
    #[error("cannot {action} `{path}`")]
    File {
        /// `read`, `write`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What stands in the state directory is not this mesh's.
    #[error(
        "`{path}` {why}; move the state directory away to begin with a new root, which nobody will trust yet"
    )]
    State {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// The CA could not be made.
    #[error("cannot make the embedded certification authority")]
    Embedded(#[from] rcgen::Error),
    /// Its key could not be made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The connection to Vault cannot be set up.
    #[error("cannot set up the connection to Vault: {0}")]
    Vault(String),
}
