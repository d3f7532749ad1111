//! Compiled conditions.

use std::net::IpAddr;

use crate::principal::{Entity, EntityKind};

/// A fact that a condition reads. Names of the fixed schema are variants; declared names carry the name or its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fact {
    // --- about the request
    Host,
    Method,
    GrpcService,
    Path,
    Route,
    Port,
    Country,
    SourceIp,
    ClientIp,
    Sni,
    Params,
    Param(Box<str>),
    Headers,
    Header(usize),
    Query,
    QueryParam(usize),
    // --- circumstances
    Circumstances,
    Now,
    Schedules,
    BreakGlass,
    // --- the connection
    Tls,
    TlsVersion,
    TlsCipher,
    TlsSpiffeId,
    TlsDnsNames,
    // --- the user
    User,
    UserIssuer,
    UserSubject,
    UserAudience,
    UserScopes,
    UserClientId,
    UserAcr,
    UserAmr,
    UserAuthTime,
    Claims,
    Claim(Box<str>),
    Tag(Box<str>),
    // --- the principal
    PeerNamespace,
    PeerServiceAccount,
    PeerTrustDomain,
}

/// What is known about a value at compile time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `==` is evaluated here, with Cedar's result.
    Scalar,
    /// A set or a record: `==` is left to Cedar.
    Other,
}

impl Fact {
    pub(crate) fn shape(&self) -> Shape {
        match self {
            Self::Params
            | Self::Headers
            | Self::Query
            | Self::Circumstances
            | Self::Schedules
            | Self::BreakGlass
            | Self::Tls
            | Self::TlsDnsNames
            | Self::UserAudience
            | Self::UserScopes
            | Self::UserAmr
            | Self::Claims
            // A declared claim may be a set.
            | Self::Claim(_)
            | Self::Tag(_) => Shape::Other,
            _ => Shape::Scalar,
        }
    }

    /// Whether it is a record, which is only used with `has`.
    pub(crate) fn is_record(&self) -> bool {
        matches!(
            self,
            Self::Params
                | Self::Headers
                | Self::Query
                | Self::Circumstances
                | Self::Tls
                | Self::Claims
        )
    }
}

/// A condition. Evaluation errors are part of its meaning: a policy with an error does not hold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expr {
    Bool(bool),
    Long(i64),
    Str(Box<str>),
    Strs(Vec<String>),
    Entity(Entity),
    Entities(Vec<Entity>),
    Net(IpAddr, u8),
    /// Milliseconds since 1970.
    Datetime(i64),
    /// Milliseconds.
    Duration(i64),
    Principal,
    Fact(Fact),
    Has(Fact),
    /// Evaluated in order up to the first that is false.
    And(Vec<Self>),
    /// Evaluated in order up to the first that is true.
    Or(Vec<Self>),
    Not(Box<Self>),
    If(Box<[Self; 3]>),
    Eq(Box<[Self; 2]>),
    Less(Box<[Self; 2]>),
    LessEq(Box<[Self; 2]>),
    Add(Box<[Self; 2]>),
    Sub(Box<[Self; 2]>),
    Mul(Box<[Self; 2]>),
    Neg(Box<Self>),
    PrincipalIn(Vec<Entity>),
    PrincipalIs(EntityKind),
    UserIn(Vec<Entity>),
    /// Whether the request's action is one of this mask.
    ActionIn(u16),
    Contains(Box<[Self; 2]>),
    ContainsAll(Box<[Self; 2]>),
    ContainsAny(Box<[Self; 2]>),
    IsEmpty(Box<Self>),
    Like(Box<Self>, Pattern),
    InRange(Box<[Self; 2]>),
    IsIpv4(Box<Self>),
    IsIpv6(Box<Self>),
    Offset(Box<[Self; 2]>),
    DurationSince(Box<[Self; 2]>),
    ToTime(Box<Self>),
    ToDate(Box<Self>),
    /// A duration in units of this many milliseconds, rounded towards zero.
    DurationIn(Box<Self>, i64),
}

impl Expr {
    pub(crate) fn and(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Vec::new();
        for part in parts {
            match part {
                Self::Bool(true) => {}
                Self::And(more) => all.extend(more),
                // Parts after a constant false are never evaluated.
                Self::Bool(false) => {
                    all.push(Self::Bool(false));
                    break;
                }
                other => all.push(other),
            }
        }
        match all.first() {
            None => Self::Bool(true),
            Some(Self::Bool(false)) => Self::Bool(false),
            _ if all.len() == 1 => all.pop().unwrap_or(Self::Bool(true)),
            _ => Self::And(all),
        }
    }

    pub(crate) fn or(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut any = Vec::new();
        for part in parts {
            match part {
                Self::Bool(false) => {}
                Self::Or(more) => any.extend(more),
                Self::Bool(true) => {
                    any.push(Self::Bool(true));
                    break;
                }
                other => any.push(other),
            }
        }
        match any.first() {
            None => Self::Bool(false),
            Some(Self::Bool(true)) => Self::Bool(true),
            _ if any.len() == 1 => any.pop().unwrap_or(Self::Bool(false)),
            _ => Self::Or(any),
        }
    }

    pub(crate) fn negate(self) -> Self {
        match self {
            Self::Bool(value) => Self::Bool(!value),
            other => Self::Not(Box::new(other)),
        }
    }

    /// Whether `==` on it is evaluated here or by Cedar.
    pub(crate) fn shape(&self) -> Shape {
        match self {
            Self::Strs(_) | Self::Entities(_) => Shape::Other,
            Self::Fact(fact) => fact.shape(),
            Self::If(parts) => {
                let [_, then, other] = &**parts;
                if then.shape() == Shape::Scalar {
                    other.shape()
                } else {
                    Shape::Other
                }
            }
            _ => Shape::Scalar,
        }
    }
}

/// A `like` pattern, by cost of matching.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// No wildcard.
    Exact(Box<str>),
    /// One wildcard, at the end.
    Prefix(Box<str>),
    /// The texts before, between and after the wildcards.
    General {
        first: Box<str>,
        middle: Vec<Box<str>>,
        last: Box<str>,
    },
}

impl Pattern {
    /// Builds a pattern from the texts around its wildcards, one more than there are wildcards.
    pub(crate) fn new(mut parts: Vec<String>) -> Self {
        let last = parts.pop().unwrap_or_default();
        if parts.is_empty() {
            return Self::Exact(last.into());
        }
        let first = parts.remove(0);
        if parts.is_empty() && last.is_empty() {
            return Self::Prefix(first.into());
        }
        Self::General {
            first: first.into(),
            middle: parts.into_iter().map(Into::into).collect(),
            last: last.into(),
        }
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::General {
                first,
                middle,
                last,
            } => {
                let Some(mut rest) = text.strip_prefix(&**first) else {
                    return false;
                };
                for part in middle {
                    // The leftmost match leaves the most text for the rest, so no backtracking is needed.
                    let Some((_, after)) = rest.split_once(&**part) else {
                        return false;
                    };
                    rest = after;
                }
                rest.ends_with(&**last)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text.split('*').map(str::to_owned).collect())
    }

    #[test]
    fn patterns_match_as_like_does() {
        for (text, yes, no) in [
            ("/orders", vec!["/orders"], vec!["/orders/", "/order"]),
            ("/orders/*", vec!["/orders/", "/orders/1"], vec!["/orders"]),
            ("*.json", vec![".json", "a.json"], vec!["a.jsonp"]),
            ("/a*b*c", vec!["/abc", "/axxbyyc"], vec!["/ab", "/acb"]),
            ("*", vec!["", "x"], vec![]),
            ("a*a", vec!["aa", "aba"], vec!["a"]),
            ("**é*", vec!["é", "xéy"], vec!["e"]),
        ] {
            for sample in yes {
                assert!(pattern(text).matches(sample), "`{text}` on `{sample}`");
            }
            for sample in no {
                assert!(!pattern(text).matches(sample), "`{text}` on `{sample}`");
            }
        }
    }

    #[test]
    fn constants_fold_but_expressions_that_may_fail_stay() {
        let fact = || Expr::Fact(Fact::Path);
        assert_eq!(Expr::and([Expr::Bool(true), fact()]), fact());
        assert_eq!(Expr::and([Expr::Bool(false), fact()]), Expr::Bool(false));
        // `context.path && false` is an error where there is no path, so it is not the same as `false`.
        assert!(matches!(
            Expr::and([fact(), Expr::Bool(false)]),
            Expr::And(_)
        ));
        assert_eq!(Expr::or([Expr::Bool(true), fact()]), Expr::Bool(true));
    }
}
