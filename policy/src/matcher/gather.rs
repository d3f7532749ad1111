//! Collects and decodes the headers and query parameters that policies read.

use std::{borrow::Cow, sync::Arc};

use super::reading::Slots;
use crate::{
    decision::{Deny, DenyKind},
    facts::{Headers, RequestFacts, RequestKind},
};

/// The values collected from one request.
#[derive(Debug, Default)]
pub(crate) struct Gathered<'a> {
    pub(crate) headers: Slots<'a>,
    pub(crate) query: Slots<'a>,
    /// Repeated headers, with each value. In [`Gathered::headers`] the values are joined by `, `.
    pub(crate) repeated: Vec<(usize, Vec<&'a str>)>,
}

/// A request is decided once for each reading of its repeated headers; a request with more readings is denied.
const MAX_READINGS: usize = 64;

/// The names that policies read, in order of slot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    pub(crate) headers: Vec<Arc<str>>,
    pub(crate) query: Vec<Arc<str>>,
}

impl<'a> Gathered<'a> {
    pub(crate) fn new(names: &Names, facts: &RequestFacts<'a>) -> Result<Self, Deny> {
        let mut gathered = Self::default();
        let (headers, query) = match facts.kind {
            RequestKind::Http(http) => (http.headers, http.query),
            RequestKind::Grpc(grpc) => (grpc.headers, None),
            RequestKind::Tcp(_) => return Ok(gathered),
        };
        for (slot, name) in names.headers.iter().enumerate() {
            gathered.header(slot, name, headers)?;
        }
        if let Some(query) = query
            && !names.query.is_empty()
        {
            gathered.parameters(&names.query, query)?;
        }
        Ok(gathered)
    }

    fn header(
        &mut self,
        slot: usize,
        name: &Arc<str>,
        headers: &'a dyn Headers,
    ) -> Result<(), Deny> {
        let bad = || Deny::new(DenyKind::BadHeader(Arc::clone(name)));
        let mut one: Option<&'a [u8]> = None;
        let mut further: Vec<&'a [u8]> = Vec::new();
        headers.each(name, &mut |value| match one {
            None => one = Some(value),
            Some(_) => further.push(value),
        });
        let Some(one) = one else { return Ok(()) };
        let one = printable(one).ok_or_else(bad)?;
        if further.is_empty() {
            self.headers.set(slot, Some(Cow::Borrowed(one)));
            return Ok(());
        }
        let mut values = vec![one];
        for value in further {
            values.push(printable(value).ok_or_else(bad)?);
        }
        self.headers.set(slot, Some(Cow::Owned(values.join(", "))));
        values.sort_unstable();
        values.dedup();
        self.repeated.push((slot, values));
        if self.readings() > MAX_READINGS {
            return Err(bad());
        }
        Ok(())
    }

    /// The number of readings of the repeated headers: each value alone, or all joined.
    pub(crate) fn readings(&self) -> usize {
        self.repeated.iter().fold(1, |ways, (_, values)| {
            ways.saturating_mul(values.len().saturating_add(1))
        })
    }

    /// The headers in one of the [`Gathered::readings`]; in number 0 all values are joined.
    pub(crate) fn reading(&self, number: usize) -> Slots<'a> {
        let mut slots = self.headers.clone();
        let mut rest = number;
        for (slot, values) in &self.repeated {
            let ways = values.len().saturating_add(1);
            let choice = rest.checked_rem(ways).unwrap_or(0);
            rest = rest.checked_div(ways).unwrap_or(0);
            if let Some(value) = choice.checked_sub(1).and_then(|choice| values.get(choice)) {
                slots.set(*slot, Some(Cow::Borrowed(value)));
            }
        }
        slots
    }

    fn parameters(&mut self, names: &[Arc<str>], query: &'a str) -> Result<(), Deny> {
        let bad = |name: &Arc<str>| Deny::new(DenyKind::BadQuery(Arc::clone(name)));
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // A name that cannot be decoded may be any name that policies read.
            let Some(name) = decode(name) else {
                return names.first().map_or(Ok(()), |first| Err(bad(first)));
            };
            let Some((slot, known)) = names.iter().enumerate().find(|(_, own)| ***own == *name)
            else {
                continue;
            };
            // It is not known which of several values the application uses.
            if self.query.get(slot).is_some() {
                return Err(bad(known));
            }
            let value = decode(value).ok_or_else(|| bad(known))?;
            self.query.set(slot, Some(value));
        }
        Ok(())
    }
}

/// The value as text, if it contains only visible ASCII, spaces and tabs (RFC 9110 §5.5 without `obs-text`).
fn printable(value: &[u8]) -> Option<&str> {
    value
        .iter()
        .all(|byte| matches!(byte, b'\t' | 0x20..=0x7e))
        .then(|| std::str::from_utf8(value).ok())
        .flatten()
}

/// Decodes `application/x-www-form-urlencoded`.
pub(crate) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let value = digit(rest.next()?)? << 4 | digit(rest.next()?)?;
                u8::try_from(value).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}
