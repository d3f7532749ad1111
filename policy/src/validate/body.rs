use super::{
    head::{max_body, too_large},
    json,
    media_type::is_json,
    numbers,
    route::{RouteMatch, Router},
    schema::BodySchema,
    violation::Violation,
};

/// The rule for a body that is validated before it is forwarded.
#[derive(Debug, Clone)]
pub struct BodyRule<'a> {
    max_bytes: u64,
    schemas: Vec<&'a BodySchema>,
}

impl<'a> BodyRule<'a> {
    pub(crate) fn new(router: &'a Router, route: &'a RouteMatch) -> Option<Self> {
        let schemas: Vec<&BodySchema> = router
            .documents(route)
            .filter_map(|(_, chosen)| chosen?.1?.body.as_ref())
            .collect();
        (!schemas.is_empty()).then(|| Self {
            max_bytes: max_body(router, route).unwrap_or(1 << 20),
            schemas,
        })
    }

    /// Maximum size in bytes, which is buffered. A larger body gets 413.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Checks the whole body: unambiguous JSON (RFC 8259 §4) that matches every schema.
    ///
    /// # Errors
    /// The first violation, with its JSON pointer.
    pub fn check(&self, bytes: &[u8], content_type: Option<&str>) -> Result<(), Violation> {
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > self.max_bytes {
            return Err(too_large(self.max_bytes));
        }
        if !content_type.is_some_and(is_json) {
            return Err(Violation::new(
                415,
                "http.media_type",
                "the body must be application/json",
            )
            .at("content-type"));
        }
        let body = json::parse(bytes).map_err(|problem| {
            Violation::new(
                400,
                "validate.body",
                format!("the body is not valid JSON: {problem}"),
            )
            .at(problem.pointer())
        })?;
        if self.schemas.iter().any(|schema| schema.bounds_numbers) {
            numbers::check(bytes)?;
        }
        self.schemas
            .iter()
            .try_for_each(|schema| schema.check(&body))
    }
}
