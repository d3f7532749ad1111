//! The values of facts and conditions.

use std::net::IpAddr;

use crate::principal::{Entity, EntityKind};

/// A condition could not be evaluated: a value that it requires is missing, or a number overflowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EvalError;

/// The value of an expression.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Bool(bool),
    Long(i64),
    Str(&'a str),
    Strs(&'a [String]),
    Entity(EntityKind, &'a str),
    Entities(&'a [Entity]),
    Ip(IpAddr, u8),
    Datetime(i64),
    Duration(i64),
    /// A record, which is only tested for presence.
    Record,
}
