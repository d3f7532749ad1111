use merlon_config::resource::UnknownRoutes;

use super::{
    media_type::{essence, is_json},
    route::{RouteMatch, Router},
    violation::Violation,
};

/// The head of a request, as validated.
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
    /// Whether it has a `Content-Encoding` other than `identity`.
    pub encoded: bool,
    /// `Content-Length`; `None` for a body of unknown length.
    pub content_length: Option<u64>,
    /// Whether a body follows or may follow.
    pub has_body: bool,
}

/// Checks the head against every document, cheapest checks first.
pub(crate) fn check_head(
    router: &Router,
    head: &HeadFacts<'_>,
    route: &RouteMatch,
) -> Result<(), Violation> {
    for (document, chosen) in router.documents(route) {
        if head.uri_bytes > document.limits.uri.0 {
            return Err(Violation::new(
                414,
                "http.limit",
                format!(
                    "the request target has {} bytes, the limit is {}",
                    head.uri_bytes, document.limits.uri
                ),
            ));
        }
        if head.header_bytes > document.limits.headers.0 {
            return Err(Violation::new(
                431,
                "http.limit",
                format!(
                    "the headers have {} bytes, the limit is {}",
                    head.header_bytes, document.limits.headers
                ),
            ));
        }
        let Some((chosen, rule)) = chosen else {
            if document.unknown == UnknownRoutes::Refuse {
                return Err(Violation::new(
                    404,
                    "validate.route",
                    "no route matches this path",
                ));
            }
            continue;
        };
        let Some(rule) = rule else {
            let mut violation = Violation::new(
                405,
                "http.method",
                format!(
                    "the method `{}` is not allowed for this path",
                    truncate(head.method)
                ),
            );
            violation.allow = chosen.methods();
            return Err(violation);
        };
        if head.has_body && !rule.content_types.is_empty() {
            let essence = head.content_type.map(essence).unwrap_or_default();
            if !rule.content_types.contains(&essence) {
                return Err(Violation::new(
                    415,
                    "http.media_type",
                    format!("the body must be {}", rule.content_types.join(" or ")),
                )
                .at("content-type"));
            }
        }
        // Validation would see the encoded bytes, but the application reads the decoded ones.
        if head.encoded && rule.body.is_some() {
            return Err(Violation::new(
                415,
                "http.media_type",
                "the body must not have a content encoding: it is validated before it is forwarded",
            )
            .at("content-encoding"));
        }
        // The media type selects the parser: a body of another type would not be validated.
        if head.has_body && rule.body.is_some() && !head.content_type.is_some_and(is_json) {
            return Err(Violation::new(
                415,
                "http.media_type",
                "the body must be application/json",
            )
            .at("content-type"));
        }
    }
    if let (Some(length), Some(most)) = (head.content_length, max_body(router, route))
        && head.has_body
        && length > most
    {
        return Err(too_large(most));
    }
    Ok(())
}

/// The smallest limit of all documents.
pub(crate) fn max_body(router: &Router, route: &RouteMatch) -> Option<u64> {
    router
        .documents(route)
        .flat_map(|(document, chosen)| {
            let own = chosen.and_then(|(_, rule)| rule?.max_body);
            [document.limits.body.map(|size| size.0), own]
        })
        .flatten()
        .min()
}

pub(crate) fn too_large(most: u64) -> Violation {
    Violation::new(
        413,
        "http.limit",
        format!("the body has more than {most} bytes"),
    )
}

fn truncate(text: &str) -> String {
    text.chars().take(32).collect()
}
