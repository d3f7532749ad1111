//! Does the request look right: sizes, methods, media types, routes, bodies.

mod body;
mod head;
pub mod json;
mod route;
mod template;
mod violation;

pub use body::BodyRule;
pub use head::HeadFacts;
pub(crate) use head::{check_head, max_body};
pub use route::RouteMatch;
pub(crate) use route::Router;
pub use violation::Violation;

/// Whether a text is a path template, for fuzzing and for editors.
///
/// # Errors
/// A sentence that says why not.
pub fn check_template(text: &str) -> Result<(), String> {
    template::Template::parse(text).map(drop)
}

#[cfg(test)]
mod tests;
