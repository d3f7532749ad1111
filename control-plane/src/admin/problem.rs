//! What goes wrong, as `application/problem+json` (RFC 9457).

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{push::AskError, state::store::StoreError};

/// An answer that says why there is no better one.
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
            AskError::Away { .. } => StatusCode::SERVICE_UNAVAILABLE,
            AskError::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            AskError::Failed { .. } => StatusCode::BAD_GATEWAY,
        };
        let hint = matches!(error, AskError::Away { .. }).then(|| {
            "only it knows what it holds; a process that was started anew has another id: `merlon proxy status` lists those that are there".to_owned()
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

/// JSON that came from a proxy.
pub(super) fn json_of(bytes: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(bytes).map_err(|error| {
        let detail = format!("the proxy's answer is not JSON: {error}");
        Problem::new(StatusCode::BAD_GATEWAY, detail)
    })
}

/// The proxy answered something else.
pub(super) fn beside_the_point(id: &str) -> Problem {
    let detail = format!("the proxy `{id}` answered another question");
    Problem::new(StatusCode::BAD_GATEWAY, detail)
}
