use std::collections::HashSet;

use super::{
    Checker,
    text::{is_token, method_problem},
};
use crate::{
    resource::{RequestValidationSpec, Resource, RouteRule},
    unit::Size,
};

const MOST_HEADERS: Size = Size(64 << 10);
const MOST_URI: Size = Size(8 << 10);
const MOST_CHECKED_BODY: Size = Size(16 << 20);

impl<'a> Checker<'a, '_> {
    pub(super) fn validation(&mut self, resource: &'a Resource, spec: &'a RequestValidationSpec) {
        self.size(
            resource,
            "spec.limits.headers",
            spec.limits.headers,
            MOST_HEADERS,
        );
        self.size(resource, "spec.limits.uri", spec.limits.uri, MOST_URI);
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

    fn size(&mut self, resource: &Resource, field: &str, size: Size, most: Size) {
        let name = field.rsplit('.').next().unwrap_or(field);
        if size.0 == 0 {
            let message = format!("`{name}` of 0 bytes would refuse every request");
            self.error(resource, field, message);
        } else if size > most {
            self.error(
                resource,
                field,
                format!("`{name}` must be at most {most}, not {size}"),
            );
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
        self.twice(resource, "methods", methods);
        for (index, kind) in route.content_types.iter().enumerate() {
            let field = format!("{field}.contentTypes[{index}]");
            let halves = kind.split_once('/');
            if !halves.is_some_and(|(kind, subkind)| is_token(kind) && is_token(subkind)) {
                let message = format!("`{kind}` is not a media type");
                self.error(resource, &field, message)
                    .hint("write it without parameters, as `application/json`");
            } else if kind.contains('*') || kind.bytes().any(|b| b.is_ascii_uppercase()) {
                let message = format!("`{kind}` is compared exactly, and no request would fit it");
                self.error(resource, &field, message)
                    .hint("name each type, in lower case");
            }
        }
        let most = route.max_body.or(*body);
        if let (Some(_), Some(most)) = (&route.body, most)
            && most > MOST_CHECKED_BODY
        {
            let message = format!(
                "a body that is checked is held whole, so that it may have {MOST_CHECKED_BODY} at most, not {most}"
            );
            let at = if route.max_body.is_some() {
                format!("{field}.maxBody")
            } else {
                "spec.limits.body".to_owned()
            };
            self.error(resource, &at, message);
        }
        if route.max_body == Some(Size(0)) && route.body.is_some() {
            let message = "no JSON fits into 0 bytes";
            self.error(resource, &format!("{field}.maxBody"), message);
        }
    }

    /// Two routes that fit the same requests: which of them counts would be chance.
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
                    "`{}` fits the same requests as `{}`",
                    route.path, other.path
                );
                let hint = format!(
                    "they are `spec.routes[{first}]` and this: join them, or give them different methods"
                );
                self.error(resource, &format!("spec.routes[{index}].path"), message)
                    .hint(hint);
            }
        }
    }
}

/// A part of a template, with the names of parameters left out: what it fits.
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

/// What a template fits.
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
                let message = format!("in `{segment}` a parameter is not the whole segment");
                return problem(
                    message,
                    Some("a parameter stands between two slashes: `/orders/{id}/items`"),
                );
            }
            if segment.is_empty() && !last {
                return problem("it has an empty segment (`//`)".to_owned(), None);
            }
            if matches!(segment, "." | "..") {
                return problem(format!("`{segment}` never is in a normalised path"), None);
            }
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%".contains(&b);
            if !segment.bytes().all(plain) {
                let message = format!("`{segment}` has characters that no path has");
                return problem(
                    message,
                    Some("a query is not part of a path; others are percent-encoded"),
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
            let message = format!("`{name}` is not the name of a parameter");
            return problem(
                message,
                Some("letters, digits and `_`, the first not a digit"),
            );
        }
        if !names.insert(name) {
            return problem(format!("it has two parameters `{name}`"), None);
        }
        if inside.ends_with('*') {
            if !last {
                let message =
                    format!("`{segment}` takes all that is left, so nothing can follow it");
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
    fn a_template_is_what_it_fits_and_not_how_its_parameters_are_called() {
        assert_eq!(template("/orders/{id}"), template("/orders/{order}"));
        assert_ne!(template("/orders/{id}"), template("/orders/id"));
        assert_ne!(template("/orders/{id}"), template("/orders/{rest*}"));
        assert_ne!(template("/orders"), template("/orders/"));
        assert!(template("/").is_ok());
    }

    #[test]
    fn what_could_never_fit_is_not_a_template() {
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
