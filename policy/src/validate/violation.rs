use std::fmt;

use serde::{Deserialize, Serialize};

/// Why request validation rejects a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// 400, 404, 405, 411, 413, 414, 415 or 431.
    pub status: u16,
    /// The stable reason code: `validate.body`, `validate.route`, `http.limit`, `http.method`, `http.media_type`.
    pub reason: String,
    /// A message for the client, in one sentence.
    pub detail: String,
    /// The location: a JSON pointer into the body (RFC 6901; empty for the whole body), or a header's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// With 405, the methods for `Allow` (RFC 9110 §15.5.6).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
}

impl Violation {
    pub(crate) fn new(status: u16, reason: &str, detail: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.to_owned(),
            detail: detail.into(),
            place: None,
            allow: Vec::new(),
        }
    }

    pub(crate) fn at(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        match &self.place {
            Some(place) => write!(f, " (at `{place}`)"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Violation {}
