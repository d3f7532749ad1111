//! Why a value does not fit its type, in terms that users of YAML understand.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use crate::{
    nearest,
    node::{Mark, cut},
};

/// The part of a tree that an error refers to.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) id: usize,
    pub(super) at: Mark,
    pub(super) path: String,
}

/// Why reading stopped.
#[derive(Debug)]
pub(super) struct ReadError {
    pub(super) message: String,
    pub(super) hint: Option<String>,
    pub(super) place: Option<Place>,
    pub(super) missing: Option<&'static str>,
    /// It is the consequence of another problem, which is reported already.
    pub(super) consequential: bool,
}

impl ReadError {
    pub(super) fn new(message: String, hint: Option<String>) -> Self {
        Self {
            message,
            hint,
            place: None,
            missing: None,
            consequential: false,
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string(), None)
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_value(unexpected, expected)
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match unexpected {
            Unexpected::Str(text) => format!("the string `{}`", cut(text)),
            Unexpected::Unsigned(number) => format!("the number `{number}`"),
            Unexpected::Signed(number) => format!("the number `{number}`"),
            Unexpected::Float(number) => format!("the number `{number}`"),
            Unexpected::Bool(value) => format!("`{value}`"),
            Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a map".to_owned(),
            other => other.to_string(),
        };
        let expected = expected.to_string();
        let words = words(&expected);
        let hint = match unexpected {
            Unexpected::Unsigned(_)
            | Unexpected::Signed(_)
            | Unexpected::Float(_)
            | Unexpected::Bool(_)
                if words == "a string" =>
            {
                Some(format!("put it in quotes: `{}`", Quoted(&unexpected)))
            }
            Unexpected::Str(text) if words.contains("integer") && text.parse::<u64>().is_ok() => {
                Some(format!("remove the quotes: `{text}`"))
            }
            Unexpected::Str("yes" | "on" | "Yes" | "On" | "True" | "TRUE")
                if words == "`true` or `false`" =>
            {
                Some("write `true`".to_owned())
            }
            Unexpected::Str("no" | "off" | "No" | "Off" | "False" | "FALSE")
                if words == "`true` or `false`" =>
            {
                Some("write `false`".to_owned())
            }
            _ => None,
        };
        Self::new(format!("expected {words}, found {found}"), hint)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {expected}, found {length}"), None)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(
            format!("unknown value `{}`", cut(variant)),
            nearest::hint(variant, expected.iter().copied()),
        )
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(
            format!("unknown field `{}`", cut(field)),
            nearest::hint(field, expected.iter().copied()),
        )
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            missing: Some(field),
            ..Self::new(format!("`{field}` is missing"), None)
        }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(format!("duplicate field `{field}`"), None)
    }
}

struct Quoted<'a>(&'a Unexpected<'a>);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unexpected::Unsigned(number) => write!(f, "\"{number}\""),
            Unexpected::Signed(number) => write!(f, "\"{number}\""),
            Unexpected::Float(number) => write!(f, "\"{number}\""),
            other => write!(
                f,
                "\"{}\"",
                other.to_string().rsplit('`').nth(1).unwrap_or_default()
            ),
        }
    }
}

/// Translates serde's name of an expected type for users who write YAML.
fn words(expected: &str) -> String {
    match expected {
        "u16" => "an integer from 0 to 65535".to_owned(),
        "u32" => "an integer from 0 to 4294967295".to_owned(),
        "u8" | "u64" | "usize" => "a non-negative integer".to_owned(),
        "i32" | "i64" => "an integer".to_owned(),
        "a borrowed string" | "path string" | "a string representing an URL" => {
            "a string".to_owned()
        }
        "a boolean" => "`true` or `false`".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a map".to_owned(),
        "socket address" => "an address and port, such as `127.0.0.1:7561`".to_owned(),
        other if other.starts_with("struct ") => "a map".to_owned(),
        // The `url` crate gives the reason instead of the expectation.
        other if is_url_reason(other) => "a URL, such as `https://login.example.org`".to_owned(),
        other => other.to_owned(),
    }
}

fn is_url_reason(text: &str) -> bool {
    use url::ParseError::{
        EmptyHost, IdnaError, InvalidDomainCharacter, InvalidIpv4Address, InvalidIpv6Address,
        InvalidPort, Overflow, RelativeUrlWithCannotBeABaseBase, RelativeUrlWithoutBase,
        SetHostOnCannotBeABaseUrl,
    };
    [
        EmptyHost,
        IdnaError,
        InvalidDomainCharacter,
        InvalidIpv4Address,
        InvalidIpv6Address,
        InvalidPort,
        Overflow,
        RelativeUrlWithoutBase,
        RelativeUrlWithCannotBeABaseBase,
        SetHostOnCannotBeABaseUrl,
    ]
    .iter()
    .any(|reason| reason.to_string() == text)
}
