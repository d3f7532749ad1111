//! Any text is rejected as a token of an issuer whose key never signed one.
#![no_main]

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use merlon_policy::authn::{TokenRules, jwks::KeySet, token::verify};

static RULES: LazyLock<TokenRules> = LazyLock::new(|| {
    let spec = serde_json::json!([{ "from": "shop/tokens", "spec": { "issuers": [
        { "name": "i", "issuer": "https://i", "audiences": ["a"], "tokenTypes": ["JWT", "at+jwt"] },
    ] } }]);
    TokenRules::new(&serde_json::from_value::<Vec<_>>(spec).expect("rules"))
});

/// The public key of RFC 7517 appendix A.1.
static KEYS: LazyLock<Arc<KeySet>> = LazyLock::new(|| {
    let set = serde_json::json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "1",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM" }] });
    Arc::new(KeySet::parse(set.to_string().as_bytes()).expect("a key"))
});

fuzz_target!(|token: &str| {
    let result = verify(token, &RULES, &|_| Some(Arc::clone(&KEYS)), Timestamp::UNIX_EPOCH);
    assert!(!result.expect_err("a forgery").to_string().is_empty());
});
