//! Names of headers that only Merlon may set, as bytes.

/// Whether a header informs a program about who the caller is, where the request comes from or what it is for, so that
/// only a Merlon proxy may set it.
///
/// All bytes other than letters and digits are equivalent: CGI-style servers turn them all into `_`.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
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
