//! Evaluates compiled conditions without allocating.

use std::net::IpAddr;

use super::{
    expr::{Expr, Fact},
    reading::Reading,
    value::{EvalError, Value},
};
use crate::principal::EntityKind;

const DAY: i64 = 86_400_000;

impl Expr {
    /// Whether the condition holds.
    pub(crate) fn holds(&self, of: &Reading<'_>) -> Result<bool, EvalError> {
        match self {
            // Fast paths for the most common conditions.
            Self::And(all) => {
                for part in all {
                    if !part.holds(of)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Or(any) => {
                for part in any {
                    if part.holds(of)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Bool(value) => Ok(*value),
            Self::Not(inner) => Ok(!inner.holds(of)?),
            Self::Has(fact) => Ok(of.get(fact)?.is_some()),
            Self::PrincipalIs(kind) => Ok(of.peer.entity.kind == *kind),
            Self::PrincipalIn(entities) => Ok(entities.iter().any(|entity| of.peer.is_in(entity))),
            Self::UserIn(groups) => {
                let Some(Value::Entity(_, id)) = of.get(&Fact::User)? else {
                    return Err(EvalError);
                };
                Ok(groups.iter().any(|entity| match entity.kind {
                    EntityKind::Group => of.in_group(&entity.id),
                    EntityKind::User => *entity.id == *id,
                    _ => false,
                }))
            }
            Self::ActionIn(mask) => Ok(of.action.bit() & mask != 0),
            Self::Eq(sides) => {
                let [left, right] = evaluate_both(sides, of)?;
                Ok(same(left, right))
            }
            Self::Less(sides) => compare(evaluate_both(sides, of)?, |a, b| a < b),
            Self::LessEq(sides) => compare(evaluate_both(sides, of)?, |a, b| a <= b),
            Self::Contains(sides) => {
                let [set, item] = evaluate_both(sides, of)?;
                contains(set, item)
            }
            Self::ContainsAll(sides) => match evaluate_both(sides, of)? {
                [Value::Strs(set), Value::Strs(all)] => {
                    Ok(all.iter().all(|item| set.contains(item)))
                }
                [Value::Entities(set), Value::Entities(all)] => {
                    Ok(all.iter().all(|item| set.contains(item)))
                }
                _ => Err(EvalError),
            },
            Self::ContainsAny(sides) => match evaluate_both(sides, of)? {
                [Value::Strs(set), Value::Strs(any)] => {
                    Ok(any.iter().any(|item| set.contains(item)))
                }
                [Value::Entities(set), Value::Entities(any)] => {
                    Ok(any.iter().any(|item| set.contains(item)))
                }
                _ => Err(EvalError),
            },
            Self::IsEmpty(set) => match set.value(of)? {
                Value::Strs(set) => Ok(set.is_empty()),
                Value::Entities(set) => Ok(set.is_empty()),
                _ => Err(EvalError),
            },
            Self::Like(text, pattern) => match text.value(of)? {
                Value::Str(text) => Ok(pattern.matches(text)),
                _ => Err(EvalError),
            },
            Self::InRange(sides) => match evaluate_both(sides, of)? {
                [Value::Ip(inner, bits), Value::Ip(outer, outer_bits)] => {
                    Ok(in_range(inner, bits, outer, outer_bits))
                }
                _ => Err(EvalError),
            },
            Self::IsIpv4(ip) => match ip.value(of)? {
                Value::Ip(ip, _) => Ok(ip.is_ipv4()),
                _ => Err(EvalError),
            },
            Self::IsIpv6(ip) => match ip.value(of)? {
                Value::Ip(ip, _) => Ok(ip.is_ipv6()),
                _ => Err(EvalError),
            },
            Self::If(parts) => {
                let [cond, then, other] = &**parts;
                if cond.holds(of)? {
                    then.holds(of)
                } else {
                    other.holds(of)
                }
            }
            _ => match self.value(of)? {
                Value::Bool(value) => Ok(value),
                _ => Err(EvalError),
            },
        }
    }

    fn value<'a>(&'a self, of: &Reading<'a>) -> Result<Value<'a>, EvalError> {
        Ok(match self {
            Self::Long(value) => Value::Long(*value),
            Self::Str(text) => Value::Str(text),
            Self::Strs(texts) => Value::Strs(texts),
            Self::Entity(entity) => Value::Entity(entity.kind, &entity.id),
            Self::Entities(entities) => Value::Entities(entities),
            Self::Net(address, bits) => Value::Ip(*address, *bits),
            Self::Datetime(at) => Value::Datetime(*at),
            Self::Duration(span) => Value::Duration(*span),
            Self::Principal => Value::Entity(of.peer.entity.kind, &of.peer.entity.id),
            Self::Fact(fact) => return of.get(fact)?.ok_or(EvalError),
            Self::If(parts) => {
                let [cond, then, other] = &**parts;
                return if cond.holds(of)? {
                    then.value(of)
                } else {
                    other.value(of)
                };
            }
            Self::Add(sides) => arithmetic(sides, of, i64::checked_add)?,
            Self::Sub(sides) => arithmetic(sides, of, i64::checked_sub)?,
            Self::Mul(sides) => arithmetic(sides, of, i64::checked_mul)?,
            Self::Neg(inner) => match inner.value(of)? {
                Value::Long(value) => Value::Long(value.checked_neg().ok_or(EvalError)?),
                _ => return Err(EvalError),
            },
            Self::Offset(sides) => match evaluate_both(sides, of)? {
                [Value::Datetime(at), Value::Duration(by)] => {
                    Value::Datetime(at.checked_add(by).ok_or(EvalError)?)
                }
                _ => return Err(EvalError),
            },
            Self::DurationSince(sides) => match evaluate_both(sides, of)? {
                [Value::Datetime(end), Value::Datetime(start)] => {
                    Value::Duration(end.checked_sub(start).ok_or(EvalError)?)
                }
                _ => return Err(EvalError),
            },
            Self::ToTime(at) => match at.value(of)? {
                Value::Datetime(at) => Value::Duration(at.rem_euclid(DAY)),
                _ => return Err(EvalError),
            },
            Self::ToDate(at) => match at.value(of)? {
                Value::Datetime(at) => {
                    Value::Datetime(at.checked_sub(at.rem_euclid(DAY)).ok_or(EvalError)?)
                }
                _ => return Err(EvalError),
            },
            Self::DurationIn(span, unit) => match span.value(of)? {
                Value::Duration(span) => Value::Long(span.checked_div(*unit).ok_or(EvalError)?),
                _ => return Err(EvalError),
            },
            other => Value::Bool(other.holds(of)?),
        })
    }
}

fn evaluate_both<'a>(sides: &'a [Expr; 2], of: &Reading<'a>) -> Result<[Value<'a>; 2], EvalError> {
    let [left, right] = sides;
    Ok([left.value(of)?, right.value(of)?])
}

fn arithmetic<'a>(
    sides: &'a [Expr; 2],
    of: &Reading<'a>,
    operation: fn(i64, i64) -> Option<i64>,
) -> Result<Value<'a>, EvalError> {
    match evaluate_both(sides, of)? {
        [Value::Long(left), Value::Long(right)] => {
            Ok(Value::Long(operation(left, right).ok_or(EvalError)?))
        }
        _ => Err(EvalError),
    }
}

fn compare(sides: [Value<'_>; 2], order: fn(i64, i64) -> bool) -> Result<bool, EvalError> {
    match sides {
        [Value::Long(a), Value::Long(b)]
        | [Value::Datetime(a), Value::Datetime(b)]
        | [Value::Duration(a), Value::Duration(b)] => Ok(order(a, b)),
        _ => Err(EvalError),
    }
}

/// Cedar's `==`: values of different types are unequal, which is not an error.
fn same(left: Value<'_>, right: Value<'_>) -> bool {
    match (left, right) {
        (Value::Entity(kind, id), Value::Entity(other, other_id)) => {
            kind == other && id == other_id
        }
        (Value::Str(left), Value::Str(right)) => left == right,
        (left, right) => left == right,
    }
}

fn contains(set: Value<'_>, item: Value<'_>) -> Result<bool, EvalError> {
    match (set, item) {
        (Value::Strs(set), Value::Str(item)) => Ok(set.iter().any(|own| own == item)),
        (Value::Entities(set), Value::Entity(kind, id)) => {
            Ok(set.iter().any(|own| own.kind == kind && *own.id == *id))
        }
        (Value::Strs(_) | Value::Entities(_), _) => Ok(false),
        _ => Err(EvalError),
    }
}

/// Whether every address of the first range is in the second. IPv4 and IPv6 ranges never overlap.
fn in_range(inner: IpAddr, inner_bits: u8, outer: IpAddr, outer_bits: u8) -> bool {
    let (inner, outer, width) = match (inner, outer) {
        (IpAddr::V4(inner), IpAddr::V4(outer)) => (
            u128::from(inner.to_bits()),
            u128::from(outer.to_bits()),
            32u32,
        ),
        (IpAddr::V6(inner), IpAddr::V6(outer)) => (inner.to_bits(), outer.to_bits(), 128),
        _ => return false,
    };
    let host_bits = width.saturating_sub(u32::from(outer_bits));
    inner_bits >= outer_bits && (inner ^ outer).checked_shr(host_bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_in_another_only_of_its_family_and_not_wider() {
        let ip = |text: &str| text.parse().unwrap();
        assert!(in_range(ip("10.1.2.3"), 32, ip("10.0.0.0"), 8));
        assert!(in_range(ip("10.1.2.3"), 32, ip("0.0.0.0"), 0));
        assert!(!in_range(ip("11.1.2.3"), 32, ip("10.0.0.0"), 8));
        assert!(!in_range(ip("10.0.0.0"), 7, ip("10.0.0.0"), 8));
        assert!(!in_range(ip("::ffff:0a01:0203"), 128, ip("10.0.0.0"), 8));
        assert!(in_range(ip("2001:db8::1"), 128, ip("2001:db8::"), 32));
        assert!(in_range(ip("2001:db8::1"), 128, ip("::"), 0));
    }
}
