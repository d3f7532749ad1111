//! The header between proxies: `merlon-peer: service=shop/orders;port=80;proto=http/1.1`.
//!
//! The caller's proxy sets it; it is accepted only from meshed peers. It is a claim: the destination's proxy accepts it
//! only for a Service of its own workload.

use http::HeaderMap;
use merlon_config::name::ServiceName;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The header's name.
pub const NAME: http::HeaderName = http::HeaderName::from_static("merlon-peer");
/// Maximum length in bytes.
pub const MAX_LENGTH: usize = 1_024;

/// Whether the header is repeated.
pub(crate) fn is_repeated(headers: &HeaderMap) -> bool {
    headers.get_all(NAME).iter().nth(1).is_some()
}

/// The protocol of the calling program, which the called program gets too.
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
    /// The value in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::H2 => "h2",
            Self::Tcp => "tcp",
        }
    }
}

/// The Service and port that a caller addresses, and its protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The Service.
    pub service: ServiceName,
    /// The Service's port, not the program's.
    pub port: u16,
    /// The protocol.
    pub proto: Proto,
}

impl Claim {
    /// Parses a claim: exactly these three parts, in this order.
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

/// The positive answer to a question: the checks of the head permit the request.
pub(crate) const CONTINUE: http::HeaderName = http::HeaderName::from_static("merlon-continue");

/// On a refusal to another proxy: connecting to the program failed, so the request was not processed, and it may be
/// sent to another endpoint, regardless of its method.
pub(crate) const UNSERVED: http::HeaderName = http::HeaderName::from_static("merlon-unserved");

/// Turns a claim into a question: would this request be permitted, with a body of this length (if known) to follow
/// (`Expect: 100-continue`)? A proxy that does not support questions sees an invalid claim and forwards nothing.
pub(crate) fn question(
    claim: &http::HeaderValue,
    length: Option<u64>,
) -> Option<http::HeaderValue> {
    let length = length.map_or(UNKNOWN.to_owned(), |length| length.to_string());
    let text = [claim.as_bytes(), BODY, length.as_bytes()].concat();
    http::HeaderValue::from_bytes(&text).ok()
}

/// The claim of a question, and the length of the body in question.
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

/// Parses a port: digits only, without sign or leading zero; 1–65535.
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

/// The preamble of a tunnel in wire format.
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
    fn a_claim_round_trips() {
        for text in [
            "service=shop/orders;port=80;proto=http/1.1",
            "service=shop/orders;port=65535;proto=h2",
            "service=shop/db;port=5432;proto=tcp",
        ] {
            assert_eq!(Claim::parse(text.as_bytes()).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_question_round_trips_and_is_not_a_claim() {
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
    fn other_texts_are_not_claims() {
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
