//! Does the request look right: sizes, methods, media types, routes, bodies.

mod body;
mod route;
mod violation;

pub use body::BodyRule;
pub use route::RouteMatch;
pub use violation::Violation;

/// The head of a request as the checks see it.
#[derive(Debug, Clone, Copy)]
pub struct HeadFacts<'a> {
    /// The method's exact bytes.
    pub method: &'a str,
    /// Path and query together, in bytes, as received.
    pub uri_bytes: u64,
    /// Names and values of all headers together, in bytes.
    pub header_bytes: u64,
    /// `Content-Type`, as received.
    pub content_type: Option<&'a str>,
    /// `Content-Length`; none for a body of unknown length.
    pub content_length: Option<u64>,
    /// Whether a body follows or may follow.
    pub has_body: bool,
}
