//! Walking Cedar's public syntax tree.

use cedar_policy::pst::{self, Var};

/// `context.a.b` as its variable and names.
pub(crate) fn attribute_path(tree: &pst::Expr) -> Option<(&Var, Vec<&str>)> {
    let mut names = Vec::new();
    let mut at = tree;
    while let pst::Expr::GetAttr { expr, attr } = at {
        names.push(attr.as_str());
        at = expr;
    }
    let pst::Expr::Var(var) = at else { return None };
    names.reverse();
    Some((var, names))
}

/// Pushes the direct subexpressions of `tree` in reverse, so that popping `into` yields them first to last.
pub(crate) fn children<'a>(tree: &'a pst::Expr, into: &mut Vec<&'a pst::Expr>) {
    let before = into.len();
    match tree {
        pst::Expr::UnaryOp { expr, .. }
        | pst::Expr::GetAttr { expr, .. }
        | pst::Expr::HasAttr { expr, .. }
        | pst::Expr::Like { expr, .. } => into.push(expr),
        pst::Expr::BinaryOp { left, right, .. } => into.extend([&**left, &**right]),
        pst::Expr::Is { expr, in_expr, .. } => {
            into.push(expr);
            into.extend(in_expr.as_deref());
        }
        pst::Expr::IfThenElse {
            cond,
            then_expr,
            else_expr,
        } => into.extend([&**cond, &**then_expr, &**else_expr]),
        pst::Expr::Set(items) => into.extend(items.iter().map(|item| &**item)),
        pst::Expr::Record(fields) => into.extend(fields.values().map(|field| &**field)),
        _ => {}
    }
    // Callers pop from the end.
    if let Some(new) = into.get_mut(before..) {
        new.reverse();
    }
}
