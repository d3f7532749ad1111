use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::target::TargetRef;
use crate::unit::Size;

/// The shape of valid requests, and the path templates that policies refer to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestValidationSpec {
    /// What it applies to. If omitted, the whole namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// Size limits for every request.
    #[serde(default)]
    pub limits: RequestLimits,
    /// The routes, by path template.
    #[serde(default)]
    pub routes: Vec<RouteRule>,
    /// What happens to a request that matches no route. Default: `allow` (policies still decide).
    #[serde(default)]
    pub unknown_routes: UnknownRoutes,
}

/// Size limits of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RequestLimits {
    /// Total size of the names and values of all headers. Default and maximum: 64KiB. Larger requests get 431.
    pub headers: Size,
    /// Total size of path and query. Default and maximum: 8KiB. Larger requests get 414.
    pub uri: Size,
    /// Size of the body, streamed or not. If omitted, no limit. Larger requests get 413.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<Size>,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            headers: Size(64 << 10),
            uri: Size(8 << 10),
            body: None,
        }
    }
}

/// One route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteRule {
    /// A path template, for example `/users/{user}/orders/{id}`. `{rest*}` as the last segment matches the rest of the path.
    pub path: String,
    /// Accepted methods. If omitted, any. Others get 405 with `Allow`.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Accepted media types of a body. If omitted, any. Others get 415.
    #[serde(default)]
    pub content_types: Vec<String>,
    /// JSON Schema (2020-12) of the body. With a schema, the whole body is read, up to `maxBody`, before the request is
    /// forwarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
    /// Maximum size of the body. With `body`, the default is 1MiB and the maximum is 16MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body: Option<Size>,
}

/// What happens to a request that matches no route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UnknownRoutes {
    /// The request continues, without `context.route`.
    #[default]
    Allow,
    /// The request is rejected with 404.
    Refuse,
}
