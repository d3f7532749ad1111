//! The names that a document's policies mention, so that callers can check that they exist and collect their values.

use cedar_policy::pst::{self, Clause, EntityOrSlot, Literal, Var};

use crate::{
    ast::{attribute_path, children},
    problem::place,
    schema::quoted,
};

/// The names that one document uses, each once, in order of appearance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mentions {
    /// Entities, such as `Workload::"shop/orders"`.
    pub entities: Vec<EntityMention>,
    /// `context.headers` that are read.
    pub headers: Vec<String>,
    /// `context.query` parameters that are read.
    pub query: Vec<String>,
    /// `context.params` that are read.
    pub params: Vec<String>,
    /// `context.user.claims` that are read.
    pub claims: Vec<String>,
}

/// An entity that a policy mentions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityMention {
    /// The type, such as `WorkloadGroup`.
    pub kind: String,
    /// The id, such as `backoffice`.
    pub id: String,
    /// Line within the document's text, from 1.
    pub line: u32,
    /// Column within the document's text, from 1.
    pub column: u32,
}

impl Mentions {
    /// The ids of all mentioned entities of a type, such as `WorkloadGroup`.
    pub fn ids<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.entities
            .iter()
            .filter(move |entity| entity.kind == kind)
            .map(|entity| entity.id.as_str())
    }

    pub(crate) fn find<'a>(text: &str, policies: impl Iterator<Item = &'a pst::Template>) -> Self {
        let mut found = Self::default();
        for policy in policies {
            found.scope(text, policy);
            for clause in policy.clauses() {
                let (Clause::When(condition) | Clause::Unless(condition)) = clause;
                found.expression(text, condition);
            }
        }
        found
    }

    fn scope(&mut self, text: &str, policy: &pst::Template) {
        use pst::{ActionConstraint, PrincipalConstraint as P, ResourceConstraint as R};
        if let P::Eq(of) | P::In(of) | P::IsIn(_, of) = &policy.principal {
            self.scoped(text, of);
        }
        match &policy.action {
            ActionConstraint::Any => {}
            ActionConstraint::Eq(uid) => self.entity(text, uid),
            ActionConstraint::In(uids) => {
                for uid in uids {
                    self.entity(text, uid);
                }
            }
        }
        if let R::Eq(of) | R::In(of) | R::IsIn(_, of) = &policy.resource {
            self.scoped(text, of);
        }
    }

    fn scoped(&mut self, text: &str, of: &EntityOrSlot) {
        if let EntityOrSlot::Entity(uid) = of {
            self.entity(text, uid);
        }
    }

    fn entity(&mut self, text: &str, uid: &pst::EntityUID) {
        let (kind, id) = (uid.ty.to_string(), uid.eid.to_string());
        if self
            .entities
            .iter()
            .any(|own| own.kind == kind && own.id == id)
        {
            return;
        }
        let written = format!("{kind}::{}", quoted(&id));
        let (line, column) = place(text, text.find(&written).unwrap_or(0));
        self.entities.push(EntityMention {
            kind,
            id,
            line,
            column,
        });
    }

    fn attribute(&mut self, path: &(&Var, Vec<&str>)) {
        let (Var::Context, names) = path else { return };
        let (list, name) = match names.as_slice() {
            ["headers", name] => (&mut self.headers, name),
            ["query", name] => (&mut self.query, name),
            ["params", name] => (&mut self.params, name),
            ["user", "claims", name] => (&mut self.claims, name),
            _ => return,
        };
        if !list.iter().any(|own| own == name) {
            list.push((*name).to_owned());
        }
    }

    /// Visits every node with an explicit stack: the depth of conditions is not bounded.
    fn expression(&mut self, text: &str, root: &pst::Expr) {
        let mut rest = vec![root];
        while let Some(tree) = rest.pop() {
            if let Some(path) = attribute_path(tree) {
                self.attribute(&path);
            }
            match tree {
                pst::Expr::Literal(Literal::EntityUID(uid)) => self.entity(text, uid),
                pst::Expr::HasAttr { expr, attrs } => {
                    if let Some(mut path) = attribute_path(expr) {
                        for attr in attrs.iter() {
                            path.1.push(attr);
                            self.attribute(&path);
                        }
                    }
                }
                _ => {}
            }
            children(tree, &mut rest);
        }
    }
}
