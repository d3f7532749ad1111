//! Durations and sizes as users write them: `30s`, `64KiB`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A duration, written `250ms`, `30s`, `1m30s` or `24h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(pub Duration);

/// A number of bytes, written `512`, `64KiB` or `1MiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(pub u64);

/// Why a string is not a duration or a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration.
    #[error(
        "`{0}` is not a duration: write a number and a unit, such as `250ms`, `30s`, `1m30s` or `24h`"
    )]
    HumanDuration(String),
    /// Not a size.
    #[error(
        "`{0}` is not a size: write a number of bytes, such as `512`, or a number with a unit, such as `64KiB` or `1MiB`"
    )]
    Size(String),
}

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::HumanDuration(text.chars().take(64).collect());
        let span: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
        Duration::try_from(span).map(Self).map_err(|_| wrong())
    }
}

impl From<HumanDuration> for Duration {
    fn from(human: HumanDuration) -> Self {
        human.0
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_millis();
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, name) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")] {
            if rest >= unit {
                write!(f, "{}{name}", rest / unit)?;
                rest %= unit;
            }
        }
        Ok(())
    }
}

const SIZES: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Size(text.chars().take(64).collect());
        let (number, factor) = SIZES
            .iter()
            .find_map(|(name, factor)| Some((text.strip_suffix(name)?, *factor)))
            .unwrap_or((text, 1));
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, factor) in SIZES.iter().rev() {
            if self.0 >= *factor && self.0.is_multiple_of(*factor) {
                return write!(f, "{}{name}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

macro_rules! unit_traits {
    ($name:ident, $what:literal, $schema:expr, $($number:tt)*) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Unit;

                impl de::Visitor<'_> for Unit {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }

                    $($number)*
                }

                deserializer.deserialize_any(Unit)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

unit_traits!(
    HumanDuration,
    "a duration, such as `30s`",
    json_schema!({
        "type": "string",
        "description": "A duration: a number and a unit, such as `250ms`, `30s`, `1m30s` or `24h`.",
        "examples": ["30s"],
    }),
);
unit_traits!(
    Size,
    "a size, such as `64KiB`",
    json_schema!({
        "type": ["string", "integer"],
        "description": "A size: a number of bytes, such as `512`, or a number with a unit, such as `64KiB` or `1MiB`.",
        "examples": ["64KiB"],
    }),
    fn visit_u64<E>(self, bytes: u64) -> Result<Size, E> {
        Ok(Size(bytes))
    }
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_without_a_unit_is_a_size_and_not_a_duration() {
        assert_eq!("512".parse(), Ok(Size(512)));
        assert_eq!("64KiB".parse(), Ok(Size(65_536)));
        assert!("30".parse::<HumanDuration>().is_err());
        assert_eq!("1m30s".parse(), Ok(HumanDuration(Duration::from_secs(90))));
    }

    #[test]
    fn negative_malformed_and_too_large_units_are_rejected() {
        for text in [
            "-1",
            "+1",
            "1.5KiB",
            "1kb",
            "",
            "KiB",
            "18446744073709551616",
            "18014398509481984GiB",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for text in ["-1s", "", "s", "1y", "99999999999999999999s"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_any_string_does_not_panic(text in any::<String>()) {
            let _ = (text.parse::<HumanDuration>(), text.parse::<Size>());
        }

        #[test]
        fn a_printed_unit_parses_to_the_same_value(bytes in any::<u64>(), millis in 0..=u64::from(u32::MAX)) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            let span = HumanDuration(Duration::from_millis(millis));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
