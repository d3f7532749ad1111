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
    pub dictionary: &'static str,
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    max_len: usize,
    dictionary: &'static str,
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
    target("access_log", telemetry::access_log, SHORT, "log"),
    target("admission", admission::review, LONG, "admission"),
    target("admission_body", admission::body, SHORT, "json"),
    target("authority", request::authority, LONG, "http1"),
    target("bootstrap", resources::bootstrap, LONG, "resources"),
    target("bundle", certificates::bundle, LONG, "certificates"),
    target("chunked", http1::chunked, WIRE, "http1"),
    target("content_headers", request::content_headers, SHORT, "http1"),
    target("csr", certificates::csr, LONG, "certificates"),
    target("discovery_request", push::request, SHORT, "push"),
    target("discovery_response", push::response, SHORT, "push"),
    target("frames", http2::frames, WIRE, "http2"),
    target("gateways", kubernetes::gateways, LONG, "kubernetes"),
    target("guard", http1::guard, WIRE, "http1"),
    target("head", http1::head, WIRE, "http1"),
    target("inject", admission::inject_pod, LONG, "admission"),
    target("inspection_reply", push::inspection_reply, SHORT, "push"),
    target("join_token", tokens::join_token, SHORT, "names"),
    target("json", schema::json, LONG, "json"),
    target("jwks", tokens::jwks, LONG, "tokens"),
    target("leaf", certificates::leaf, LONG, "certificates"),
    target("load", resources::load, LONG, "resources"),
    target("names", names::names, SHORT, "names"),
    target("openid_document", tokens::openid_document, SHORT, "tokens"),
    target("path", policy::path, LONG, "paths"),
    target("peer_header", peers::peer_header, SHORT, "peers"),
    target("policy_text", policy::text, SHORT, "cedar"),
    target("preamble", peers::preamble, SHORT, "peers"),
    target(
        "private_key",
        certificates::private_key,
        SHORT,
        "certificates",
    ),
    target("query", request::query, SHORT, "paths"),
    target("schema", schema::schema, SHORT, "schema"),
    target(
        "service_account",
        tokens::service_account,
        SHORT,
        "kubernetes",
    ),
    target("template", policy::template, SHORT, "paths"),
    target("token", tokens::token, LONG, "tokens"),
    target("token_signed", tokens::signed, SHORT, "tokens"),
    target("traceparent", peers::traceparent, SHORT, "peers"),
    target("units", names::units, SHORT, "names"),
    target("vault_answer", certificates::vault_answer, LONG, "tokens"),
    target("workloads", kubernetes::workloads, LONG, "kubernetes"),
];

/// The target with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
