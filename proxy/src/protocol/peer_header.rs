//! What one proxy tells the other: `merlon-peer: service=shop/orders;port=80;proto=http/1.1`.
//!
//! The caller's proxy sets it; it is taken from nobody else. It is a claim: the destination's proxy believes it only
//! as far as the Service named is one of its own workload's.

use http::HeaderMap;
use merlon_config::name::ServiceName;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The header's name.
pub const NAME: http::HeaderName = http::HeaderName::from_static("merlon-peer");
/// The longest text that is read.
pub const MAX_LENGTH: usize = 1_024;

/// Whether the header came more than once.
pub(crate) fn is_repeated(headers: &HeaderMap) -> bool {
    headers.get_all(NAME).iter().nth(1).is_some()
}

/// What the program that calls speaks, and so what the program that is called gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    /// `http/1.1`
    Http1,
    /// `h2`
    H2,
    /// `tcp`
    Tcp,
}

impl Proto {
    /// As it stands in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::H2 => "h2",
            Self::Tcp => "tcp",
        }
    }
}

/// Which Service and port a caller means, and what it speaks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The Service.
    pub service: ServiceName,
    /// The Service's port, not the program's.
    pub port: u16,
    /// What is spoken.
    pub proto: Proto,
}

impl Claim {
    /// Reads a claim. All three parts must be there, in this order, and nothing else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > MAX_LENGTH {
            return None;
        }
        let mut parts = std::str::from_utf8(text).ok()?.split(';');
        let service = parts.next()?.strip_prefix("service=")?.parse().ok()?;
        let port = parse_port(parts.next()?.strip_prefix("port=")?)?;
        let proto = match parts.next()?.strip_prefix("proto=")? {
            "http/1.1" => Proto::Http1,
            "h2" => Proto::H2,
            "tcp" => Proto::Tcp,
            _ => return None,
        };
        parts.next().is_none().then_some(Self {
            service,
            port,
            proto,
        })
    }
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "service={};port={};proto={}",
            self.service,
            self.port,
            self.proto.as_str()
        )
    }
}

/// The answer to a question: the request would pass, as far as its head tells.
pub(crate) const CONTINUE: http::HeaderName = http::HeaderName::from_static("merlon-continue");

/// On a refusal to another proxy: the program could not be connected to, so that nothing of the request was done, and it
/// may be sent to another endpoint whatever its method.
pub(crate) const UNSERVED: http::HeaderName = http::HeaderName::from_static("merlon-unserved");

/// A claim that asks whether a request would pass whose body, of this length if it is known, is still to come
/// (`Expect: 100-continue`). To whom does not know questions it is no claim at all, and nothing is done.
pub(crate) fn question(
    claim: &http::HeaderValue,
    length: Option<u64>,
) -> Option<http::HeaderValue> {
    let length = length.map_or(UNKNOWN.to_owned(), |length| length.to_string());
    let text = [claim.as_bytes(), BODY, length.as_bytes()].concat();
    http::HeaderValue::from_bytes(&text).ok()
}

/// The claim of a question, and the length of the body that is asked about.
pub(crate) fn split_question(
    value: &http::HeaderValue,
) -> Option<(http::HeaderValue, Option<u64>)> {
    let text = value.to_str().ok()?;
    let (claim, length) = text.split_once(std::str::from_utf8(BODY).ok()?)?;
    let length = match length {
        UNKNOWN => None,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
        _ => return None,
    };
    Some((http::HeaderValue::from_str(claim).ok()?, length))
}

const BODY: &[u8] = b";body=";
const UNKNOWN: &str = "unknown";

/// A port as digits alone, without sign or leading zero; 1–65535.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    let plain = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

pub(crate) async fn read_claim(stream: &mut (impl AsyncRead + Unpin)) -> Option<Claim> {
    let length = usize::from(stream.read_u16().await.ok()?);
    if length > MAX_LENGTH {
        return None;
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await.ok()?;
    Claim::parse(&text).filter(|claim| claim.proto == Proto::Tcp)
}

/// The preamble of a tunnel, as it goes over the wire.
pub(crate) fn preamble(claim: &Claim) -> Vec<u8> {
    let text = claim.to_string();
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_reads_what_it_writes() {
        for text in [
            "service=shop/orders;port=80;proto=http/1.1",
            "service=shop/orders;port=65535;proto=h2",
            "service=shop/db;port=5432;proto=tcp",
        ] {
            assert_eq!(Claim::parse(text.as_bytes()).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_question_is_read_as_it_was_asked_and_is_no_claim() {
        let claim = http::HeaderValue::from_static("service=shop/orders;port=80;proto=h2");
        for length in [None, Some(0), Some(u64::MAX)] {
            let question = question(&claim, length).unwrap();
            assert_eq!(split_question(&question), Some((claim.clone(), length)));
            assert_eq!(Claim::parse(question.as_bytes()), None);
        }
        for other in [
            "",
            ";body=",
            ";body=+1",
            ";body=1;body=1",
            ";body=99999999999999999999",
        ] {
            let text = format!("service=shop/orders;port=80;proto=h2{other}");
            assert_eq!(split_question(&text.parse().unwrap()), None, "{text}");
        }
    }

    #[test]
    fn anything_else_is_no_claim() {
        for text in [
            "",
            "service=shop/orders",
            "service=shop/orders;port=80",
            "service=shop/orders;port=080;proto=h2",
            "service=shop/orders;port=+80;proto=h2",
            "service=shop/orders;port=0;proto=h2",
            "service=shop/orders;port=65536;proto=h2",
            "service=shop/orders;port=80;proto=h3",
            "service=shop/orders;port=80;proto=h2;",
            "service=shop/orders;port=80;proto=h2;x=y",
            "service=Shop/orders;port=80;proto=h2",
            "port=80;service=shop/orders;proto=h2",
            " service=shop/orders;port=80;proto=h2",
        ] {
            assert_eq!(Claim::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Claim::parse(&[b'a'; MAX_LENGTH + 1]), None);
    }
}
