//! Tokens, and the documents of their issuers.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use merlon_api::JoinToken;
use merlon_control_plane::fuzzing::{bound, is_token};
use merlon_policy::authn::{
    TokenRules, User,
    jwks::{KeySet, MAX_KEYS},
    token::{TokenProblem, verify},
};
use merlon_proxy::fuzzing::{Place, jwks_uri, max_age};
use serde_json::{Value, json};
use url::{Host, Url};

use crate::input::{Input, text};

const ISSUER: &str = "https://i";

static RULES: LazyLock<TokenRules> = LazyLock::new(|| {
    let spec = json!([{ "from": "shop/tokens", "spec": { "issuers": [{
        "name": "i", "issuer": ISSUER, "audiences": ["a", "b"], "tokenTypes": ["JWT", "at+jwt"],
        "claims": { "department": "String", "clearance": "Long", "staff": "Boolean", "regions": "StringSet" },
        "groupsClaim": "realm_access.roles",
    }] } }]);
    TokenRules::new(&serde_json::from_value::<Vec<_>>(spec).expect("rules"))
});

/// The key of RFC 7515 appendix A.3.
const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
const D: &str = "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI";

static KEYS: LazyLock<Arc<KeySet>> = LazyLock::new(|| {
    let set = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "1", "x": X, "y": Y }] });
    Arc::new(KeySet::parse(set.to_string().as_bytes()).expect("a key"))
});

static SIGNER: LazyLock<EcdsaKeyPair> = LazyLock::new(|| {
    let decode = |text| BASE64URL.decode(text).expect("base64url");
    let public = [vec![4], decode(X), decode(Y)].concat();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    EcdsaKeyPair::from_private_key_and_public_key(algorithm, &decode(D), &public).expect("a key")
});

const NOW: i64 = 1_795_000_000;

fn check(token: &str) -> Result<User, TokenProblem> {
    let now = Timestamp::from_second(NOW).expect("a time");
    verify(token, &RULES, &|_| Some(Arc::clone(&KEYS)), now)
}

/// Any text is rejected as a token of an issuer whose key never signed one.
pub(crate) fn token(bytes: &[u8]) {
    text(bytes, |token| {
        let problem = check(token).expect_err("a forgery");
        assert!(!problem.to_string().is_empty());
    });
}

/// A signed token is accepted only if its header and its claims allow that, and the user is what the claims say.
/// Nothing that the signature covers can be changed.
pub(crate) fn signed(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (header, payload) = (input.part(), input.rest());
    let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(payload));
    let signature = SIGNER
        .sign(&SystemRandom::new(), signed.as_bytes())
        .expect("a signature");
    let signature = BASE64URL.encode(signature);
    let user = match check(&format!("{signed}.{signature}")) {
        Ok(user) => user,
        Err(problem) => return assert_ne!(problem, TokenProblem::BadSignature),
    };
    let header: Value = serde_json::from_slice(header).expect("JSON");
    assert_eq!(header["alg"], "ES256");
    assert!(header.get("crit").is_none());
    assert!(header.get("kid").is_none_or(|kid| kid == "1"));
    let claims: Value = serde_json::from_slice(payload).expect("JSON");
    assert_eq!(claims["iss"], ISSUER);
    assert_eq!(claims["sub"], user.subject);
    assert_eq!(user.id, format!("i#{}", user.subject));
    assert!(user.audience.iter().any(|one| one == "a" || one == "b"));
    let skew = 300.0;
    let after = |name: &str| {
        claims[name]
            .as_f64()
            .is_none_or(|at| at <= NOW as f64 + skew)
    };
    assert!(
        claims["exp"]
            .as_f64()
            .is_some_and(|at| at + skew > NOW as f64)
    );
    assert!(after("nbf") && after("iat"));
    assert!(user.groups.iter().all(|group| group.starts_with("i/")));
    let copy = serde_json::to_value(&user).expect("JSON");
    assert_eq!(serde_json::from_value::<User>(copy).expect("a user"), user);

    let mut changed = payload.to_vec();
    changed.insert(0, b' ');
    let (header, _) = signed.split_once('.').expect("two parts");
    let changed = format!("{header}.{}.{signature}", BASE64URL.encode(changed));
    assert_eq!(check(&changed), Err(TokenProblem::BadSignature));
}

/// Any bytes parse to a key set with at least one usable key, or are rejected with a reason.
pub(crate) fn jwks(bytes: &[u8]) {
    match KeySet::parse(bytes) {
        Ok(keys) => {
            assert!(!keys.is_empty() && keys.len() + keys.skipped().len() <= MAX_KEYS);
            let text = String::from_utf8_lossy(bytes);
            assert!(text.contains("keys") && text.contains("kty"));
        }
        Err(problem) => assert!(!problem.to_string().is_empty()),
    }
}

/// A discovery document names its own issuer, and leads neither to this machine nor to its link. `Cache-Control` is
/// obeyed in any case.
pub(crate) fn openid_document(bytes: &[u8]) {
    const REMOTE: &str = "https://id.test";
    let mut input = Input::new(bytes);
    let cache_control = input.part();
    let document = input.rest();
    if let Ok(value) = HeaderValue::from_bytes(cache_control) {
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, value);
        if max_age(&headers).is_some() {
            let text = String::from_utf8_lossy(cache_control).to_ascii_lowercase();
            let mut directives = text.split(',').map(str::trim);
            assert!(
                !directives.any(|one| one == "no-store" || one == "no-cache"),
                "{text}"
            );
        }
    }
    let Ok(url) = jwks_uri(document, REMOTE) else {
        return;
    };
    // serde also reads a struct from a list, and does not look into texts of members that are not read.
    if let Ok(Value::Object(document)) = serde_json::from_slice::<Value>(document) {
        assert_eq!(document["issuer"], REMOTE);
    }
    static PLACE: LazyLock<Place> =
        LazyLock::new(|| Place::of(&REMOTE.parse().expect("a URL")).expect("a client"));
    if PLACE.allows(&url) {
        assert_eq!(url.scheme(), "https");
        assert!(!is_local(&url), "{url}");
    }
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => {
            address.is_loopback() || address.is_link_local() || address.is_unspecified()
        }
        Some(Host::Ipv6(address)) => {
            let v4 = address.to_ipv4_mapped();
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || v4.is_some_and(|v4| v4.is_loopback() || v4.is_link_local())
        }
        Some(Host::Domain(_)) => false,
        None => true,
    }
}

/// A join token has one form, and its secret is in no message.
pub(crate) fn join_token(bytes: &[u8]) {
    text(bytes, |text| match text.parse::<JoinToken>() {
        Ok(token) => {
            let revealed = token.reveal();
            assert_eq!(revealed, text.trim());
            let again: JoinToken = revealed.parse().expect("the same token");
            assert_eq!(again.secret_sha256(), token.secret_sha256());
            assert_eq!(again.root_sha256(), token.root_sha256());
            let (rest, hash) = revealed.rsplit_once('.').expect("a hash");
            let (domain, secret) = rest.rsplit_once('.').expect("a secret");
            // The parts that are shown may contain the same characters.
            let shown = format!("{token:?}").replace(hash, "");
            assert!(domain.contains(secret) || !shown.contains(secret));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    });
}

/// A token review leads to an identity only for the one account that it names, bound to one pod.
pub(crate) fn service_account(bytes: &[u8]) {
    text(bytes, |text| {
        if is_token(text) {
            assert!(HeaderValue::from_str(text).is_ok());
        }
    });
    let Ok(user) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    let Ok((account, pod, uid)) = bound(&user) else {
        return;
    };
    let name = format!(
        "system:serviceaccount:{}:{}",
        account.namespace, account.service_account
    );
    assert_eq!(user["username"], name);
    let extra = &user["extra"];
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], json!([pod]));
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], json!([uid]));
}
