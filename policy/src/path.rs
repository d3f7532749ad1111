//! One reading of a path, for policy and upstream alike.

use std::borrow::Cow;

/// Why a path has no safe reading: 400, `http.path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathProblem {
    /// Not origin-form (RFC 9112 §3.2.1).
    #[error("the path does not begin with `/`")]
    NotAbsolute,
}

/// Normalises a path without its query.
///
/// # Errors
/// When it cannot be read in one way only.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, PathProblem> {
    if path.starts_with('/') {
        Ok(Cow::Borrowed(path))
    } else {
        Err(PathProblem::NotAbsolute)
    }
}
