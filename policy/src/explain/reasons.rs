//! Why one policy does not hold: which part of its scope or condition, and what was there instead.

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

/// The longest text of a value or condition, in characters.
const MAX_TEXT: usize = 200;
/// How many values are shown at most.
const MAX_VALUES: usize = 4;

pub(super) fn outcome(policy: &Policy, inputs: &Inputs) -> PolicyOutcome {
    let (verdict, error) = inputs.ask_policy(&policy.cedar);
    if verdict != Verdict::DoesNot {
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
    .find(|(part, wants)| ask(inputs, &format!("{part} {wants}")) == Some(EvalResult::Bool(false)))
    .map(|(part, wants)| PolicyOutcome::OutOfScope {
        part: part.to_owned(),
        wants: cut(&format!("{part} {wants}")),
        saw: ask(inputs, part).map_or_else(|| "unknown".to_owned(), |value| shown(&value)),
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
        match ask(inputs, &text)? {
            EvalResult::Bool(false) => Some(PolicyOutcome::ConditionFalse {
                condition: cut(&text),
                saw: seen(tree, inputs),
            }),
            _ => None,
        }
    })
}

/// What must all hold: `a && b` is two, and so is `!(a || b)`.
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
                // Taken from the end: the left one first.
                rest.push((right, negated));
                rest.push((left, negated));
            }
            _ => into.push((tree, negated)),
        }
    }
}

/// `context.path is "/x"`, for the facts that a part of a condition asks for.
fn seen(root: &pst::Expr, inputs: &Inputs) -> Option<String> {
    let mut facts: Vec<String> = Vec::new();
    let mut rest = vec![root];
    while let Some(tree) = rest.pop() {
        let is_fact = attribute_path(tree).is_some() && *tree != pst::Expr::Var(pst::Var::Context);
        let text = match tree {
            // `context has user` is seen by whether there is one.
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
        .map(|fact| match ask(inputs, fact) {
            Some(value) => format!("{fact} is {}", shown(&value)),
            None => format!("{fact} is absent"),
        })
        .collect();
    (!shown.is_empty()).then(|| shown.join(", "))
}

fn ask(inputs: &Inputs, text: &str) -> Option<EvalResult> {
    let expression = Expression::from_str(text).ok()?;
    eval_expression(&inputs.request, &inputs.entities, &expression).ok()
}

fn shown(value: &EvalResult) -> String {
    cut(&match value {
        EvalResult::Record(_) => "a record".to_owned(),
        other => other.to_string(),
    })
}

fn cut(text: &str) -> String {
    if text.chars().count() <= MAX_TEXT {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(MAX_TEXT).collect();
    short.push('…');
    short
}
