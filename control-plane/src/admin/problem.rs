//! Errors as `application/problem+json` (RFC 9457).

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{push::AskError, state::store::StoreError};

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    hint: Option<String>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            hint: None,
        }
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let (Some(hint), Some(object)) = (self.hint, body.as_object_mut()) {
            object.insert("hint".to_owned(), hint.into());
        }
        let mut response = (self.status, body.to_string()).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        let status = match &error {
            AskError::Disconnected { .. } => StatusCode::SERVICE_UNAVAILABLE,
            AskError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
            AskError::Failed { .. } => StatusCode::BAD_GATEWAY,
        };
        let hint = matches!(error, AskError::Disconnected { .. }).then(|| {
            "only the proxy itself knows its state; a restarted process has a new id: `merlon proxy status` lists the known proxies".to_owned()
        });
        Self {
            status,
            detail: error.to_string(),
            hint,
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %error, "store.failed");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the control plane's database: {error}"),
        )
    }
}

/// Parses JSON from a proxy.
pub(super) fn json_of(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let detail = format!("the reply of the proxy is not JSON: {error}");
        Problem::new(StatusCode::BAD_GATEWAY, detail)
    })
}

/// The proxy replied with another type of message.
pub(super) fn wrong_reply(id: &str) -> Problem {
    let detail = format!("the proxy `{id}` sent a reply of another type");
    Problem::new(StatusCode::BAD_GATEWAY, detail)
}
