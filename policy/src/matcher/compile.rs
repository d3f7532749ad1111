//! Compiles Cedar's public syntax tree to [`Expr`] and replaces what is known of the service with constants.

use std::{net::IpAddr, str::FromStr};

use cedar_policy::{
    Context, Entities, EntityUid, EvalResult, Expression, Request, eval_expression,
    pst::{self, BinaryOp, Literal, PatternElem, UnaryOp, Var},
};

use super::expr::{Expr, Fact, Pattern, Shape};
use crate::{
    ast::attribute_path,
    facts::Action,
    principal::{Entity, EntityKind},
};

/// The service that a matcher is compiled for.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) service: Entity,
    /// Every entity that contains the service: namespace, trust domain, service groups.
    pub(crate) ancestors: Vec<Entity>,
    pub(crate) namespace: Entity,
    /// The slots of header names, lower case.
    pub(crate) headers: Vec<Box<str>>,
    /// The slots of query parameters.
    pub(crate) query: Vec<Box<str>>,
}

/// The expression does not compile and is left to Cedar.
#[derive(Debug)]
pub(crate) struct Unsupported;

type CompileResult<T> = Result<T, Unsupported>;

/// Deeper conditions are left to Cedar, which bounds its own recursion.
const MAX_DEPTH: usize = 64;

impl Target {
    pub(crate) fn is_in(&self, entity: &Entity) -> bool {
        self.service == *entity || self.ancestors.contains(entity)
    }

    pub(crate) fn expr(&self, tree: &pst::Expr, depth: usize) -> CompileResult<Expr> {
        if depth > MAX_DEPTH {
            return Err(Unsupported);
        }
        let depth = depth + 1;
        if let Some(fact) = self.fact(tree) {
            return if fact.is_record() {
                Err(Unsupported)
            } else {
                Ok(Expr::Fact(fact))
            };
        }
        match tree {
            pst::Expr::Literal(literal) => match literal {
                Literal::Bool(value) => Ok(Expr::Bool(*value)),
                Literal::Long(value) => Ok(Expr::Long(*value)),
                Literal::String(value) => Ok(Expr::Str(value.as_str().into())),
                Literal::EntityUID(uid) => Ok(Expr::Entity(entity(uid)?)),
                _ => Err(Unsupported),
            },
            pst::Expr::Var(Var::Principal) => Ok(Expr::Principal),
            pst::Expr::Var(Var::Resource) => Ok(Expr::Entity(self.service.clone())),
            pst::Expr::GetAttr { expr, attr }
                if attr == "namespace" && **expr == pst::Expr::Var(Var::Resource) =>
            {
                Ok(Expr::Entity(self.namespace.clone()))
            }
            pst::Expr::Set(items) => self.set(items, depth),
            pst::Expr::UnaryOp { op, expr } => self.unary(*op, expr, depth),
            pst::Expr::BinaryOp {
                op: BinaryOp::And, ..
            } => Ok(Expr::and(self.chain(tree, BinaryOp::And, depth)?)),
            pst::Expr::BinaryOp {
                op: BinaryOp::Or, ..
            } => Ok(Expr::or(self.chain(tree, BinaryOp::Or, depth)?)),
            pst::Expr::BinaryOp { op, left, right } => self.binary(*op, left, right, depth),
            pst::Expr::HasAttr { expr, attrs } => {
                let mut path = attribute_path(expr).ok_or(Unsupported)?;
                let mut parts = Vec::new();
                for attr in attrs.iter() {
                    path.1.push(attr);
                    parts.push(Expr::Has(self.fact_named(&path).ok_or(Unsupported)?));
                }
                Ok(Expr::and(parts))
            }
            pst::Expr::Like { expr, pattern } => {
                let mut parts = vec![String::new()];
                for element in pattern {
                    match (element, parts.last_mut()) {
                        (PatternElem::Char(c), Some(part)) => part.push(*c),
                        _ => parts.push(String::new()),
                    }
                }
                Ok(Expr::Like(
                    Box::new(self.expr(expr, depth)?),
                    Pattern::new(parts),
                ))
            }
            pst::Expr::Is {
                expr,
                entity_type,
                in_expr,
            } => {
                let kind = entity_kind(entity_type)?;
                let is = match self.expr(expr, depth)? {
                    Expr::Principal => Expr::PrincipalIs(kind),
                    Expr::Entity(entity) => Expr::Bool(entity.kind == kind),
                    _ => return Err(Unsupported),
                };
                match in_expr {
                    None => Ok(is),
                    Some(of) => Ok(Expr::and([is, self.membership(expr, of, depth)?])),
                }
            }
            pst::Expr::IfThenElse {
                cond,
                then_expr,
                else_expr,
            } => match self.expr(cond, depth)? {
                Expr::Bool(true) => self.expr(then_expr, depth),
                Expr::Bool(false) => self.expr(else_expr, depth),
                cond => Ok(Expr::If(Box::new([
                    cond,
                    self.expr(then_expr, depth)?,
                    self.expr(else_expr, depth)?,
                ]))),
            },
            _ => Err(Unsupported),
        }
    }

    /// Splits a chain of `&&` or `||`, which is left-associative and of any length, without recursion.
    fn chain(&self, tree: &pst::Expr, wanted: BinaryOp, depth: usize) -> CompileResult<Vec<Expr>> {
        let mut parts = Vec::new();
        let mut rest = tree;
        while let pst::Expr::BinaryOp { op, left, right } = rest
            && *op == wanted
        {
            parts.push(self.expr(right, depth)?);
            rest = left;
        }
        parts.push(self.expr(rest, depth)?);
        parts.reverse();
        Ok(parts)
    }

    fn set(&self, items: &[std::sync::Arc<pst::Expr>], depth: usize) -> CompileResult<Expr> {
        let mut texts = Vec::new();
        let mut entities = Vec::new();
        for item in items {
            match self.expr(item, depth)? {
                Expr::Str(text) => texts.push(String::from(text)),
                Expr::Entity(entity) => entities.push(entity),
                _ => return Err(Unsupported),
            }
        }
        match (texts.is_empty(), entities.is_empty()) {
            (false, true) => Ok(Expr::Strs(texts)),
            (true, false) => Ok(Expr::Entities(entities)),
            _ => Err(Unsupported),
        }
    }

    fn unary(&self, op: UnaryOp, of: &pst::Expr, depth: usize) -> CompileResult<Expr> {
        const SECOND: i64 = 1_000;
        let inner = || Ok(Box::new(self.expr(of, depth)?));
        Ok(match op {
            UnaryOp::Not => self.expr(of, depth)?.negate(),
            UnaryOp::Neg => Expr::Neg(inner()?),
            UnaryOp::IsEmpty => Expr::IsEmpty(inner()?),
            UnaryOp::IsIPv4 => Expr::IsIpv4(inner()?),
            UnaryOp::IsIPV6 => Expr::IsIpv6(inner()?),
            UnaryOp::ToTime => Expr::ToTime(inner()?),
            UnaryOp::ToDate => Expr::ToDate(inner()?),
            UnaryOp::ToMilliseconds => Expr::DurationIn(inner()?, 1),
            UnaryOp::ToSeconds => Expr::DurationIn(inner()?, SECOND),
            UnaryOp::ToMinutes => Expr::DurationIn(inner()?, 60 * SECOND),
            UnaryOp::ToHours => Expr::DurationIn(inner()?, 3_600 * SECOND),
            UnaryOp::ToDays => Expr::DurationIn(inner()?, 86_400 * SECOND),
            UnaryOp::Ip => {
                let (address, bits) = network(text(of)?)?;
                Expr::Net(address, bits)
            }
            // Cedar's own parser reads the literal, so that both evaluators agree on it.
            UnaryOp::Datetime => Expr::Datetime(constant(&format!(
                "datetime({:?}).durationSince(datetime(\"1970-01-01\")).toMilliseconds()",
                text(of)?
            ))?),
            UnaryOp::Duration => Expr::Duration(constant(&format!(
                "duration({:?}).toMilliseconds()",
                text(of)?
            ))?),
            _ => return Err(Unsupported),
        })
    }

    fn binary(
        &self,
        op: BinaryOp,
        left: &pst::Expr,
        right: &pst::Expr,
        depth: usize,
    ) -> CompileResult<Expr> {
        if *left == pst::Expr::Var(Var::Action) {
            return match op {
                BinaryOp::Eq => Ok(Expr::ActionIn(action_mask(right, false)?)),
                BinaryOp::NotEq => Ok(Expr::ActionIn(action_mask(right, false)?).negate()),
                BinaryOp::In => Ok(Expr::ActionIn(action_mask(right, true)?)),
                _ => Err(Unsupported),
            };
        }
        let two = || {
            Ok(Box::new([
                self.expr(left, depth)?,
                self.expr(right, depth)?,
            ]))
        };
        Ok(match op {
            BinaryOp::Eq => self.equal(left, right, depth)?,
            BinaryOp::NotEq => self.equal(left, right, depth)?.negate(),
            BinaryOp::Less => Expr::Less(two()?),
            BinaryOp::LessEq => Expr::LessEq(two()?),
            // Cedar evaluates the left side first. Both sides are always evaluated, so swapping them only changes which
            // error is found, not whether there is one.
            BinaryOp::Greater => Expr::Less(Box::new([
                self.expr(right, depth)?,
                self.expr(left, depth)?,
            ])),
            BinaryOp::GreaterEq => Expr::LessEq(Box::new([
                self.expr(right, depth)?,
                self.expr(left, depth)?,
            ])),
            BinaryOp::Add => Expr::Add(two()?),
            BinaryOp::Sub => Expr::Sub(two()?),
            BinaryOp::Mul => Expr::Mul(two()?),
            BinaryOp::In => self.membership(left, right, depth)?,
            BinaryOp::Contains => Expr::Contains(two()?),
            BinaryOp::ContainsAll => Expr::ContainsAll(two()?),
            BinaryOp::ContainsAny => Expr::ContainsAny(two()?),
            BinaryOp::IsInRange => Expr::InRange(two()?),
            BinaryOp::Offset => Expr::Offset(two()?),
            BinaryOp::DurationSince => Expr::DurationSince(two()?),
            BinaryOp::HasTag => Expr::Has(self.tag(left, right)?),
            BinaryOp::GetTag => Expr::Fact(self.tag(left, right)?),
            _ => return Err(Unsupported),
        })
    }

    fn equal(&self, left: &pst::Expr, right: &pst::Expr, depth: usize) -> CompileResult<Expr> {
        match (self.expr(left, depth)?, self.expr(right, depth)?) {
            (Expr::Entity(left), Expr::Entity(right)) => Ok(Expr::Bool(left == right)),
            (left, right) if comparable(&left, &right) => Ok(Expr::Eq(Box::new([left, right]))),
            _ => Err(Unsupported),
        }
    }

    fn membership(&self, left: &pst::Expr, right: &pst::Expr, depth: usize) -> CompileResult<Expr> {
        let of = match self.expr(right, depth)? {
            Expr::Entity(entity) => vec![entity],
            Expr::Entities(entities) => entities,
            _ => return Err(Unsupported),
        };
        match self.expr(left, depth)? {
            Expr::Principal => Ok(Expr::PrincipalIn(of)),
            Expr::Fact(Fact::User) => Ok(Expr::UserIn(of)),
            Expr::Entity(entity) if entity == self.service => {
                Ok(Expr::Bool(of.iter().any(|other| self.is_in(other))))
            }
            _ => Err(Unsupported),
        }
    }

    fn tag(&self, of: &pst::Expr, name: &pst::Expr) -> CompileResult<Fact> {
        match self.fact(of) {
            Some(Fact::User) => Ok(Fact::Tag(text(name)?.into())),
            _ => Err(Unsupported),
        }
    }

    /// The fact that an expression such as `context.user.claims.department` names.
    fn fact(&self, tree: &pst::Expr) -> Option<Fact> {
        matches!(tree, pst::Expr::GetAttr { .. })
            .then(|| self.fact_named(&attribute_path(tree)?))
            .flatten()
    }

    fn fact_named(&self, (of, path): &(&Var, Vec<&str>)) -> Option<Fact> {
        let slot = |names: &[Box<str>], name: &str| names.iter().position(|own| **own == *name);
        Some(match (of, path.as_slice()) {
            (Var::Principal, ["namespace"]) => Fact::PeerNamespace,
            (Var::Principal, ["serviceAccount"]) => Fact::PeerServiceAccount,
            (Var::Principal, ["trustDomain"]) => Fact::PeerTrustDomain,
            (Var::Context, path) => match path {
                ["host"] => Fact::Host,
                ["method"] => Fact::Method,
                ["service"] => Fact::GrpcService,
                ["path"] => Fact::Path,
                ["route"] => Fact::Route,
                ["port"] => Fact::Port,
                ["country"] => Fact::Country,
                ["sourceIp"] => Fact::SourceIp,
                ["clientIp"] => Fact::ClientIp,
                ["sni"] => Fact::Sni,
                ["params"] => Fact::Params,
                ["params", name] => Fact::Param((*name).into()),
                ["headers"] => Fact::Headers,
                ["headers", name] => Fact::Header(slot(&self.headers, name)?),
                ["query"] => Fact::Query,
                ["query", name] => Fact::QueryParam(slot(&self.query, name)?),
                ["circumstances"] => Fact::Circumstances,
                ["circumstances", "now"] => Fact::Now,
                ["circumstances", "schedules"] => Fact::Schedules,
                ["circumstances", "breakGlass"] => Fact::BreakGlass,
                ["tls"] => Fact::Tls,
                ["tls", "version"] => Fact::TlsVersion,
                ["tls", "cipher"] => Fact::TlsCipher,
                ["tls", "spiffeId"] => Fact::TlsSpiffeId,
                ["tls", "dnsNames"] => Fact::TlsDnsNames,
                ["user"] => Fact::User,
                ["user", "issuer"] => Fact::UserIssuer,
                ["user", "subject"] => Fact::UserSubject,
                ["user", "audience"] => Fact::UserAudience,
                ["user", "scopes"] => Fact::UserScopes,
                ["user", "clientId"] => Fact::UserClientId,
                ["user", "acr"] => Fact::UserAcr,
                ["user", "amr"] => Fact::UserAmr,
                ["user", "authTime"] => Fact::UserAuthTime,
                ["user", "claims"] => Fact::Claims,
                ["user", "claims", name] => Fact::Claim((*name).into()),
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// Whether `==` is compiled. A claim may be a set, so it is compared here only with a value that cannot be one.
fn comparable(left: &Expr, right: &Expr) -> bool {
    let literal = |e: &Expr| {
        matches!(
            e,
            Expr::Str(_) | Expr::Long(_) | Expr::Bool(_) | Expr::Entity(_)
        )
    };
    let claim = |e: &Expr| matches!(e, Expr::Fact(Fact::Claim(_)));
    let scalar = |e: &Expr| e.shape() == Shape::Scalar;
    (scalar(left) && scalar(right))
        || (claim(left) && (literal(right) || scalar(right)))
        || (claim(right) && (literal(left) || scalar(left)))
}

pub(crate) fn entity_kind(of: &pst::EntityType) -> CompileResult<EntityKind> {
    if !of.0.namespace.is_empty() {
        return Err(Unsupported);
    }
    EntityKind::from_name(of.0.id.as_str()).ok_or(Unsupported)
}

pub(crate) fn entity(uid: &pst::EntityUID) -> CompileResult<Entity> {
    Ok(Entity::new(entity_kind(&uid.ty)?, uid.eid.as_str()))
}

/// The bits of the named action and, with `groups`, of all actions in it.
pub(crate) fn action_bits(uid: &pst::EntityUID, groups: bool) -> u16 {
    let named = uid.eid.as_str();
    Action::ALL
        .into_iter()
        .filter(|action| action.name() == named || (groups && action.groups().contains(&named)))
        .fold(0, |mask, action| mask | action.bit())
}

fn action_mask(tree: &pst::Expr, groups: bool) -> CompileResult<u16> {
    match tree {
        pst::Expr::Literal(Literal::EntityUID(uid)) => Ok(action_bits(uid, groups)),
        pst::Expr::Set(items) if groups => items
            .iter()
            .try_fold(0, |mask, item| Ok(mask | action_mask(item, groups)?)),
        _ => Err(Unsupported),
    }
}

fn text(tree: &pst::Expr) -> CompileResult<&str> {
    match tree {
        pst::Expr::Literal(Literal::String(text)) => Ok(text),
        _ => Err(Unsupported),
    }
}

/// Parses the argument of `ip("…")`; unusual notations are left to Cedar.
fn network(text: &str) -> CompileResult<(IpAddr, u8)> {
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().map_err(|_| Unsupported)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    if address.is_ipv6() && text.contains('.') || bits.starts_with(['0', '+']) && bits != "0" {
        return Err(Unsupported);
    }
    let bits = if text.contains('/') {
        bits.parse().map_err(|_| Unsupported)?
    } else {
        most
    };
    if bits > most {
        Err(Unsupported)
    } else {
        Ok((address, bits))
    }
}

/// Evaluates an expression without variables with Cedar.
fn constant(text: &str) -> CompileResult<i64> {
    let peer = EntityUid::from_str("Anonymous::\"peer\"").map_err(|_| Unsupported)?;
    let request = Request::new(peer.clone(), peer.clone(), peer, Context::empty(), None)
        .map_err(|_| Unsupported)?;
    let expression = Expression::from_str(text).map_err(|_| Unsupported)?;
    match eval_expression(&request, &Entities::empty(), &expression) {
        Ok(EvalResult::Long(value)) => Ok(value),
        _ => Err(Unsupported),
    }
}
