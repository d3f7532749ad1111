use std::path::PathBuf;

use merlon_certs::{KeyError, LeafError, RootsError};

/// The cause of an [`IssueError`], which shows whether a retry can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request is invalid; it will be refused again.
    Request,
    /// The issuer is not available; retry with back-off.
    Unavailable,
    /// The issuer is misconfigured or gave an invalid answer; an administrator has to fix it.
    Issuer,
}

/// Why no certificate was signed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The certificate request violates a rule.
    #[error("the certificate request {0}")]
    Request(&'static str),
    /// The issuer is unreachable, sealed, overloaded, or changing its leader.
    #[error("the certificate issuer is not available: {0}")]
    Unavailable(String),
    /// The token was refused, also after it was read again.
    #[error("the certificate issuer refuses the control plane's token")]
    Unauthenticated,
    /// The login was refused. The server does not distinguish a wrong role, a wrong token, and an API server that is down.
    #[error("the certificate issuer refuses the login to role `{0}` at `{1}`: {2}")]
    Login(String, String, String),
    /// The token is valid but lacks the permission.
    #[error("the control plane's token lacks the permission to {0}")]
    Forbidden(String),
    /// The issuer is misconfigured.
    #[error("the certificate issuer is misconfigured: {0}")]
    Setup(String),
    /// The answer of the issuer does not match the request. It was discarded.
    #[error("the answer of the certificate issuer is rejected: {0}")]
    Answer(String),
    /// The roots of the issuer are invalid.
    #[error("the roots of the certificate issuer are rejected: {0}")]
    Roots(#[from] RootsError),
    /// The embedded CA failed.
    #[error("the embedded certification authority failed: {0}")]
    Embedded(#[from] rcgen::Error),
}

impl IssueError {
    /// The cause, which shows whether a retry can help.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Request(_) => Fault::Request,
            // An expired token may be replaced in its file at any time.
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

/// Why an issuer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read or written.
    #[error("cannot {action} `{path}`")]
    File {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The state directory is invalid or belongs to another mesh.
    #[error(
        "`{path}` {why}; to start with a new root, which no proxy trusts yet, move the state directory away"
    )]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// The CA could not be created.
    #[error("cannot create the embedded certification authority")]
    Embedded(#[from] rcgen::Error),
    /// Its key could not be generated.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The connection to Vault cannot be set up.
    #[error("cannot set up the connection to Vault: {0}")]
    Vault(String),
}
