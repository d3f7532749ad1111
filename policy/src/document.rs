//! Parses policy text, names the policies, validates them against the schema and lints them.

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
    sync::Arc,
};

use cedar_policy::{
    PolicyId, PolicySet, Schema, ValidationMode, Validator,
    ffi::DetailedError,
    pst::{self, ActionConstraint, PrincipalConstraint, ResourceConstraint},
};
use merlon_config::{
    name::Namespace,
    snapshot::{PolicyDocument, PolicyName},
};

use crate::{
    contain,
    decision::{Effect, PolicyInfo},
    mention::Mentions,
    problem::PolicyProblem,
    stack,
    text::statements,
};

/// At most this many problems of one document are reported.
const MAX_PROBLEMS: usize = 100;

/// A policy with its name.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) info: Arc<PolicyInfo>,
    /// Its id is the text of its [`PolicyName`].
    pub(crate) cedar: cedar_policy::Policy,
    pub(crate) pst: pst::Policy,
    /// Byte offset in its document's text.
    start: usize,
}

/// A document with its policies, in source order.
#[derive(Debug)]
pub(crate) struct Parsed<'a> {
    pub(crate) document: &'a PolicyDocument,
    pub(crate) policies: Vec<Policy>,
    pub(crate) mentions: Mentions,
}

impl<'a> Parsed<'a> {
    /// Parses a document and names its policies.
    pub(crate) fn new(document: &'a PolicyDocument) -> Result<Self, Vec<PolicyProblem>> {
        let problem =
            |message: String| PolicyProblem::new(&document.name, message).origin(&document.origin);
        let starts = statements(&document.text).map_err(|excesses| {
            let excesses = excesses.into_iter().take(MAX_PROBLEMS);
            excesses
                .map(|excess| {
                    let problem = problem(excess.message).hint(excess.hint);
                    match excess.at {
                        Some(at) => problem.at(&document.text, at),
                        None => problem,
                    }
                })
                .collect::<Vec<_>>()
        })?;
        let set = PolicySet::from_str(&document.text)
            .map_err(|error| problems_of(document, &DetailedError::from(&error)))?;
        let at = |number: usize| starts.get(number).copied().unwrap_or(0);
        if let Some(template) = set.templates().next() {
            let start = at(number_of(template.id()));
            return Err(vec![
                problem(
                    "templates are not supported: `?principal` and `?resource` need a value"
                        .to_owned(),
                )
                .at(&document.text, start),
            ]);
        }
        let mut numbered: Vec<(usize, &cedar_policy::Policy)> = set
            .policies()
            .map(|policy| (number_of(policy.id()), policy))
            .collect();
        numbered.sort_by_key(|(number, _)| *number);

        let mut policies = Vec::new();
        let mut problems = Vec::new();
        for (number, policy) in numbered {
            match name_policy(document, policy, at(number)) {
                Ok(policy) => policies.push(policy),
                Err(found) if problems.len() < MAX_PROBLEMS => problems.push(
                    found
                        .at(&document.text, at(number))
                        .origin(&document.origin),
                ),
                Err(_) => {}
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mentions = Mentions::find(
            &document.text,
            policies.iter().map(|policy| policy.pst.body()),
        );
        for header in &mentions.headers {
            if problems.len() < MAX_PROBLEMS && header.bytes().any(|byte| byte.is_ascii_uppercase())
            {
                problems.push(
                    problem(format!(
                        "header names in policies must be lower case, `{header}` is not"
                    ))
                    .at(
                        &document.text,
                        document.text.find(header.as_str()).unwrap_or(0),
                    )
                    .hint(format!("write `{}`", header.to_ascii_lowercase())),
                );
            }
        }
        if problems.is_empty() {
            Ok(Self {
                document,
                policies,
                mentions,
            })
        } else {
            Err(problems)
        }
    }

    /// Checks what Merlon requires of policies beyond Cedar.
    fn lint(&self, problems: &mut Vec<PolicyProblem>) {
        for policy in &self.policies {
            if permits_everything(policy.pst.body()) && policy.info.reason.is_none() {
                problems.push(
                    PolicyProblem::new(
                        &self.document.name,
                        format!("`{}` permits every request", policy.info.name.id),
                    )
                    .at(&self.document.text, policy.start)
                    .origin(&self.document.origin)
                    .hint("restrict the principal, the action or the condition, or state the reason with `@reason(\"…\")`"),
                );
            }
        }
    }
}

impl Mentions {
    /// The names that `document` mentions.
    ///
    /// # Errors
    /// When its text exceeds a bound or is not Cedar, or a policy has no name.
    pub fn of(document: &PolicyDocument) -> Result<Self, Vec<PolicyProblem>> {
        contain::document(&document.name, &document.origin, || {
            stack::with(|| Ok(Parsed::new(document)?.mentions))
        })
    }
}

/// Checks parsed documents together: strict validation against the schema, the lints, and that each `@id` is unique in
/// its namespace.
pub(crate) fn check(documents: &[Parsed<'_>], schema: &Schema) -> Vec<PolicyProblem> {
    let mut problems = Vec::new();
    let mut seen: BTreeMap<(&Namespace, &str), &PolicyName> = BTreeMap::new();
    let mut set = PolicySet::new();
    let mut by_id = BTreeMap::new();
    for document in documents {
        document.lint(&mut problems);
        for policy in &document.policies {
            let name = &policy.info.name;
            if let Some(first) = seen.insert((&name.document.namespace, &name.id), name) {
                problems.push(
                    PolicyProblem::new(
                        &document.document.name,
                        format!(
                            "the id `{}` is used twice in the namespace `{}`",
                            name.id, name.document.namespace
                        ),
                    )
                    .at(&document.document.text, policy.start)
                    .origin(&document.document.origin)
                    .hint(format!("the other policy is `{first}`")),
                );
                continue;
            }
            by_id.insert(policy.cedar.id().clone(), (document.document, policy.start));
            // Duplicates were skipped above.
            let _ = set.add(policy.cedar.clone());
        }
    }
    let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
    let mut found: Vec<(&PolicyId, DetailedError)> = result
        .validation_errors()
        .map(|error| (error.policy_id(), DetailedError::from(error)))
        .collect();
    // To Cedar an impossible policy is only a warning, but an impossible forbid leaves a hole. A policy that also has an
    // error is impossible because of that error.
    let wrong: BTreeSet<&PolicyId> = found.iter().map(|(id, _)| *id).collect();
    found.extend(
        result
            .validation_warnings()
            .filter(|warning| !wrong.contains(warning.policy_id()))
            .map(|warning| (warning.policy_id(), DetailedError::from(warning))),
    );
    for (id, error) in found {
        if let Some((document, start)) = by_id.get(id) {
            let mut placed = problems_of(document, &error);
            for problem in &mut placed {
                if problem.line == 0 {
                    *problem = problem.clone().at(&document.text, *start);
                }
                problem.message = strip_policy_prefix(&problem.message, id);
            }
            problems.append(&mut placed);
        }
    }
    problems
}

/// Removes Cedar's "for policy `…`, ": the problem's location already identifies the policy.
fn strip_policy_prefix(message: &str, id: &PolicyId) -> String {
    let id: &str = id.as_ref();
    message
        .strip_prefix(&format!("for policy `{id}`, "))
        .unwrap_or(message)
        .to_owned()
}

fn name_policy(
    document: &PolicyDocument,
    policy: &cedar_policy::Policy,
    start: usize,
) -> Result<Policy, Box<PolicyProblem>> {
    let problem = |message: &str| PolicyProblem::new(&document.name, message);
    let annotation = |name: &str| {
        policy
            .annotation(name)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let id = annotation("id").ok_or_else(|| {
        Box::new(
            problem("the policy has no `@id`")
                .hint("add `@id(\"a-name\")` before the policy: decisions and logs show this name"),
        )
    })?;
    if id.len() > 128
        || !id.bytes().all(
            |byte| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.'),
        )
    {
        return Err(Box::new(problem(
            "`@id` must be 1 to 128 letters, digits, `-`, `_` or `.`",
        )));
    }
    let name = PolicyName {
        document: document.name.clone(),
        id,
    };
    let cedar = policy.new_id(PolicyId::new(name.to_string()));
    let pst = cedar
        .to_pst()
        .map_err(|error| Box::new(problem(&format!("the policy cannot be read: {error}"))))?;
    let effect = match policy.effect() {
        cedar_policy::Effect::Permit => Effect::Permit,
        cedar_policy::Effect::Forbid => Effect::Forbid,
    };
    Ok(Policy {
        info: Arc::new(PolicyInfo {
            name,
            effect,
            reason: annotation("reason"),
            owner: annotation("owner"),
            docs: annotation("docs"),
        }),
        cedar,
        pst,
        start,
    })
}

fn permits_everything(policy: &pst::Template) -> bool {
    policy.effect == pst::Effect::Permit
        && matches!(policy.principal, PrincipalConstraint::Any)
        && matches!(policy.action, ActionConstraint::Any)
        && matches!(policy.resource, ResourceConstraint::Any)
        && policy.clauses().is_empty()
}

/// Cedar numbers the policies of a text `policy0`, `policy1`, in source order.
fn number_of(id: &PolicyId) -> usize {
    let id: &str = id.as_ref();
    id.strip_prefix("policy")
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// Cedar's error and its related errors, with their locations in the text.
fn problems_of(document: &PolicyDocument, error: &DetailedError) -> Vec<PolicyProblem> {
    let mut all = vec![problem_of(document, error)];
    all.extend(
        error
            .related
            .iter()
            .take(MAX_PROBLEMS)
            .map(|related| problem_of(document, related)),
    );
    all
}

fn problem_of(document: &PolicyDocument, error: &DetailedError) -> PolicyProblem {
    let mut problem =
        PolicyProblem::new(&document.name, error.message.clone()).origin(&document.origin);
    if let Some(label) = error.source_locations.first() {
        problem = problem.at(&document.text, label.loc.start);
        if let Some(text) = label
            .label
            .as_ref()
            .filter(|text| !problem.message.contains(text.as_str()))
        {
            problem.message = format!("{}: {text}", problem.message);
        }
    }
    problem.hint = scope_hint(&problem.message).or_else(|| error.help.clone());
    problem
}

/// The hint for an attribute that only some kinds of request have. Cedar suggests a similar name, but the name is right
/// and the policy's scope is too wide.
fn scope_hint(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("attribute `")?;
    let (attribute, rest) = rest.split_once("` in context for Action::\"")?;
    let (action, _) = rest.split_once('"')?;
    let kind = |attribute: &str| match attribute {
        "path" | "route" | "params" | "query" => Some("http"),
        "service" => Some("grpc"),
        "sni" => Some("tcp"),
        _ => None,
    };
    let (what, scope) = match (kind(attribute), attribute, action) {
        (Some("http"), ..) => ("HTTP requests", "action in Action::\"http\""),
        (Some("grpc"), ..) => ("gRPC calls", "action == Action::\"grpc\""),
        (Some("tcp"), ..) => ("TCP connections", "action == Action::\"tcp\""),
        (None, "host" | "method" | "headers" | "user" | "clientIp", "tcp") => (
            "HTTP requests and gRPC calls",
            "action in [Action::\"http\", Action::\"grpc\"]",
        ),
        _ => return None,
    };
    Some(format!(
        "only {what} have `{attribute}`: restrict the policy's scope with `{scope}`"
    ))
}

#[cfg(test)]
mod tests;
