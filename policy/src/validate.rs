//! Request validation: sizes, methods, media types, routes, bodies.

mod body;
mod head;
mod in_place;
pub mod json;
mod media_type;
mod node;
mod numbers;
mod route;
mod schema;
mod tape;
mod template;
mod violation;

use merlon_config::resource::RequestValidationSpec;

pub use body::{BodyRule, MAX_VISITS, TooCostly};
pub use head::HeadFacts;
pub(crate) use head::{check_head, max_body};
pub(crate) use media_type::{essence, is_json};
pub use route::RouteMatch;
pub(crate) use route::Router;
pub use violation::Violation;

/// Checks whether a text is a path template, for fuzzing and for editors.
///
/// # Errors
/// The reason, when it is not.
pub fn check_template(text: &str) -> Result<(), String> {
    template::Template::parse(text).map(drop)
}

/// The parameters that a document's path templates declare: `id` of `/orders/{id}`, `rest` of `/{rest*}`. Includes those
/// of invalid templates.
pub fn params(spec: &RequestValidationSpec) -> impl Iterator<Item = &str> {
    spec.routes.iter().flat_map(|route| {
        route.path.split('/').filter_map(|segment| {
            let name = segment.strip_prefix('{')?.strip_suffix('}')?;
            Some(name.strip_suffix('*').unwrap_or(name))
        })
    })
}

#[cfg(test)]
mod tests;
