use std::sync::LazyLock;

use jsonwebtoken::{EncodingKey, crypto::sign, jwk::Jwk};
use merlon_config::resource::RequestAuthenticationSpec;
use merlon_config::snapshot::Attached;
use serde_json::json;

use super::*;
use crate::authn::ClaimValue;

const NOW: i64 = 1_795_000_000;

/// A key pair that signs tokens, and its public half as a JWK.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn new(algorithm: Algorithm, kid: &str) -> Self {
        let (key, der): (_, fn(&[u8]) -> EncodingKey) = match algorithm {
            Algorithm::ES256 => (
                rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
                EncodingKey::from_ec_der,
            ),
            Algorithm::ES384 => (
                rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
                EncodingKey::from_ec_der,
            ),
            Algorithm::EdDSA => (
                rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519),
                EncodingKey::from_ed_der,
            ),
            _ => (
                rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048),
                |der| EncodingKey::from_rsa_der(&pkcs1(der)),
            ),
        };
        let pair = key.unwrap();
        let key = der(&pair.serialize_der());
        let mut jwk = if algorithm == Algorithm::EdDSA {
            json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(pair.public_key_raw()) })
        } else {
            serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap()
        };
        jwk["kid"] = json!(kid);
        jwk.as_object_mut().unwrap().remove("alg");
        Self {
            algorithm,
            key,
            jwk,
        }
    }

    fn sign(&self, header: &str, payload: &str) -> String {
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(payload)
        );
        let signature = sign(signed.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{signed}.{signature}")
    }

    #[expect(clippy::needless_pass_by_value, reason = "calls read better")]
    fn token(&self, header: Value, payload: Value) -> String {
        self.sign(&header.to_string(), &payload.to_string())
    }
}

/// The RSA key within PKCS #8, which is its last OCTET STRING.
fn pkcs1(pkcs8: &[u8]) -> Vec<u8> {
    // SEQUENCE { INTEGER 0, SEQUENCE { OID, NULL } (15 bytes), OCTET STRING (long form, 2 length bytes) }
    let start = 4 + 3 + 15 + 4;
    pkcs8[start..].to_vec()
}

static EC: LazyLock<Signer> = LazyLock::new(|| Signer::new(Algorithm::ES256, "ec"));
static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::new(Algorithm::RS256, "rsa"));

fn rules(change: impl FnOnce(&mut Value)) -> TokenRules {
    let mut issuer = json!({
        "name": "customers",
        "issuer": "https://id.test",
        "audiences": ["orders", "orders.test"],
        "claims": { "department": "String", "clearance": "Long", "staff": "Boolean", "regions": "StringSet" },
        "groupsClaim": "realm_access.roles",
    });
    change(&mut issuer);
    let spec: RequestAuthenticationSpec =
        serde_json::from_value(json!({ "issuers": [issuer] })).unwrap();
    TokenRules::new(&[Attached {
        from: "shop/tokens".parse().unwrap(),
        spec,
    }])
}

fn header() -> Value {
    json!({ "typ": "at+jwt", "alg": "ES256", "kid": "ec" })
}

fn payload() -> Value {
    json!({ "iss": "https://id.test", "sub": "alice", "aud": "orders", "exp": NOW + 60, "iat": NOW, "nbf": NOW })
}

fn with(mut value: Value, name: &str, member: Value) -> Value {
    value[name] = member;
    value
}

fn without(mut value: Value, name: &str) -> Value {
    value.as_object_mut().unwrap().remove(name);
    value
}

fn set(keys: &[&Value]) -> Arc<KeySet> {
    Arc::new(KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap())
}

fn check_by(token: &str, rules: &TokenRules, keys: &Arc<KeySet>) -> Result<User, TokenProblem> {
    let keys = |issuer: &str| (issuer == "https://id.test").then(|| Arc::clone(keys));
    verify(token, rules, &keys, Timestamp::from_second(NOW).unwrap())
}

fn check(token: &str) -> Result<User, TokenProblem> {
    check_by(token, &rules(|_| {}), &set(&[&EC.jwk]))
}

#[test]
fn a_valid_token_identifies_its_user() {
    let payload = json!({
        "iss": "https://id.test", "sub": "alice", "aud": ["x", "orders.test"], "exp": NOW as f64 + 59.5, "iat": NOW + 29,
        "scope": "read  write", "azp": "web", "acr": "gold", "amr": ["pwd", "mfa"], "auth_time": NOW - 5,
        "department": "sales", "clearance": 3, "staff": true, "regions": ["eu", "us"],
        "realm_access": { "roles": ["gold"] }, "tier": 2, "odd": [1, "x", false], "deep": { "a": { "b": "c" } }, "nothing": null,
    });
    let user = check(&EC.token(header(), payload)).unwrap();
    assert_eq!(
        (user.id.as_str(), user.issuer_name.as_str()),
        ("customers#alice", "customers")
    );
    assert_eq!(user.audience, ["x", "orders.test"]);
    assert_eq!(user.scopes, ["read", "write"]);
    assert_eq!(
        (user.client_id.as_deref(), user.acr.as_deref()),
        (Some("web"), Some("gold"))
    );
    assert_eq!(user.amr, ["pwd", "mfa"]);
    assert_eq!(user.auth_time.unwrap().as_second(), NOW - 5);
    assert_eq!(user.groups, ["customers/gold"]);
    assert_eq!(
        user.claims["department"],
        ClaimValue::String("sales".into())
    );
    assert_eq!(user.claims["clearance"], ClaimValue::Long(3));
    assert_eq!(user.claims["staff"], ClaimValue::Boolean(true));
    assert_eq!(
        user.claims["regions"],
        ClaimValue::StringSet(vec!["eu".into(), "us".into()])
    );
    assert_eq!(user.tags["tier"], ["2"]);
    assert_eq!(user.tags["odd"], ["1", "x", "false"]);
    assert_eq!(user.tags["deep.a.b"], ["c"]);
    assert!(!user.tags.contains_key("department") && !user.tags.contains_key("iss"));
    assert_eq!(user.expires_at.as_millisecond(), NOW * 1_000 + 59_500);
}

#[test]
fn every_kind_of_key_verifies_with_its_own_algorithm() {
    for algorithm in [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ] {
        let generated;
        let signer = match algorithm {
            Algorithm::ES256 => &*EC,
            Algorithm::ES384 | Algorithm::EdDSA => {
                generated = Signer::new(algorithm, "k");
                &generated
            }
            _ => &*RSA,
        };
        let name = format!("{algorithm:?}");
        let rules = rules(|issuer| issuer["algorithms"] = json!([name]));
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(json!({ "typ": "at+jwt", "alg": name }).to_string()),
            URL_SAFE_NO_PAD.encode(payload().to_string()),
        );
        let signature = sign(signed.as_bytes(), &signer.key, algorithm).unwrap();
        let user = check_by(
            &format!("{signed}.{signature}"),
            &rules,
            &set(&[&signer.jwk]),
        );
        assert!(user.is_ok(), "{name}: {user:?}");
    }
}

#[test]
fn a_malformed_token_is_rejected() {
    let good = EC.token(header(), payload());
    let parts: Vec<&str> = good.split('.').collect();
    let [head, body, signature] = [parts[0], parts[1], parts[2]];
    let long = "a".repeat(MAX_BYTES + 1);
    for token in [
        "",
        ".",
        "..",
        "a.b",
        long.as_str(),
        &format!("{head}.{body}"),
        &format!("{good}.x"),
        &format!("{head}.{body}."),
        &format!("{head}=.{body}.{signature}"),
        &format!("{head}.{body}.{signature}="),
        &format!(" {good}"),
        &format!("{good}\n"),
        &EC.sign("[]", "{}"),
        &EC.sign(&header().to_string(), "[]"),
        &EC.sign(&header().to_string(), "not json"),
        &EC.sign(
            r#"{"alg":"none","alg":"ES256","typ":"at+jwt"}"#,
            &payload().to_string(),
        ),
        &EC.sign(
            &header().to_string(),
            r#"{"iss":"https://id.test","sub":"bob","sub":"alice","aud":"orders","exp":9e9}"#,
        ),
        &EC.sign(&format!("{} ", header()), &format!("{}{{}}", payload())),
        &EC.token(with(header(), "typ", json!(["at+jwt"])), payload()),
        &EC.token(with(header(), "alg", json!(1)), payload()),
        &EC.token(without(header(), "alg"), payload()),
        &EC.token(with(header(), "kid", json!(7)), payload()),
        &EC.token(header(), with(payload(), "iss", json!(["https://id.test"]))),
        &EC.token(header(), without(payload(), "iss")),
        &EC.token(header(), without(payload(), "sub")),
        &EC.token(header(), with(payload(), "sub", json!(""))),
        &EC.token(header(), with(payload(), "sub", json!(1))),
        &EC.token(header(), with(payload(), "aud", json!({ "orders": true }))),
        &EC.token(header(), with(payload(), "aud", json!(["orders", 1]))),
        &EC.token(header(), without(payload(), "exp")),
        &EC.token(header(), with(payload(), "exp", json!("9999999999"))),
        &EC.token(header(), with(payload(), "exp", json!(null))),
        &EC.token(header(), with(payload(), "nbf", json!("0"))),
        &EC.token(header(), with(payload(), "iat", json!(true))),
        &EC.token(header(), with(payload(), "clearance", json!("3"))),
        &EC.token(header(), with(payload(), "clearance", json!(3.5))),
        &EC.token(header(), with(payload(), "amr", json!(1))),
        &EC.token(
            header(),
            with(payload(), "realm_access", json!({ "roles": [1] })),
        ),
    ] {
        let problem = check(token).unwrap_err();
        assert!(
            matches!(problem, TokenProblem::Malformed(_)),
            "{token:.80}: {problem}"
        );
        assert_eq!(
            (problem.status(), problem.reason()),
            (401, "authn.invalid_token")
        );
    }
    // Spare bits in the last character of a signature are a second encoding of the same bytes.
    let last = signature.chars().last().unwrap();
    let spare = URL_SAFE_NO_PAD.encode([URL_SAFE_NO_PAD.decode(signature).unwrap()].concat());
    assert_eq!(spare.chars().last(), Some(last));
}

#[test]
fn the_issuer_is_compared_byte_for_byte() {
    for iss in [
        "https://id.test/",
        "https://ID.test",
        "https://id.test.evil",
        "",
    ] {
        let problem = check(&EC.token(header(), with(payload(), "iss", json!(iss)))).unwrap_err();
        assert_eq!(problem, TokenProblem::UnknownIssuer(iss.into()));
    }
}

#[test]
fn a_token_of_another_type_is_rejected() {
    for good in [
        "at+jwt",
        "AT+JWT",
        "application/at+jwt",
        "Application/At+Jwt",
    ] {
        check(&EC.token(with(header(), "typ", json!(good)), payload())).unwrap();
    }
    for bad in [
        "JWT",
        "",
        "at",
        "text/at+jwt",
        "application/application/at+jwt",
    ] {
        let problem = check(&EC.token(with(header(), "typ", json!(bad)), payload())).unwrap_err();
        assert_eq!(problem, TokenProblem::WrongType(bad.into()));
    }
    let untyped = EC.token(without(header(), "typ"), payload());
    assert_eq!(check(&untyped), Err(TokenProblem::WrongType("JWT".into())));
    let lenient = rules(|issuer| issuer["tokenTypes"] = json!(["JWT"]));
    check_by(&untyped, &lenient, &set(&[&EC.jwk])).unwrap();
}

#[test]
fn critical_extensions_are_rejected() {
    let token = EC.token(with(header(), "crit", json!(["b64"])), payload());
    assert_eq!(check(&token), Err(TokenProblem::CriticalExtension));
}

#[test]
fn the_algorithm_must_match_the_issuer_and_the_key() {
    for name in ["none", "None", "HS256", "es256", "ES512", "ES384"] {
        let token = EC.token(with(header(), "alg", json!(name)), payload());
        assert_eq!(
            check(&token),
            Err(TokenProblem::WrongAlgorithm(name.into()))
        );
    }
    // Algorithm confusion: HMAC with the public key as the secret (RFC 8725 §2.1).
    let secret = EncodingKey::from_secret(EC.jwk.to_string().as_bytes());
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(with(header(), "alg", json!("HS256")).to_string()),
        URL_SAFE_NO_PAD.encode(payload().to_string()),
    );
    let forged = format!(
        "{signed}.{}",
        sign(signed.as_bytes(), &secret, Algorithm::HS256).unwrap()
    );
    assert_eq!(
        check(&forged),
        Err(TokenProblem::WrongAlgorithm("HS256".into()))
    );
    // The issuer accepts this algorithm, but not with this key.
    let token = EC.token(with(header(), "alg", json!("RS256")), payload());
    assert!(matches!(
        check(&token),
        Err(TokenProblem::KeyMismatch { .. })
    ));
    // A key with an `alg` is not used with another algorithm.
    let only = with(RSA.jwk.clone(), "alg", json!("PS256"));
    let token = RSA.token(
        json!({ "typ": "at+jwt", "alg": "RS256", "kid": "rsa" }),
        payload(),
    );
    check_by(&token, &rules(|_| {}), &set(&[&RSA.jwk])).unwrap();
    assert!(matches!(
        check_by(&token, &rules(|_| {}), &set(&[&only])),
        Err(TokenProblem::KeyMismatch { .. })
    ));
}

#[test]
fn the_key_is_selected_by_kid() {
    let unnamed = EC.token(without(header(), "kid"), payload());
    check(&unnamed).unwrap();
    let two = set(&[&EC.jwk, &RSA.jwk]);
    assert_eq!(
        check_by(&unnamed, &rules(|_| {}), &two),
        Err(TokenProblem::NoKeyId)
    );
    check_by(&EC.token(header(), payload()), &rules(|_| {}), &two).unwrap();
    let unknown = EC.token(with(header(), "kid", json!("new")), payload());
    assert_eq!(
        check(&unknown),
        Err(TokenProblem::UnknownKey {
            issuer: "https://id.test".into(),
            kid: "new".into()
        })
    );
}

#[test]
fn missing_issuer_keys_are_a_503() {
    let token = EC.token(header(), payload());
    let problem = verify(&token, &rules(|_| {}), &|_| None, Timestamp::UNIX_EPOCH).unwrap_err();
    assert_eq!(
        (problem.status(), problem.reason()),
        (503, "authn.keys_unavailable")
    );
}

#[test]
fn a_forged_signature_or_a_changed_payload_is_rejected() {
    let good = EC.token(header(), payload());
    let (_, signature) = good.rsplit_once('.').unwrap();
    let changed = EC.token(header(), with(payload(), "sub", json!("bob")));
    let (signed, _) = changed.rsplit_once('.').unwrap();
    assert_eq!(
        check(&format!("{signed}.{signature}")),
        Err(TokenProblem::BadSignature)
    );
    let forger = Signer::new(Algorithm::ES256, "ec");
    assert_eq!(
        check(&forger.token(header(), payload())),
        Err(TokenProblem::BadSignature)
    );
    // A key in the token's header is ignored.
    let with_key = forger.token(with(header(), "jwk", forger.jwk.clone()), payload());
    assert_eq!(check(&with_key), Err(TokenProblem::BadSignature));
    // All zero, of the right length (CVE-2022-21449).
    let zero = format!("{signed}.{}", URL_SAFE_NO_PAD.encode([0u8; 64]));
    assert_eq!(check(&zero), Err(TokenProblem::BadSignature));
}

#[test]
fn the_audience_must_be_accepted() {
    for aud in [
        json!("payments"),
        json!([]),
        json!(["Orders", "orders2"]),
        json!(""),
    ] {
        let token = EC.token(header(), with(payload(), "aud", aud));
        assert_eq!(check(&token), Err(TokenProblem::WrongAudience));
    }
    assert_eq!(
        check(&EC.token(header(), without(payload(), "aud"))),
        Err(TokenProblem::WrongAudience)
    );
}

#[test]
fn times_are_checked_with_the_clock_skew() {
    let at = |name: &str, time: f64| check(&EC.token(header(), with(payload(), name, json!(time))));
    let now = NOW as f64;
    at("exp", now - 29.9).unwrap();
    assert!(matches!(
        at("exp", now - 30.0),
        Err(TokenProblem::Expired(_))
    ));
    assert!(matches!(at("exp", -1e300), Err(TokenProblem::Expired(_))));
    at("exp", 1e300).unwrap();
    at("nbf", now + 30.0).unwrap();
    assert!(matches!(
        at("nbf", now + 30.5),
        Err(TokenProblem::NotYetValid(_))
    ));
    at("iat", now + 30.0).unwrap();
    assert!(matches!(
        at("iat", now + 31.0),
        Err(TokenProblem::IssuedInFuture(_))
    ));
    let strict = rules(|issuer| issuer["clockSkew"] = json!("0s"));
    let token = EC.token(header(), with(payload(), "exp", json!(NOW)));
    assert!(matches!(
        check_by(&token, &strict, &set(&[&EC.jwk])),
        Err(TokenProblem::Expired(_))
    ));
}

#[test]
fn a_key_set_keeps_usable_keys_and_reports_skipped_ones() {
    let set = json!({ "keys": [
        EC.jwk,
        { "kty": "oct", "k": "c2VjcmV0" },
        with(RSA.jwk.clone(), "use", json!("enc")),
        with(RSA.jwk.clone(), "key_ops", json!(["encrypt"])),
        with(RSA.jwk.clone(), "d", json!("AQAB")),
        with(RSA.jwk.clone(), "n", json!(URL_SAFE_NO_PAD.encode([0xff; 128]))),
        with(RSA.jwk.clone(), "n", json!(URL_SAFE_NO_PAD.encode([0xff; 1025]))),
        with(RSA.jwk.clone(), "e", json!("Ag")),
        with(RSA.jwk.clone(), "alg", json!("ES256")),
        with(EC.jwk.clone(), "crv", json!("secp256k1")),
        with(EC.jwk.clone(), "x", json!("AAAA")),
        with(EC.jwk.clone(), "kid", json!(7)),
        "nonsense",
    ] });
    let set = KeySet::parse(set.to_string().as_bytes()).unwrap();
    assert_eq!(
        (set.len(), set.skipped().len()),
        (1, 12),
        "{:?}",
        set.skipped()
    );
    assert!(set.has_key("ec"));
    assert_eq!(set.skipped()[0], "key 1 contains a secret");
}

#[test]
fn an_invalid_key_set_is_rejected() {
    use crate::authn::jwks::JwksProblem as P;
    let parse = |text: &str| KeySet::parse(text.as_bytes()).unwrap_err();
    assert!(matches!(parse("{}"), P::Malformed(_)));
    assert!(matches!(parse("nonsense"), P::Malformed(_)));
    assert!(matches!(parse(r#"{"keys":[],"keys":[]}"#), P::Malformed(_)));
    assert!(matches!(parse(r#"{"keys":[]}"#), P::NoUsableKey(_)));
    assert!(matches!(
        parse(r#"{"keys":[{"kty":"oct","k":"AA"}]}"#),
        P::NoUsableKey(_)
    ));
    assert!(matches!(
        parse(&json!({ "keys": vec![json!({}); 101] }).to_string()),
        P::TooManyKeys(101)
    ));
    assert!(matches!(
        KeySet::parse(&vec![b' '; (1 << 20) + 1]),
        Err(P::TooLarge(_))
    ));
}
