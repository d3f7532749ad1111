//! Ports and ranges of ports: `5432,9000-9010`.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// A list of ports, which may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }
}

/// A text that is not a list of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a port or a range of ports: write 1 to 65535, as in `5432,9000-9010`")]
pub(crate) struct InvalidPorts(String);

impl FromStr for Ports {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, InvalidPorts> {
        let parts = text.split(',').map(str::trim);
        let parts = parts.filter(|part| !part.is_empty());
        let ranges = parts.map(|part| range(part).ok_or_else(|| InvalidPorts(part.to_owned())));
        ranges.collect::<Result<_, _>>().map(Self)
    }
}

fn range(part: &str) -> Option<RangeInclusive<u16>> {
    let port = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|port| digits && *port != 0)
    };
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{first}")?,
                (first, last) => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges_are_printed_as_they_are_parsed() {
        for text in ["", "80", "80,443", "9000-9010", "1,2-3,65535"] {
            assert_eq!(
                text.parse::<Ports>().map(|ports| ports.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!(
            " 80 , 443 ".parse::<Ports>().map(|ports| ports.to_string()),
            Ok("80,443".to_owned())
        );
    }

    #[test]
    fn invalid_ports_are_refused_and_never_reach_a_rule() {
        for text in [
            "0",
            "65536",
            "-1",
            "9010-9000",
            "80;drop",
            "80-",
            "+80",
            "http",
            "1-2-3",
        ] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
    }
}
