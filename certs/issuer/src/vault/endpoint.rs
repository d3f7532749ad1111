use std::marker::PhantomData;

use rustify::{
    endpoint::Endpoint,
    enums::{RequestMethod, RequestType, ResponseType},
    errors::ClientError,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One call of the server's API. The `data` of its answer is a `T`.
///
/// vaultrs has these endpoints too, but its `sign` requires a `common_name`, which the least-privilege policy refuses, and
/// its role lacks the fields that OpenBao added. So vaultrs only sends these calls.
pub(super) struct Call<T> {
    method: RequestMethod,
    path: String,
    body: Option<Value>,
    answer: PhantomData<fn() -> T>,
}

impl<T> Call<T> {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(RequestMethod::GET, path.into(), None)
    }

    pub(super) fn list(path: impl Into<String>) -> Self {
        Self::new(RequestMethod::LIST, path.into(), None)
    }

    pub(super) fn post(path: impl Into<String>, body: Value) -> Self {
        Self::new(RequestMethod::POST, path.into(), Some(body))
    }

    fn new(method: RequestMethod, path: String, body: Option<Value>) -> Self {
        Self {
            method,
            path,
            body,
            answer: PhantomData,
        }
    }
}

// Not derived: that would require `T: Clone`.
impl<T> Clone for Call<T> {
    fn clone(&self) -> Self {
        Self::new(self.method.clone(), self.path.clone(), self.body.clone())
    }
}

impl<T: DeserializeOwned + Send + Sync> Endpoint for Call<T> {
    type Response = T;
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        self.method.clone()
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        Ok(self.body.as_ref().map(|body| body.to_string().into_bytes()))
    }
}

/// Whether `text` can go into a URL's path unchanged: a mount, a role or a reference.
pub(super) fn is_path(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
        && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
