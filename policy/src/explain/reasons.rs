//! Finds why a policy does not hold: the part of its scope or condition that is false, and the values it was
//! evaluated on.

use std::str::FromStr;

use cedar_policy::{
    EvalResult, Expression, eval_expression,
    pst::{
        self, ActionConstraint, BinaryOp, Clause, PrincipalConstraint, ResourceConstraint, UnaryOp,
    },
};

use super::outcome::PolicyOutcome;
use crate::{
    ast::{attribute_path, children},
    cedar::Inputs,
    document::Policy,
    matcher::Verdict,
};

/// Maximum length of a displayed value or condition, in characters.
const MAX_TEXT: usize = 200;
/// Maximum number of values that are shown.
const MAX_VALUES: usize = 4;

pub(super) fn outcome(policy: &Policy, inputs: &Inputs) -> PolicyOutcome {
    let (verdict, error) = inputs.evaluate_policy(&policy.cedar);
    if verdict != Verdict::DoesNotHold {
        return (verdict, error).into();
    }
    let tree = policy.pst.body();
    out_of_scope(tree, inputs)
        .or_else(|| false_condition(tree, inputs))
        .unwrap_or_else(|| (verdict, error).into())
}

fn out_of_scope(policy: &pst::Template, inputs: &Inputs) -> Option<PolicyOutcome> {
    let principal = match &policy.principal {
        PrincipalConstraint::Any => None,
        constraint => Some(constraint.to_string()),
    };
    let action = match &policy.action {
        ActionConstraint::Any => None,
        constraint => Some(constraint.to_string()),
    };
    let resource = match &policy.resource {
        ResourceConstraint::Any => None,
        constraint => Some(constraint.to_string()),
    };
    [
        ("principal", principal),
        ("action", action),
        ("resource", resource),
    ]
    .into_iter()
    .filter_map(|(part, wants)| Some((part, wants?)))
    .find(|(part, wants)| {
        evaluate(inputs, &format!("{part} {wants}")) == Some(EvalResult::Bool(false))
    })
    .map(|(part, wants)| PolicyOutcome::OutOfScope {
        part: part.to_owned(),
        wants: truncate(&format!("{part} {wants}")),
        saw: evaluate(inputs, part).map_or_else(|| "unknown".to_owned(), |value| render(&value)),
    })
}

/// The first part of the condition, in the order of evaluation, that is false.
fn false_condition(policy: &pst::Template, inputs: &Inputs) -> Option<PolicyOutcome> {
    let mut parts = Vec::new();
    for clause in policy.clauses() {
        match clause {
            Clause::When(condition) => conjuncts(condition, false, &mut parts),
            Clause::Unless(condition) => conjuncts(condition, true, &mut parts),
        }
    }
    parts.into_iter().find_map(|(tree, negated)| {
        let text = if negated {
            format!("!({tree})")
        } else {
            tree.to_string()
        };
        match evaluate(inputs, &text)? {
            EvalResult::Bool(false) => Some(PolicyOutcome::ConditionFalse {
                condition: truncate(&text),
                saw: observed(tree, inputs),
            }),
            _ => None,
        }
    })
}

/// Splits a condition into the parts that must all hold: `a && b` has two, and so has `!(a || b)`.
fn conjuncts<'a>(root: &'a pst::Expr, negated: bool, into: &mut Vec<(&'a pst::Expr, bool)>) {
    let mut rest = vec![(root, negated)];
    while let Some((tree, negated)) = rest.pop() {
        match tree {
            pst::Expr::UnaryOp {
                op: UnaryOp::Not,
                expr,
            } => rest.push((expr, !negated)),
            pst::Expr::BinaryOp { op, left, right }
                if (*op == BinaryOp::And && !negated) || (*op == BinaryOp::Or && negated) =>
            {
                // Popped from the end: the left one first.
                rest.push((right, negated));
                rest.push((left, negated));
            }
            _ => into.push((tree, negated)),
        }
    }
}

/// `context.path is "/x"`, for each fact that a part of a condition reads.
fn observed(root: &pst::Expr, inputs: &Inputs) -> Option<String> {
    let mut facts: Vec<String> = Vec::new();
    let mut rest = vec![root];
    while let Some(tree) = rest.pop() {
        let is_fact = attribute_path(tree).is_some() && *tree != pst::Expr::Var(pst::Var::Context);
        let text = match tree {
            // `context has user` depends on whether `context.user` is present.
            pst::Expr::HasAttr { expr, attrs } => {
                let path: Vec<&str> = attrs.iter().map(|attr| attr.as_str()).collect();
                Some(format!("{expr}.{}", path.join(".")))
            }
            _ if is_fact => Some(tree.to_string()),
            _ => {
                children(tree, &mut rest);
                None
            }
        };
        if let Some(text) = text
            && !facts.contains(&text)
        {
            facts.push(text);
        }
    }
    let shown: Vec<String> = facts
        .iter()
        .take(MAX_VALUES)
        .map(|fact| match evaluate(inputs, fact) {
            Some(value) => format!("{fact} is {}", render(&value)),
            None => format!("{fact} is absent"),
        })
        .collect();
    (!shown.is_empty()).then(|| shown.join(", "))
}

fn evaluate(inputs: &Inputs, text: &str) -> Option<EvalResult> {
    let expression = Expression::from_str(text).ok()?;
    eval_expression(&inputs.request, &inputs.entities, &expression).ok()
}

fn render(value: &EvalResult) -> String {
    truncate(&match value {
        EvalResult::Record(_) => "a record".to_owned(),
        other => other.to_string(),
    })
}

fn truncate(text: &str) -> String {
    if text.chars().count() <= MAX_TEXT {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(MAX_TEXT).collect();
    short.push('…');
    short
}
