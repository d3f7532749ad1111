//! Matches paths to templates.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use merlon_config::{
    resource::{RequestLimits, RequestValidationSpec, RouteRule, UnknownRoutes},
    snapshot::Attached,
};

use super::{
    schema::BodySchema,
    template::{MAX_PARAMS, Span, Template},
};
use crate::problem::PolicyProblem;

/// Maximum number of `RequestValidation` documents on one service. More are rejected when they are loaded.
const MAX_DOCUMENTS: usize = 8;
const NO_ROUTE: u16 = u16::MAX;

/// The path templates that a path matches. Created by [`crate::service::ServicePolicy::route`] for that service policy
/// only: another one detects that by the stamp and matches the path again.
#[derive(Debug, Clone, Copy)]
pub struct RouteMatch {
    stamp: u64,
    /// Per document, the matching route.
    chosen: [u16; MAX_DOCUMENTS],
    /// Per document, the rule of that route for the method.
    rules: [u16; MAX_DOCUMENTS],
    /// The document whose template is `context.route`.
    best: u16,
    /// The locations of its parameters in the path.
    spans: [Span; MAX_PARAMS],
}

impl RouteMatch {
    /// For requests without a path.
    pub const NONE: Self = Self {
        stamp: 0,
        chosen: [NO_ROUTE; MAX_DOCUMENTS],
        rules: [NO_ROUTE; MAX_DOCUMENTS],
        best: NO_ROUTE,
        spans: [Span { start: 0, end: 0 }; MAX_PARAMS],
    };
}

/// The routes of a service: those of each `RequestValidation` document, most specific first.
#[derive(Debug, Default)]
pub(crate) struct Router {
    stamp: u64,
    documents: Vec<Document>,
}

#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) limits: RequestLimits,
    pub(crate) unknown: UnknownRoutes,
    routes: Vec<Route>,
}

/// A template and its rules for different methods.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) template: Template,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) methods: Vec<String>,
    /// Lower case, without parameters.
    pub(crate) content_types: Vec<String>,
    pub(crate) body: Option<Arc<BodySchema>>,
    pub(crate) max_body: Option<u64>,
}

impl Router {
    pub(crate) fn new(
        documents: &[Attached<RequestValidationSpec>],
    ) -> Result<Self, Vec<PolicyProblem>> {
        // Each router has a number, so that a match of one is never used by another.
        static STAMP: AtomicU64 = AtomicU64::new(1);
        let mut router = Self {
            stamp: STAMP.fetch_add(1, Ordering::Relaxed),
            documents: Vec::new(),
        };
        let mut problems = Vec::new();
        for (number, document) in documents.iter().enumerate() {
            if number >= MAX_DOCUMENTS {
                problems.push(PolicyProblem::new(
                    &document.from,
                    format!("more than {MAX_DOCUMENTS} RequestValidations apply to one service"),
                ));
            }
            router
                .documents
                .push(Document::new(document, &mut problems));
        }
        if problems.is_empty() {
            Ok(router)
        } else {
            Err(problems)
        }
    }

    /// Identifies this router, and the policy it belongs to, within the process.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp
    }

    pub(crate) fn find(&self, method: &str, path: &str) -> RouteMatch {
        let mut found = RouteMatch {
            stamp: self.stamp,
            ..RouteMatch::NONE
        };
        let mut best: Option<&Template> = None;
        let numbered = (0u16..)
            .zip(&self.documents)
            .zip(found.chosen.iter_mut().zip(&mut found.rules));
        for ((document_number, document), (chosen, rule)) in numbered {
            let fits = (0u16..)
                .zip(&document.routes)
                .find_map(|(number, route)| Some((number, route, route.template.matches(path)?)));
            let Some((number, route, spans)) = fits else {
                continue;
            };
            *chosen = number;
            *rule = (0u16..)
                .zip(&route.rules)
                .find_map(|(number, rule)| rule.accepts(method).then_some(number))
                .unwrap_or(NO_ROUTE);
            if best.is_none_or(|best| route.template.precedence(best).is_lt()) {
                best = Some(&route.template);
                found.best = document_number;
                found.spans = spans;
            }
        }
        found
    }

    pub(crate) fn owns(&self, route: &RouteMatch) -> bool {
        route.stamp == self.stamp
    }

    /// The text of the most specific template.
    pub(crate) fn template(&self, route: &RouteMatch) -> Option<&str> {
        Some(self.best(route)?.template.text())
    }

    /// The value of a parameter of the most specific template.
    pub(crate) fn param<'p>(
        &self,
        route: &RouteMatch,
        name: &str,
        path: &'p str,
    ) -> Option<&'p str> {
        let number = self
            .best(route)?
            .template
            .params()
            .position(|own| own == name)?;
        let span = route.spans.get(number)?;
        path.get(usize::from(span.start)..usize::from(span.end))
    }

    /// All parameters of the most specific template.
    pub(crate) fn all_params<'a>(
        &'a self,
        route: &'a RouteMatch,
        path: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.best(route)
            .into_iter()
            .flat_map(|best| best.template.params())
            .zip(&route.spans)
            .filter_map(move |(name, span)| {
                Some((
                    name,
                    path.get(usize::from(span.start)..usize::from(span.end))?,
                ))
            })
    }

    fn best(&self, route: &RouteMatch) -> Option<&Route> {
        if !self.owns(route) {
            return None;
        }
        let document = usize::from(route.best);
        let number = *route.chosen.get(document)?;
        self.documents
            .get(document)?
            .routes
            .get(usize::from(number))
    }

    /// Each document with its matching route, and that route's rule for the method.
    pub(crate) fn documents<'a>(
        &'a self,
        route: &'a RouteMatch,
    ) -> impl Iterator<Item = (&'a Document, Option<(&'a Route, Option<&'a Rule>)>)> {
        let owned = self.owns(route);
        self.documents
            .iter()
            .zip(route.chosen.iter().zip(&route.rules))
            .map(move |(document, (number, rule))| {
                let chosen = owned
                    .then(|| document.routes.get(usize::from(*number)))
                    .flatten();
                let chosen = chosen.map(|route| (route, route.rules.get(usize::from(*rule))));
                (document, chosen)
            })
    }
}

impl Document {
    fn new(document: &Attached<RequestValidationSpec>, problems: &mut Vec<PolicyProblem>) -> Self {
        let spec = &document.spec;
        let mut routes: Vec<Route> = Vec::new();
        for (number, rule) in spec.routes.iter().enumerate() {
            let field = |name: &str| format!("spec.routes[{number}].{name}");
            let problem = |name: &str, message: String| {
                PolicyProblem::new(&document.from, message).field(field(name))
            };
            let template = match Template::parse(&rule.path) {
                Ok(template) => template,
                Err(message) => {
                    problems.push(problem("path", message));
                    continue;
                }
            };
            let body = match rule.body.as_ref().map(BodySchema::new).transpose() {
                Ok(body) => body.map(Arc::new),
                Err(message) => {
                    problems.push(problem("body", message));
                    continue;
                }
            };
            let rule = Rule::new(rule, body);
            let place = routes
                .iter()
                .position(|route| route.template.text() == template.text());
            match place.and_then(|place| routes.get_mut(place)) {
                None => routes.push(Route {
                    template,
                    rules: vec![rule],
                }),
                Some(route) => {
                    if route.rules.iter().any(|other| other.overlaps(&rule)) {
                        problems.push(problem(
                            "methods",
                            format!(
                                "two rules for `{}` have a method in common",
                                template.text()
                            ),
                        ));
                    }
                    route.rules.push(rule);
                }
            }
        }
        routes.sort_by(|a, b| a.template.precedence(&b.template));
        if routes.len() >= usize::from(NO_ROUTE) {
            problems.push(PolicyProblem::new(
                &document.from,
                "the document has more than 65,534 routes",
            ));
        }
        Self {
            limits: spec.limits,
            unknown: spec.unknown_routes,
            routes,
        }
    }
}

impl Route {
    /// All its methods, for `Allow`.
    pub(crate) fn methods(&self) -> Vec<String> {
        let mut all: Vec<String> = self
            .rules
            .iter()
            .flat_map(|rule| rule.methods.clone())
            .collect();
        all.sort();
        all.dedup();
        all
    }
}

impl Rule {
    fn new(rule: &RouteRule, body: Option<Arc<BodySchema>>) -> Self {
        /// Default limit for a body that is buffered.
        const DEFAULT_BODY: u64 = 1 << 20;
        Self {
            methods: rule.methods.clone(),
            content_types: rule
                .content_types
                .iter()
                .map(|name| name.to_ascii_lowercase())
                .collect(),
            max_body: rule
                .max_body
                .map(|size| size.0)
                .or(body.is_some().then_some(DEFAULT_BODY)),
            body,
        }
    }

    fn accepts(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|own| own == method)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.methods.is_empty()
            || other.methods.is_empty()
            || self
                .methods
                .iter()
                .any(|method| other.methods.contains(method))
    }
}
