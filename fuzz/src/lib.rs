//! Fuzz targets for the parsers of bytes that Merlon does not control.
#![doc = include_str!("../README.md")]

mod admission;
mod certificates;
mod http1;
mod http2;
mod input;
mod kubernetes;
mod names;
mod peers;
mod policy;
mod push;
mod request;
mod resources;
mod schema;
mod telemetry;
mod tokens;

/// A fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Also the name of its folder in `seeds/`.
    pub name: &'static str,
    /// Panics if a property does not hold for these bytes.
    pub run: fn(&[u8]),
    /// Maximum length of an input, in bytes. Above every size limit that the target can reach.
    pub max_len: usize,
    /// A file in `dictionaries/`, without its extension.
    pub dictionary: Option<&'static str>,
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    max_len: usize,
    dictionary: Option<&'static str>,
) -> Target {
    Target {
        name,
        run,
        max_len,
        dictionary,
    }
}

/// A text of this length exceeds no limit.
const SHORT: usize = 4 << 10;
/// Above the limits of a document's parts.
const LONG: usize = 32 << 10;
/// Above the limits of an HTTP/1 head, of chunk extensions and trailers, and of control frames in a row.
const WIRE: usize = 128 << 10;

/// All targets.
pub const TARGETS: &[Target] = &[
    target("access_log", telemetry::access_log, SHORT, None),
    target("admission", admission::review, LONG, Some("admission")),
    target("admission_body", admission::body, SHORT, Some("json")),
    target("authority", request::authority, LONG, Some("http1")),
    target("bootstrap", resources::bootstrap, LONG, Some("resources")),
    target("bundle", certificates::bundle, LONG, None),
    target("chunked", http1::chunked, WIRE, Some("http1")),
    target(
        "content_headers",
        request::content_headers,
        SHORT,
        Some("http1"),
    ),
    target("csr", certificates::csr, LONG, None),
    target("discovery_request", push::request, SHORT, None),
    target("discovery_response", push::response, SHORT, Some("push")),
    target("frames", http2::frames, WIRE, Some("http2")),
    target("gateways", kubernetes::gateways, LONG, Some("kubernetes")),
    target("guard", http1::guard, WIRE, Some("http1")),
    target("head", http1::head, WIRE, Some("http1")),
    target("inject", admission::inject_pod, LONG, Some("admission")),
    target("inspection_reply", push::inspection_reply, SHORT, None),
    target("join_token", tokens::join_token, SHORT, None),
    target("json", schema::json, LONG, Some("json")),
    target("jwks", tokens::jwks, LONG, Some("tokens")),
    target("leaf", certificates::leaf, LONG, None),
    target("load", resources::load, LONG, Some("resources")),
    target("names", names::names, SHORT, None),
    target(
        "openid_document",
        tokens::openid_document,
        SHORT,
        Some("tokens"),
    ),
    target("path", policy::path, LONG, None),
    target("peer_header", peers::peer_header, SHORT, None),
    target("policy_text", policy::text, SHORT, Some("cedar")),
    target("preamble", peers::preamble, SHORT, None),
    target("private_key", certificates::private_key, SHORT, None),
    target("query", request::query, SHORT, None),
    target("schema", schema::schema, SHORT, Some("schema")),
    target(
        "service_account",
        tokens::service_account,
        SHORT,
        Some("kubernetes"),
    ),
    target("template", policy::template, SHORT, None),
    target("token", tokens::token, LONG, Some("tokens")),
    target("token_signed", tokens::signed, SHORT, Some("tokens")),
    target("traceparent", peers::traceparent, SHORT, None),
    target("units", names::units, SHORT, None),
    target(
        "vault_answer",
        certificates::vault_answer,
        LONG,
        Some("tokens"),
    ),
    target("workloads", kubernetes::workloads, LONG, Some("kubernetes")),
];

/// The target with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
