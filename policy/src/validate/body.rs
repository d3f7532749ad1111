use std::sync::Arc;

use merlon_config::stack;

use super::{
    head::{max_body, too_large},
    media_type::is_json,
    numbers,
    route::{RouteMatch, Router},
    schema::BodySchema,
    tape::Tape,
    violation::Violation,
};
use crate::stack::EVALUATION;

/// How often the values of one body may be visited, by all schemas together. A visit is one question about one value, and
/// takes about 20 ns; a string counts once more for every 64 bytes. A recursive schema with alternatives can visit values
/// exponentially often.
pub const MAX_VISITS: u64 = 1_000_000;

/// The rule for a body that is validated before it is forwarded.
#[derive(Debug, Clone)]
pub struct BodyRule {
    max_bytes: u64,
    schemas: Vec<Arc<BodySchema>>,
}

/// The body needs more visits than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooCostly;

impl BodyRule {
    pub(crate) fn new(router: &Router, route: &RouteMatch) -> Option<Self> {
        let schemas: Vec<Arc<BodySchema>> = router
            .documents(route)
            .filter_map(|(_, chosen)| chosen?.1?.body.clone())
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
    /// The first violation, with its JSON pointer. A body that needs more than [`MAX_VISITS`] violates the rule.
    pub fn check(&self, bytes: &[u8], content_type: Option<&str>) -> Result<(), Violation> {
        self.check_within(MAX_VISITS, bytes, content_type)
            .unwrap_or_else(|TooCostly| {
                let message = format!(
                    "the body takes too long to be compared with its schema: its values would be visited more than {MAX_VISITS} times"
                );
                Err(Violation::new(400, "validate.body", message).at(""))
            })
    }

    /// Like [`BodyRule::check`], with fewer visits, so that it takes little time.
    ///
    /// # Errors
    /// The result is not known yet.
    pub fn check_within(
        &self,
        visits: u64,
        bytes: &[u8],
        content_type: Option<&str>,
    ) -> Result<Result<(), Violation>, TooCostly> {
        match self.read(bytes, content_type) {
            Ok(body) => stack::with(EVALUATION, || self.compare(&body, visits)),
            Err(violation) => Ok(Err(violation)),
        }
    }

    /// The body, if it is JSON that every parser reads alike.
    fn read<'a>(&self, bytes: &'a [u8], content_type: Option<&str>) -> Result<Tape<'a>, Violation> {
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > self.max_bytes {
            return Err(too_large(self.max_bytes));
        }
        if !content_type.is_some_and(is_json) {
            let message = "the body must be application/json";
            return Err(Violation::new(415, "http.media_type", message).at("content-type"));
        }
        let body = Tape::read(bytes).map_err(|problem| {
            let message = format!("the body is not valid JSON: {problem}");
            Violation::new(400, "validate.body", message).at(problem.pointer())
        })?;
        if self.schemas.iter().any(|schema| schema.bounds_numbers) {
            numbers::check(bytes)?;
        }
        Ok(body)
    }

    fn compare(&self, body: &Tape<'_>, visits: u64) -> Result<Result<(), Violation>, TooCostly> {
        body.allow(visits);
        for schema in &self.schemas {
            let matches = schema.matches(body);
            if body.is_spent() {
                return Err(TooCostly);
            }
            if !matches {
                return Ok(Err(schema.violation(body)));
            }
        }
        Ok(Ok(()))
    }
}
