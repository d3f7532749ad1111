use std::collections::HashSet;

use super::{
    body_schema::exponential,
    checker::Checker,
    text::{is_token, method_problem},
};
use crate::{
    resource::{RequestValidationSpec, Resource, RouteRule},
    unit::Size,
};

const MAX_HEADERS: Size = Size(64 << 10);
const MAX_URI: Size = Size(8 << 10);
const MAX_CHECKED_BODY: Size = Size(16 << 20);

impl<'a> Checker<'a, '_> {
    pub(super) fn validation(&mut self, resource: &'a Resource, spec: &'a RequestValidationSpec) {
        self.size(
            resource,
            "spec.limits.headers",
            spec.limits.headers,
            MAX_HEADERS,
        );
        self.size(resource, "spec.limits.uri", spec.limits.uri, MAX_URI);
        for (index, route) in spec.routes.iter().enumerate() {
            self.route_rule(
                resource,
                &format!("spec.routes[{index}]"),
                route,
                &spec.limits.body,
            );
        }
        self.ambiguous(resource, &spec.routes);
    }

    fn size(&mut self, resource: &Resource, field: &str, size: Size, max: Size) {
        let name = field.rsplit('.').next().unwrap_or(field);
        if size.0 == 0 {
            let message = format!("a limit of 0 bytes for `{name}` would reject every request");
            self.error(resource, field, message);
        } else if size > max {
            let message = format!("`{name}` must be at most {max}, not {size}");
            self.error(resource, field, message);
        }
    }

    fn route_rule(
        &mut self,
        resource: &Resource,
        field: &str,
        route: &RouteRule,
        body: &Option<Size>,
    ) {
        if let Err(problem) = template(&route.path) {
            let message = format!(
                "`{}` is not a path template: {}",
                route.path, problem.message
            );
            self.error(resource, &format!("{field}.path"), message)
                .maybe_hint(problem.hint);
        }
        for (index, method) in route.methods.iter().enumerate() {
            if let Some((message, hint)) = method_problem(method) {
                self.error(resource, &format!("{field}.methods[{index}]"), message)
                    .maybe_hint(hint);
            }
        }
        let methods = route.methods.iter().enumerate();
        let methods = methods.map(|(index, method)| (format!("{field}.methods[{index}]"), method));
        self.duplicates(resource, "method", methods);
        for (index, kind) in route.content_types.iter().enumerate() {
            let field = format!("{field}.contentTypes[{index}]");
            let halves = kind.split_once('/');
            if !halves.is_some_and(|(kind, subkind)| is_token(kind) && is_token(subkind)) {
                let message = format!("`{kind}` is not a media type");
                self.error(resource, &field, message)
                    .hint("write it without parameters, for example `application/json`");
            } else if kind.contains('*') || kind.bytes().any(|b| b.is_ascii_uppercase()) {
                let message =
                    format!("`{kind}` matches no request: media types are compared exactly");
                self.error(resource, &field, message)
                    .hint("list each type, in lower case");
            }
        }
        let max = route.max_body.or(*body);
        if let (Some(_), Some(max)) = (&route.body, max)
            && max > MAX_CHECKED_BODY
        {
            let message = format!(
                "a body with a schema is buffered, so its limit must be at most {MAX_CHECKED_BODY}, not {max}"
            );
            let at = if route.max_body.is_some() {
                format!("{field}.maxBody")
            } else {
                "spec.limits.body".to_owned()
            };
            self.error(resource, &at, message);
        }
        let exponential = route.body.as_ref().and_then(exponential);
        if let Some((place, keyword)) = exponential {
            let message = format!(
                "more than one schema of `{keyword}` at `{place}` refers back to it: a wrong body can need exponentially many comparisons, and is then refused as too costly"
            );
            self.warning(resource, &format!("{field}.body"), message)
                .hint("let the alternatives differ in a property with a `const`, and test it with `if` and `then` before the rest");
        }
        if route.max_body == Some(Size(0)) && route.body.is_some() {
            let message = "a `maxBody` of 0 bytes would reject every JSON body";
            self.error(resource, &format!("{field}.maxBody"), message);
        }
    }

    /// Two routes that match the same requests are ambiguous.
    fn ambiguous(&mut self, resource: &Resource, routes: &[RouteRule]) {
        for (index, route) in routes.iter().enumerate() {
            let Ok(shape) = template(&route.path) else {
                continue;
            };
            let same = routes.iter().take(index).enumerate().find(|(_, other)| {
                template(&other.path).is_ok_and(|theirs| theirs == shape)
                    && (route.methods.is_empty()
                        || other.methods.is_empty()
                        || other
                            .methods
                            .iter()
                            .any(|method| route.methods.contains(method)))
            });
            if let Some((first, other)) = same {
                let message = format!(
                    "`{}` matches the same requests as `{}`",
                    route.path, other.path
                );
                let hint = format!(
                    "the other route is `spec.routes[{first}]`: merge the two, or give them different methods"
                );
                self.error(resource, &format!("spec.routes[{index}].path"), message)
                    .hint(hint);
            }
        }
    }
}

/// A segment of a template without parameter names, which do not affect what it matches.
#[derive(Debug, PartialEq, Eq)]
enum Part<'t> {
    Literal(&'t str),
    Parameter,
    Rest,
}

#[derive(Debug, PartialEq, Eq)]
struct TemplateProblem {
    message: String,
    hint: Option<&'static str>,
}

/// Parses a template into what it matches.
fn template(path: &str) -> Result<Vec<Part<'_>>, TemplateProblem> {
    let problem = |message: String, hint| Err(TemplateProblem { message, hint });
    let Some(rest) = path.strip_prefix('/') else {
        return problem("it must begin with `/`".to_owned(), None);
    };
    let mut names = HashSet::new();
    let mut parts = Vec::new();
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let inside = segment
            .strip_prefix('{')
            .and_then(|text| text.strip_suffix('}'));
        let Some(inside) = inside else {
            if segment.contains(['{', '}']) {
                let message = format!("in `{segment}`, the parameter is not a whole segment");
                return problem(
                    message,
                    Some("write a parameter between two slashes: `/orders/{id}/items`"),
                );
            }
            if segment.is_empty() && !last {
                return problem("it has an empty segment (`//`)".to_owned(), None);
            }
            if matches!(segment, "." | "..") {
                let message = format!("a normalized path has no `{segment}` segment");
                return problem(message, None);
            }
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%".contains(&b);
            if !segment.bytes().all(plain) {
                let message = format!("`{segment}` has characters that are not allowed in a path");
                return problem(
                    message,
                    Some("remove a query, and percent-encode other characters"),
                );
            }
            parts.push(Part::Literal(segment));
            continue;
        };
        let name = inside.strip_suffix('*').unwrap_or(inside);
        let word = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if !word(name) {
            let message = format!("`{name}` is not a parameter name");
            return problem(
                message,
                Some("use letters, digits and `_`, without a leading digit"),
            );
        }
        if !names.insert(name) {
            return problem(format!("duplicate parameter `{name}`"), None);
        }
        if inside.ends_with('*') {
            if !last {
                let message =
                    format!("`{segment}` matches the rest of the path, so nothing can follow it");
                return problem(message, None);
            }
            parts.push(Part::Rest);
        } else {
            parts.push(Part::Parameter);
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_differ_only_in_parameter_names_are_equal() {
        assert_eq!(template("/orders/{id}"), template("/orders/{order}"));
        assert_ne!(template("/orders/{id}"), template("/orders/id"));
        assert_ne!(template("/orders/{id}"), template("/orders/{rest*}"));
        assert_ne!(template("/orders"), template("/orders/"));
        assert!(template("/").is_ok());
    }

    #[test]
    fn a_path_that_could_never_match_is_not_a_template() {
        for path in [
            "",
            "orders",
            "/a//b",
            "/a/../b",
            "/a/./b",
            "/a?b",
            "/a#b",
            "/a b",
            "/{id",
            "/x{id}",
            "/{}",
            "/{*}",
            "/{1}",
            "/{a}/{a}",
            "/{rest*}/a",
            "/\u{e9}",
        ] {
            assert!(template(path).is_err(), "{path}");
        }
    }
}
