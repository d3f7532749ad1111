//! The names that a document's policies mention, so that callers can check that they exist and collect their values.

use std::collections::{HashMap, HashSet};

use cedar_policy::pst::{self, Clause, EntityOrSlot, Literal, Var};

use crate::{
    ast::{attribute_path, children},
    problem::place,
    schema::quoted,
    text::{Token, tokens},
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
        let mut finder = Finder {
            text,
            places: entity_places(text),
            seen: HashSet::new(),
            found: Self::default(),
        };
        for policy in policies {
            finder.scope(policy);
            for clause in policy.clauses() {
                let (Clause::When(condition) | Clause::Unless(condition)) = clause;
                finder.expression(condition);
            }
        }
        finder.found
    }
}

/// The offset of the first `Kind::"id"` of each entity, by this text.
fn entity_places(text: &str) -> HashMap<&str, usize> {
    let mut places = HashMap::new();
    let mut path = None;
    for (at, token) in tokens(text) {
        match (token, path) {
            (Token::Word(_), None | Some((_, false))) => path = Some((at, false)),
            (Token::Word(_) | Token::Sign("::"), Some((start, _))) => {
                path = Some((start, token == Token::Sign("::")));
            }
            (Token::Text(literal), Some((start, true))) => {
                if let Some(written) = text.get(start..at + literal.len()) {
                    places.entry(written).or_insert(start);
                }
                path = None;
            }
            _ => path = None,
        }
    }
    places
}

/// Collects the mentions of one document in time proportional to its text.
struct Finder<'a> {
    text: &'a str,
    places: HashMap<&'a str, usize>,
    /// What was found before: entities as they are written, other names with their list.
    seen: HashSet<(&'static str, String)>,
    found: Mentions,
}

impl Finder<'_> {
    fn is_new(&mut self, list: &'static str, name: &str) -> bool {
        self.seen.insert((list, name.to_owned()))
    }

    fn scope(&mut self, policy: &pst::Template) {
        use pst::{ActionConstraint, PrincipalConstraint as P, ResourceConstraint as R};
        if let P::Eq(of) | P::In(of) | P::IsIn(_, of) = &policy.principal {
            self.scoped(of);
        }
        match &policy.action {
            ActionConstraint::Any => {}
            ActionConstraint::Eq(uid) => self.entity(uid),
            ActionConstraint::In(uids) => {
                for uid in uids {
                    self.entity(uid);
                }
            }
        }
        if let R::Eq(of) | R::In(of) | R::IsIn(_, of) = &policy.resource {
            self.scoped(of);
        }
    }

    fn scoped(&mut self, of: &EntityOrSlot) {
        if let EntityOrSlot::Entity(uid) = of {
            self.entity(uid);
        }
    }

    fn entity(&mut self, uid: &pst::EntityUID) {
        let (kind, id) = (uid.ty.to_string(), uid.eid.to_string());
        let written = format!("{kind}::{}", quoted(&id));
        if self.is_new("entities", &written) {
            let at = self.places.get(written.as_str()).copied().unwrap_or(0);
            let (line, column) = place(self.text, at);
            self.found.entities.push(EntityMention {
                kind,
                id,
                line,
                column,
            });
        }
    }

    fn attribute(&mut self, path: &(&Var, Vec<&str>)) {
        let (Var::Context, names) = path else { return };
        let (list, name) = match names.as_slice() {
            ["headers", name] => ("headers", name),
            ["query", name] => ("query", name),
            ["params", name] => ("params", name),
            ["user", "claims", name] => ("claims", name),
            _ => return,
        };
        if self.is_new(list, name) {
            let list = match list {
                "headers" => &mut self.found.headers,
                "query" => &mut self.found.query,
                "params" => &mut self.found.params,
                _ => &mut self.found.claims,
            };
            list.push((*name).to_owned());
        }
    }

    /// Visits every node with an explicit stack.
    fn expression(&mut self, root: &pst::Expr) {
        let mut rest = vec![root];
        while let Some(tree) = rest.pop() {
            if let Some(path) = attribute_path(tree) {
                self.attribute(&path);
            }
            match tree {
                pst::Expr::Literal(Literal::EntityUID(uid)) => self.entity(uid),
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
