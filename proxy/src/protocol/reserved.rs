//! Names of headers that only Merlon may set, as bytes.

const NAMES: [&[u8]; 24] = [
    // Where the request comes from.
    b"forwarded",
    b"x-real-ip",
    b"x-client-ip",
    b"client-ip",
    b"true-client-ip",
    b"x-cluster-client-ip",
    b"cf-connecting-ip",
    b"fastly-client-ip",
    b"remote-addr",
    b"x-remote-addr",
    // Who the caller is.
    b"remote-user",
    b"x-remote-user",
    b"x-authenticated-user",
    b"client-cert",
    b"client-cert-chain",
    b"x-client-cert",
    // What it is for: a path, host or method other than the one that was authorized.
    b"x-original-url",
    b"x-original-host",
    b"x-rewrite-url",
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
    // As `HTTP_PROXY` it would redirect a CGI program's own calls.
    b"proxy",
    b"x-host",
];
const PREFIXES: [&[u8]; 10] = [
    b"x-forwarded-",
    b"x-merlon-",
    b"merlon-",
    b"x-envoy-",
    b"l5d-",
    b"proxy-",
    b"ssl-client-",
    b"x-ssl-client-",
    b"x-remote-user-",
    b"x-auth-request-",
];

/// Whether a header informs a program about who the caller is, where the request comes from or what it is for, so that
/// only a Merlon proxy may set it.
///
/// All bytes other than letters and digits are equivalent: CGI-style servers turn them all into `_`.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    // Fast path: most names have another first letter.
    let first = name.first().map(u8::to_ascii_lowercase);
    if !matches!(
        first,
        Some(b'x' | b'f' | b'c' | b'm' | b'l' | b'p' | b't' | b'r' | b's')
    ) {
        return false;
    }
    NAMES
        .iter()
        .any(|whole| name.len() == whole.len() && has_prefix(name, whole))
        || PREFIXES.iter().any(|start| has_prefix(name, start))
}

/// Whether a header is for use between proxies or addressed to a proxy: not even the local program may set it.
pub(crate) fn is_between_proxies(name: &[u8]) -> bool {
    [&b"merlon-"[..], b"x-merlon-", b"proxy-"]
        .iter()
        .any(|start| has_prefix(name, start))
}

/// Whether `name` begins with `start`, which is in lower case with `-` for every byte that is not a letter or digit.
pub(crate) fn has_prefix(name: &[u8], start: &[u8]) -> bool {
    let fold = |byte: &u8| {
        if byte.is_ascii_alphanumeric() {
            byte.to_ascii_lowercase()
        } else {
            b'-'
        }
    };
    name.len() >= start.len()
        && name
            .iter()
            .zip(start)
            .all(|(own, other)| fold(own) == *other)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::tests::harness::{removed_headers, spellings_of_removed_headers};

    #[test]
    fn the_readme_lists_exactly_the_reserved_headers() {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let names = NAMES.iter().map(|name| text(name));
        let prefixes = PREFIXES.iter().map(|start| text(start) + "*");
        let code: BTreeSet<_> = names.chain(prefixes).collect();
        let readme: BTreeSet<_> = removed_headers().into_iter().map(str::to_owned).collect();
        assert_eq!(readme, code);
    }

    #[test]
    fn each_header_of_the_readme_is_reserved_in_every_spelling() {
        for name in spellings_of_removed_headers() {
            for name in [name.clone(), name.to_uppercase(), name.replace('-', "_")] {
                assert!(is_reserved(name.as_bytes()), "{name}");
            }
        }
    }

    #[test]
    fn names_that_only_resemble_a_reserved_one_are_not_reserved() {
        for name in [
            "x-request-id",
            "content-type",
            "merlon",
            "x-forwarded",
            "client",
            "cookie",
            "lang",
            "te",
            "range",
            "referer",
            "sec-fetch-mode",
            "x-client-ip-hint",
            "proxying",
        ] {
            assert!(!is_reserved(name.as_bytes()), "{name}");
        }
    }
}
