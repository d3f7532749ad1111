//! Numbers that all parsers compare with the same result.

use super::violation::Violation;

/// Number of significant digits that a double keeps, which is what most parsers use (RFC 8259 §6).
const DIGITS: usize = 15;

/// Rejects numbers that the comparison would round, since another parser may find them on the other side of a bound.
///
/// Integers of up to 64 bits are compared exactly, all other numbers as doubles. `body` is known to be JSON.
pub(super) fn check(body: &[u8]) -> Result<(), Violation> {
    let mut rest = body;
    let mut in_string = false;
    while let Some((byte, after)) = rest.split_first() {
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                // An escaped character does not end the string.
                rest = after.get(1..).unwrap_or_default();
                continue;
            }
            b'-' | b'0'..=b'9' if !in_string => {
                let (number, behind) = rest.split_at(length(rest));
                if !is_exact(number) {
                    return Err(Violation::new(
                        400,
                        "validate.body",
                        format!(
                            "the number at byte {} has too many digits to be compared exactly: \
                             the limit is {DIGITS} significant digits, or 64 bits for an integer",
                            body.len() - rest.len() + 1
                        ),
                    ));
                }
                rest = behind;
                continue;
            }
            _ => {}
        }
        rest = after;
    }
    Ok(())
}

/// The length of the number at the start of a JSON text.
pub(super) fn length(text: &[u8]) -> usize {
    let of_number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
    let end = text.iter().position(|byte| !of_number(byte));
    end.unwrap_or(text.len())
}

fn is_exact(number: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(number) else {
        return false;
    };
    if !text.contains(['.', 'e', 'E']) {
        return text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok();
    }
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let digits = mantissa.bytes().filter(u8::is_ascii_digit);
    // Leading zeros, as in `0.001`, are not significant.
    digits.skip_while(|digit| *digit == b'0').count() <= DIGITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_that_would_be_rounded_are_rejected() {
        for exact in [
            "0",
            "-1",
            "[1, 2.5, 18446744073709551615, -9223372036854775808]",
            "0.000000000000000123",
            "1.5e300",
            r#"{"a": "18446744073709551616", "\"9.99999999999999999": 1}"#,
        ] {
            assert!(check(exact.as_bytes()).is_ok(), "{exact}");
        }
        for rounded in [
            "18446744073709551616",
            "-9223372036854775809",
            "10.0000000000000000001",
            "[1, 9.9999999999999999]",
            r#"{"a\\": 1.00000000000000001}"#,
        ] {
            assert!(check(rounded.as_bytes()).is_err(), "{rounded}");
        }
    }
}
