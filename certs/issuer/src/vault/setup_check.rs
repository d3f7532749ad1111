//! Checks that the set-up of the server does not allow wrong certificates.

use std::time::Duration;

use merlon_certs::{LEAF_BACKDATE, pem, unix_now};
use merlon_config::{name::TrustDomain, resource::VaultIssuer};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{
    endpoint::{Call, is_path},
    session::Session,
};
use crate::error::IssueError;

pub(super) async fn check(
    session: &Session,
    settings: &VaultIssuer,
    trust_domain: &TrustDomain,
) -> Result<(), IssueError> {
    let token = session.own_token().await?;
    if token.policies.iter().any(|policy| policy == "root") {
        return Err(IssueError::Setup(
            "the token is a root token; create one with only the policy `merlon-control-plane`"
                .to_owned(),
        ));
    }
    let (mount, name) = (&settings.pki_mount, &settings.role);
    let path = format!("{mount}/roles/{name}");
    let role: Value = session
        .call(&format!("read `{path}`"), &Call::get(path.clone()))
        .await?;
    if let Some((field, found, why)) = role_faults(&role, trust_domain).into_iter().next() {
        return Err(IssueError::Setup(format!(
            "`{field}` of role `{path}` is `{found}`, and {why}"
        )));
    }
    let issuer = role
        .get("issuer_ref")
        .and_then(Value::as_str)
        .filter(|reference| is_path(reference))
        .unwrap_or("default");
    let path = format!("{mount}/issuer/{issuer}");
    let issuer: Value = session
        .call(&format!("read `{path}`"), &Call::get(path.clone()))
        .await?;
    let longest = seconds(&role, "max_ttl").unwrap_or_default();
    issuer_fault(&issuer, longest, unix_now()).map_or(Ok(()), |why| {
        Err(IssueError::Setup(format!("issuer `{path}` {why}")))
    })
}

/// Field, current value, required value with the reason.
type RoleFault = (&'static str, String, String);

/// The wrong fields, most severe first; only the first is reported.
fn role_faults(role: &Value, trust_domain: &TrustDomain) -> Vec<RoleFault> {
    let names = json!([format!("spiffe://{trust_domain}/ns/*/sa/*")]);
    let required: [(&'static str, Value, &'static str); 14] = [
        (
            "allowed_uri_sans",
            names,
            "only workloads of the trust domain may be signed",
        ),
        (
            "use_csr_sans",
            json!(false),
            "names come from the control plane, not from the request",
        ),
        (
            "use_csr_common_name",
            json!(false),
            "names come from the control plane, not from the request",
        ),
        (
            "allow_any_name",
            json!(false),
            "a workload has exactly one name",
        ),
        (
            "require_cn",
            json!(false),
            "an X.509-SVID has no common name",
        ),
        (
            "no_store",
            json!(true),
            "every renewal would be written to storage",
        ),
        (
            "generate_lease",
            json!(false),
            "every renewal would be written to storage",
        ),
        ("key_type", json!("ec"), "keys of workloads are ECDSA P-256"),
        ("key_bits", json!(256), "keys of workloads are ECDSA P-256"),
        (
            "key_usage",
            json!(["DigitalSignature"]),
            "a workload only signs handshakes",
        ),
        (
            "client_flag",
            json!(true),
            "a workload is both client and server",
        ),
        (
            "server_flag",
            json!(true),
            "a workload is both client and server",
        ),
        (
            "not_before_duration",
            json!(LEAF_BACKDATE.as_secs()),
            "renewal counts the lifetime from five minutes after `not_before`",
        ),
        (
            "basic_constraints_valid_for_non_ca",
            json!(true),
            "a leaf must state that it is not a CA",
        ),
    ];
    let mut faults: Vec<_> = required
        .into_iter()
        .filter_map(|(field, wanted, why)| {
            let found = role.get(field).unwrap_or(&Value::Null);
            (*found != wanted).then(|| {
                (
                    field,
                    found.to_string(),
                    format!("must be `{wanted}`: {why}"),
                )
            })
        })
        .collect();
    for field in ["not_after_bound", "not_before_bound"] {
        // HashiCorp Vault lacks these fields; there only the policy refuses the parameter.
        if role.get(field).and_then(Value::as_str) == Some("permit") {
            let why = "must be `forbid`: a request could choose its own validity";
            faults.push((field, "permit".to_owned(), why.to_owned()));
        }
    }
    faults
}

fn issuer_fault(issuer: &Value, longest: Duration, now: UnixTime) -> Option<String> {
    let text = issuer.get("certificate").and_then(Value::as_str);
    let chain = pem::certificates(text.unwrap_or_default().as_bytes()).unwrap_or_default();
    let parsed = chain.first().map(|der| X509Certificate::from_der(der));
    let Some(Ok((_, certificate))) = parsed else {
        return Some("has no certificate".to_owned());
    };
    // In webpki, URI constraints fail every chain, matching or not (RUSTSEC-2026-0098); others could fail some leaves.
    if !matches!(certificate.name_constraints(), Ok(None)) {
        return Some(
            "has name constraints, so verifiers refuse the certificates that it signs".to_owned(),
        );
    }
    let end = certificate.validity().not_after.timestamp();
    let left = u64::try_from(end)
        .unwrap_or_default()
        .saturating_sub(now.as_secs());
    let needed = longest.as_secs().saturating_mul(2);
    (left < needed).then(|| {
        format!(
            "expires in {left} s, and must be valid for twice the role's `max_ttl` ({needed} s)"
        )
    })
}

/// The server writes durations as numbers of seconds.
fn seconds(role: &Value, field: &str) -> Option<Duration> {
    Some(Duration::from_secs(role.get(field)?.as_u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid_role() -> Value {
        let mut role = crate::vault_setup::role_for("spiffe://one.test");
        // As the server returns it.
        role["not_before_duration"] = json!(300);
        role
    }

    fn first_fault(role: &Value) -> Option<&'static str> {
        let faults = role_faults(role, &"one.test".parse().unwrap());
        faults.first().map(|(field, ..)| *field)
    }

    #[test]
    fn the_role_of_our_set_up_passes() {
        assert_eq!(first_fault(&valid_role()), None);
    }

    #[test]
    fn each_field_that_would_allow_a_wrong_certificate_is_reported() {
        for (field, wrong) in [
            ("allowed_uri_sans", json!(["spiffe://one.test/*"])),
            (
                "allowed_uri_sans",
                json!(["spiffe://one.test/ns/*/sa/*", "spiffe://two.test/*"]),
            ),
            ("use_csr_sans", json!(true)),
            ("use_csr_common_name", json!(true)),
            ("allow_any_name", json!(true)),
            ("require_cn", json!(true)),
            ("no_store", json!(false)),
            ("generate_lease", json!(true)),
            ("key_type", json!("any")),
            ("key_bits", json!(384)),
            ("key_usage", json!(["DigitalSignature", "CertSign"])),
            ("client_flag", json!(false)),
            ("server_flag", json!(false)),
            ("not_before_duration", json!(30)),
            ("not_after_bound", json!("permit")),
            ("not_before_bound", json!("permit")),
        ] {
            let mut role = valid_role();
            role[field] = wrong;
            assert_eq!(first_fault(&role), Some(field));
        }
    }

    #[test]
    fn a_server_without_the_bound_fields_passes() {
        let mut role = valid_role();
        let fields = role.as_object_mut().unwrap();
        fields.remove("not_after_bound");
        fields.remove("not_before_bound");
        assert_eq!(first_fault(&role), None);
    }
}
