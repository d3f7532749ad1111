//! Names of headers that only Merlon may set, as bytes.

/// Whether a name tells a program who calls, from where or for what, and so must come from a proxy of ours alone.
///
/// Every byte that is no letter or digit counts as the same: CGI and what follows it turns them all into `_`.
pub(crate) fn is_ours(name: &[u8]) -> bool {
    const WHOLE: [&[u8]; 24] = [
        // From where.
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
        // Who.
        b"remote-user",
        b"x-remote-user",
        b"x-authenticated-user",
        b"client-cert",
        b"client-cert-chain",
        b"x-client-cert",
        // For what: another path, host or method than was decided on.
        b"x-original-url",
        b"x-original-host",
        b"x-rewrite-url",
        b"x-http-method",
        b"x-http-method-override",
        b"x-method-override",
        // Through whom: as `HTTP_PROXY` it would send a CGI program's own calls elsewhere.
        b"proxy",
        b"x-host",
    ];
    const BEGINNINGS: [&[u8]; 10] = [
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
    // Nearly all names of nearly all requests begin otherwise.
    let first = name.first().map(u8::to_ascii_lowercase);
    if !matches!(
        first,
        Some(b'x' | b'f' | b'c' | b'm' | b'l' | b'p' | b't' | b'r' | b's')
    ) {
        return false;
    }
    WHOLE
        .iter()
        .any(|whole| name.len() == whole.len() && begins(name, whole))
        || BEGINNINGS.iter().any(|start| begins(name, start))
}

/// Whether a name is one of ours between proxies, or speaks to a proxy: what not even the own program may say.
pub(crate) fn is_between_proxies(name: &[u8]) -> bool {
    [&b"merlon-"[..], b"x-merlon-", b"proxy-"]
        .iter()
        .any(|start| begins(name, start))
}

/// Whether `name` begins as `start` does, which is in lower case with `-` for what is no letter or digit.
pub(crate) fn begins(name: &[u8], start: &[u8]) -> bool {
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
