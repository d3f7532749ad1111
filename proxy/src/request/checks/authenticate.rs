//! Authenticates the user: verifies the bearer token, if there is one, by the rules of the requested service.

use std::rc::Rc;

use http::{HeaderMap, HeaderValue, header};
use merlon_policy::authn::{
    TokenRules, User,
    token::{self, TokenProblem},
};

use super::stage::{Authenticated, Screened};
use crate::{protocol::denial::Denial, request::token_cache, telemetry::metrics::CacheResult};

/// # Errors
/// [`Denial::TokenMissing`], [`Denial::TokenMalformed`], [`Denial::TokenInQuery`] or [`Denial::Token`].
pub(crate) async fn authenticate(screened: Screened<'_>) -> Result<Authenticated<'_>, Denial> {
    let service = &screened.target.service;
    let rules = service.policy.tokens();
    if rules.is_empty() {
        // No issuer is accepted here, so the token is left to the program.
        return Ok(screened.authenticated(None));
    }
    if screened.call.head.uri.query().is_some_and(has_token) {
        return Err(Denial::TokenInQuery);
    }
    let user = match bearer(&screened.call.head.headers)? {
        Some(token) => Some(verify_token(&screened, &token, rules).await?),
        None if rules.required() => return Err(Denial::TokenMissing),
        None => None,
    };
    if !rules.forward_token() {
        screened.call.head.headers.remove(header::AUTHORIZATION);
    }
    Ok(screened.authenticated(user))
}

async fn verify_token(
    screened: &Screened<'_>,
    token: &HeaderValue,
    rules: &TokenRules,
) -> Result<Rc<User>, Denial> {
    let call = &*screened.call;
    let local = &call.local;
    let keys = &local.shared.keys;
    let service = &screened.target.service;
    let token = bearer_text(token).ok_or(Denial::TokenMalformed)?;
    let fingerprint = token_cache::fingerprint(token);
    if let Some(user) = local
        .tokens
        .find(&fingerprint, service, keys.generation(), call.now)
    {
        local.metrics.token_cache.inc(CacheResult::Hit);
        return Ok(user);
    }
    local.metrics.token_cache.inc(CacheResult::Miss);
    let mut generation = keys.generation();
    let mut result = token::verify(token, rules, &|issuer| keys.get(issuer), call.now);
    // An unknown key may be newer than the cached keys: fetch them once, limited in time and in frequency.
    let missed = match &result {
        Err(TokenProblem::UnknownKey { issuer, kid }) => Some((issuer.as_str(), kid.as_str())),
        Err(TokenProblem::KeysUnavailable { issuer }) => Some((issuer.as_str(), "")),
        _ => None,
    };
    if let Some((issuer, kid)) = missed {
        keys.refetch(issuer, kid).await;
        generation = keys.generation();
        result = token::verify(token, rules, &|issuer| keys.get(issuer), call.now);
    }
    let user = Rc::new(result.map_err(Denial::Token)?);
    local.tokens.insert(fingerprint, service, generation, &user);
    Ok(user)
}

/// The value of `Authorization` if its scheme is `Bearer`.
fn bearer(headers: &HeaderMap) -> Result<Option<HeaderValue>, Denial> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (all.next(), all.next()) else {
        return if headers.contains_key(header::AUTHORIZATION) {
            Err(Denial::TokenMalformed)
        } else {
            Ok(None)
        };
    };
    let bytes = value.as_bytes();
    let scheme = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Ok(None);
    }
    if bearer_text(value).is_some() {
        Ok(Some(value.clone()))
    } else {
        Err(Denial::TokenMalformed)
    }
}

/// The token: `b64token` after exactly one space (RFC 6750 §2.1).
fn bearer_text(value: &HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?;
    let (_, token) = text.split_once(' ')?;
    let fits = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=')
    };
    (!token.is_empty() && token.bytes().all(fits)).then_some(token)
}

fn has_token(query: &str) -> bool {
    query.split('&').any(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        name.eq_ignore_ascii_case("access_token")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[&'static str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (header::AUTHORIZATION, HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn exactly_one_well_formed_bearer_token_is_accepted() {
        assert!(bearer(&with(&["Bearer abc.def"])).unwrap().is_some());
        assert!(bearer(&with(&["bearer abc"])).unwrap().is_some());
        assert!(bearer(&with(&[])).unwrap().is_none());
        assert!(bearer(&with(&["Basic dTpw"])).unwrap().is_none());
        for bad in [
            "Bearer",
            "Bearer ",
            "Bearer  abc",
            "Bearer a b",
            "Bearer a,b",
            "Bearer a\tb",
        ] {
            assert!(
                matches!(bearer(&with(&[bad])), Err(Denial::TokenMalformed)),
                "{bad:?}"
            );
        }
        assert!(matches!(
            bearer(&with(&["Bearer a", "Bearer b"])),
            Err(Denial::TokenMalformed)
        ));
    }

    #[test]
    fn a_token_in_the_query_is_detected() {
        assert!(has_token("a=1&access_token=x"));
        assert!(has_token("Access_Token"));
        assert!(!has_token("my_access_token=x&token=y"));
    }
}
