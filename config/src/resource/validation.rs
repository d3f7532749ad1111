use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetRef;
use crate::unit::Size;

/// What a request may look like, and the path templates that policies name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestValidationSpec {
    /// What it applies to; left out: the whole namespace.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// Sizes for every request.
    #[serde(default)]
    pub limits: RequestLimits,
    /// The routes, by template.
    #[serde(default)]
    pub routes: Vec<RouteRule>,
    /// What becomes of a request that no route fits. Default: `allow` (policies still decide).
    #[serde(default)]
    pub unknown_routes: UnknownRoutes,
}

/// Sizes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RequestLimits {
    /// Names and values of all headers together. Default and most: 64KiB. Over it: 431.
    pub headers: Size,
    /// Path and query together. Default and most: 8KiB. Over it: 414.
    pub uri: Size,
    /// The body, streamed or not. Left out: no limit. Over it: 413.
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
    /// A path template: `/users/{user}/orders/{id}`; `{rest*}` as the last segment takes all that is left.
    pub path: String,
    /// Accepted methods; left out: any. Others get 405 with `Allow`.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Accepted media types of a body; left out: any. Others get 415.
    #[serde(default)]
    pub content_types: Vec<String>,
    /// JSON Schema (2020-12) of the body. With it the body is read whole, within `maxBody`, before anything is sent on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<serde_json::Value>,
    /// The largest body; with `body` default 1MiB, and at most 16MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body: Option<Size>,
}

/// What becomes of a request that no route fits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UnknownRoutes {
    /// It goes on, without `context.route`.
    #[default]
    Allow,
    /// 404.
    Refuse,
}
