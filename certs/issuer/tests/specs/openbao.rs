//! The issuer against a real OpenBao, with a token that only has the least-privilege policy.

use std::{fs, time::Duration};

use merlon_certs::{LeafError, LeafFacts, PrivateKey, TrustRoots, X509Svid, pem, unix_now};
use merlon_issuer::{Fault, IssueError, OpenError, Vault, VaultTimes};
use merlon_test_support::{limit, openbao::OpenBao, until, until_some};
use reqwest::Method;
use serde_json::{Value, json};

use crate::bao::Mesh;

const HOUR: Duration = Duration::from_secs(3_600);
const WEB: &str = "spiffe://one.test/ns/shop/sa/web";

/// A certificate for a new key, verified as a proxy does.
async fn issued(vault: &Vault, id: &str, lifetime: Duration) -> Result<X509Svid, IssueError> {
    let key = PrivateKey::generate().unwrap();
    let id = id.parse().unwrap();
    let chain = vault.sign(&key.csr(&id).unwrap(), &id, lifetime).await?;
    let roots = TrustRoots::from_bundle(&vault.bundle().await?).unwrap();
    Ok(X509Svid::parse(chain, key, &roots, unix_now()).unwrap())
}

fn csr(id: &str) -> String {
    let der = PrivateKey::generate()
        .unwrap()
        .csr(&id.parse().unwrap())
        .unwrap();
    pem::encode("CERTIFICATE REQUEST", &der).to_string()
}

async fn change_role(mesh: &Mesh<'_>, field: &str, value: Value) {
    let path = format!("{}/roles/{}", mesh.prepared.pki_mount, mesh.prepared.role);
    let response = mesh.bao.call(Method::GET, &path, Value::Null).await;
    let mut role = response.body["data"].clone();
    role[field] = value;
    mesh.bao.write(&path, role).await;
}

#[tokio::test]
async fn a_workload_gets_a_certificate_for_only_its_name_and_its_key() {
    let mesh = Mesh::shared("one.test").await;
    let vault = mesh.vault();
    vault.check().await.unwrap();

    let svid = issued(&vault, WEB, HOUR).await.unwrap();

    assert_eq!(svid.id.to_string(), WEB);
    // The leaf and the intermediate, without the root.
    assert_eq!(svid.chain.len(), 2);
    let facts = LeafFacts::parse(&svid.chain[0]).unwrap();
    assert!(!facts.other_names);
    let lifetime = facts.not_after.as_secs() - facts.not_before.as_secs();
    assert_eq!(lifetime, 3_600 + 300);
    let again = issued(&vault, WEB, HOUR).await.unwrap();
    assert_ne!(svid.serial, again.serial);
}

#[tokio::test]
async fn the_token_may_only_sign_names_of_its_trust_domain() {
    let mesh = Mesh::shared("one.test").await;
    let (int, root) = (&mesh.prepared.pki_mount, &mesh.prepared.root_mount);
    let me = mesh
        .bao
        .call_with(
            mesh.token(),
            Method::GET,
            "auth/token/lookup-self",
            Value::Null,
        )
        .await;
    let policies = me.body["data"]["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 1, "{policies:?}");
    assert!(
        policies[0]
            .as_str()
            .unwrap()
            .starts_with("merlon-control-plane-")
    );
    assert_eq!(me.body["data"]["period"], 86_400);

    let csr = csr(WEB);
    let sign = format!("{int}/sign/svid");
    let right = json!({ "csr": csr, "uri_sans": WEB, "ttl": "1h", "format": "pem" });
    let with = |field: &str, value: Value| {
        let mut wrong = right.clone();
        wrong[field] = value;
        (Method::POST, sign.clone(), wrong)
    };
    let without_name = json!({ "csr": csr, "ttl": "1h", "format": "pem" });
    let list = Method::from_bytes(b"LIST").unwrap();
    let refused = [
        with("uri_sans", json!("spiffe://two.test/ns/shop/sa/web")),
        with("uri_sans", json!("https://one.test/")),
        with("common_name", json!("")),
        with("common_name", json!("web")),
        with("not_after", json!("2030-01-01T00:00:00Z")),
        with("alt_names", json!("web.shop")),
        with("exclude_cn_from_sans", json!(true)),
        with("format", json!("der")),
        (Method::POST, sign.clone(), without_name),
        (Method::POST, format!("{int}/sign-verbatim"), right.clone()),
        (
            Method::POST,
            format!("{int}/sign-verbatim/svid"),
            right.clone(),
        ),
        (Method::POST, format!("{int}/issue/svid"), right.clone()),
        (
            Method::POST,
            format!("{int}/issuer/default/sign/svid"),
            right.clone(),
        ),
        (Method::POST, format!("{root}/sign/svid"), right.clone()),
        (
            Method::POST,
            format!("{root}/root/sign-intermediate"),
            right.clone(),
        ),
        (
            Method::POST,
            format!("{root}/root/rotate/internal"),
            json!({ "common_name": "x" }),
        ),
        (Method::DELETE, format!("{root}/root"), Value::Null),
        (
            Method::POST,
            format!("{int}/roles/svid"),
            json!({ "allow_any_name": true }),
        ),
        (
            Method::POST,
            format!("{int}/roles/other"),
            json!({ "allow_any_name": true }),
        ),
        (
            Method::POST,
            format!("{int}/config/issuers"),
            json!({ "default": "x" }),
        ),
        (list.clone(), format!("{int}/keys"), Value::Null),
        (list.clone(), "sys/policies/acl".to_owned(), Value::Null),
        (
            Method::POST,
            "sys/mounts/other".to_owned(),
            json!({ "type": "pki" }),
        ),
        (Method::POST, "auth/token/create".to_owned(), json!({})),
        (Method::PUT, "sys/seal".to_owned(), Value::Null),
    ];
    for (method, path, body) in refused {
        let what = format!("{method} {path} {body}");
        let response = mesh.bao.call_with(mesh.token(), method, &path, body).await;
        assert_eq!(response.status, 403, "{what}: {response:?}");
    }
    let response = mesh
        .bao
        .call_with(mesh.token(), Method::POST, &sign, right)
        .await;
    assert_eq!(response.status, 200, "{response:?}");
}

#[tokio::test]
async fn a_name_of_another_trust_domain_is_refused_before_any_call() {
    let mesh = Mesh::shared("one.test").await;
    let error = issued(&mesh.vault(), "spiffe://two.test/ns/shop/sa/web", HOUR)
        .await
        .unwrap_err();
    assert_eq!(error.fault(), Fault::Request);
    assert_eq!(
        error.to_string(),
        "the certificate request is for another trust domain"
    );
}

#[tokio::test]
async fn a_certificate_for_two_names_that_the_server_signs_is_not_an_identity() {
    // Policy and role see one text with a valid prefix; the server splits it into two names. So what the server permits is
    // not enough: every answer is checked, as the tests of `src/checks.rs` show.
    let mesh = Mesh::shared("one.test").await;
    let body = json!({
        "csr": csr(WEB), "uri_sans": format!("{WEB},spiffe://one.test/ns/bank/sa/vault"), "format": "pem",
    });
    let path = format!("{}/sign/svid", mesh.prepared.pki_mount);
    let response = mesh
        .bao
        .call_with(mesh.token(), Method::POST, &path, body)
        .await;
    assert_eq!(response.status, 200, "{response:?}");
    let text = response.body["data"]["certificate"].as_str().unwrap();
    let leaf = &pem::certificates(text.as_bytes()).unwrap()[0];
    assert_eq!(LeafFacts::parse(leaf), Err(LeafError::UriNames(2)));
}

#[tokio::test]
async fn a_certificate_that_no_root_of_the_mesh_signed_is_rejected() {
    let bao = OpenBao::shared().await;
    let (ours, theirs) = (
        Mesh::new(bao, "one.test").await,
        Mesh::new(bao, "one.test").await,
    );
    let both = [&ours.prepared.policy, &theirs.prepared.policy];
    let response = bao
        .call(
            Method::POST,
            "auth/token/create-orphan",
            json!({ "policies": both }),
        )
        .await;
    let token = response.body["auth"]["client_token"].as_str().unwrap();
    fs::write(&ours.token_file, token).unwrap();
    let mut settings = ours.settings();
    settings.pki_mount = theirs.prepared.pki_mount.clone();
    let vault = Vault::connect(&settings, &ours.trust_domain, VaultTimes::default()).unwrap();

    let error = issued(&vault, WEB, HOUR).await.unwrap_err();

    assert_eq!(error.fault(), Fault::Issuer);
    let error = error.to_string();
    assert!(
        error.contains("it is not signed by a root of the mesh"),
        "{error}"
    );
}

#[tokio::test]
async fn the_wrong_field_of_a_role_is_reported_and_nothing_is_signed_until_it_is_fixed() {
    let mesh = Mesh::shared("one.test").await;
    for (field, wrong, right) in [
        ("use_csr_sans", json!(true), json!(false)),
        ("no_store", json!(false), json!(true)),
        ("require_cn", json!(true), json!(false)),
        ("not_after_bound", json!("permit"), json!("forbid")),
        ("not_before_duration", json!("30s"), json!("5m")),
        (
            "allowed_uri_sans",
            json!(["spiffe://one.test/*"]),
            json!(["spiffe://one.test/ns/*/sa/*"]),
        ),
    ] {
        change_role(&mesh, field, wrong).await;
        let vault = mesh.vault();
        let error = issued(&vault, WEB, HOUR).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Issuer, "{field}");
        let error = error.to_string();
        let expected = format!("`{field}` of role `{}/roles/svid`", mesh.prepared.pki_mount);
        assert!(error.contains(&expected), "{error}");
        change_role(&mesh, field, right).await;
        // The server may still answer from its cache.
        let mut tries = 0;
        while let Err(error) = issued(&vault, WEB, HOUR).await {
            tries += 1;
            assert!(tries < 100 && error.to_string().contains(field), "{error}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_unknown_role_or_an_invalid_mount_is_an_error_of_the_set_up() {
    let mesh = Mesh::shared("one.test").await;
    let mut settings = mesh.settings();
    settings.role = "nope".to_owned();
    let vault = Vault::connect(&settings, &mesh.trust_domain, VaultTimes::default()).unwrap();
    let error = issued(&vault, WEB, HOUR).await.unwrap_err();
    // The policy does not include this role either, so the server only returns 403.
    assert!(
        matches!(&error, IssueError::Forbidden(what) if what.contains("roles/nope")),
        "{error}"
    );
    assert_eq!(error.fault(), Fault::Issuer);

    settings.pki_mount = "../sys".to_owned();
    let error = Vault::connect(&settings, &mesh.trust_domain, VaultTimes::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot set up the connection to Vault: `pkiMount` is not a path: `../sys`"
    );
}

#[tokio::test]
async fn a_root_token_is_refused() {
    let mesh = Mesh::shared("one.test").await;
    let response = mesh
        .bao
        .call(
            Method::POST,
            "auth/token/create-orphan",
            json!({ "policies": ["root"] }),
        )
        .await;
    let token = response.body["auth"]["client_token"].as_str().unwrap();
    fs::write(&mesh.token_file, token).unwrap();
    let error = mesh.vault().check().await.unwrap_err();
    assert!(
        error.to_string().contains("the token is a root token"),
        "{error}"
    );
}

#[tokio::test]
async fn while_the_server_is_sealed_or_hangs_the_issuer_is_unavailable_and_then_recovers() {
    let bao = OpenBao::start().await;
    let mesh = Mesh::new(&bao, "one.test").await;
    let vault = mesh.vault();
    issued(&vault, WEB, HOUR).await.unwrap();

    bao.seal().await;
    let error = issued(&vault, WEB, HOUR).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Unavailable, "{error}");
    assert!(error.to_string().contains("sealed"), "{error}");
    bao.unseal().await;
    issued(&vault, WEB, HOUR).await.unwrap();

    // A server that accepts connections and never answers.
    bao.freeze().await;
    let impatient = mesh.vault_with(VaultTimes {
        request: Duration::from_millis(100),
        ..VaultTimes::default()
    });
    let call = limit("the time-out of a call", issued(&impatient, WEB, HOUR));
    let error = call.await.unwrap_err();
    assert_eq!(error.fault(), Fault::Unavailable, "{error}");
    bao.thaw();
    issued(&vault, WEB, HOUR).await.unwrap();

    let (settings, trust_domain) = (mesh.settings(), mesh.trust_domain.clone());
    let token_file = fs::read(&mesh.token_file).unwrap();
    drop(mesh);
    drop(bao);
    let error = issued(&vault, WEB, HOUR).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Unavailable, "{error}");
    // A control plane can start meanwhile.
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings;
    settings.token_file = Some(folder.path().join("token"));
    fs::write(folder.path().join("token"), token_file).unwrap();
    let vault = Vault::connect(&settings, &trust_domain, VaultTimes::default()).unwrap();
    assert_eq!(vault.check().await.unwrap_err().fault(), Fault::Unavailable);
}

#[tokio::test]
async fn a_revoked_token_is_read_again_from_its_file() {
    let mesh = Mesh::shared("one.test").await;
    let vault = mesh.vault();
    issued(&vault, WEB, HOUR).await.unwrap();
    let revoke = json!({ "token": mesh.token() });
    mesh.bao.write("auth/token/revoke", revoke).await;

    // The file still has the revoked token. It may be replaced at any time, so this error is retried.
    let error = issued(&vault, WEB, HOUR).await.unwrap_err();
    assert!(matches!(error, IssueError::Unauthenticated), "{error}");
    assert_eq!(error.fault(), Fault::Unavailable);

    fs::write(&mesh.token_file, mesh.new_token("1h").await + "\n").unwrap();
    issued(&vault, WEB, HOUR).await.unwrap();
}

#[tokio::test]
async fn the_token_is_renewed_again_and_again() {
    let mesh = Mesh::shared("one.test").await;
    let token = mesh.new_token("1h").await;
    fs::write(&mesh.token_file, &token).unwrap();
    let vault = mesh.vault_with(VaultTimes {
        renewal: Duration::from_millis(100),
        ..VaultTimes::default()
    });
    // In seconds since 1970; absent before the first renewal.
    let renewed_at = async || {
        let path = "auth/token/lookup-self";
        let response = mesh
            .bao
            .call_with(&token, Method::GET, path, Value::Null)
            .await;
        response.body["data"]["last_renewal_time"].as_u64()
    };
    assert_eq!(renewed_at().await, None);
    let renewals = async {
        let first = until_some("a first renewal", renewed_at).await;
        let again = until_some("a second renewal", async || {
            renewed_at().await.filter(|at| *at > first)
        });
        again.await;
    };
    tokio::select! {
        () = vault.keep_alive() => unreachable!("it runs without end"),
        () = renewals => {}
    }
}

#[tokio::test]
async fn the_bundle_has_every_root_and_no_cross_certificate_and_is_never_empty() {
    let mesh = Mesh::shared("one.test").await;
    let root = &mesh.prepared.root_mount;
    let vault = mesh.vault();
    let before = vault.bundle().await.unwrap();
    assert_eq!(before.roots.len(), 1);

    let second = json!({
        "common_name": "root 2", "issuer_name": "root-2", "key_name": "root-2", "key_type": "ec", "ttl": "87600h",
    });
    mesh.bao
        .write(&format!("{root}/root/rotate/internal"), second)
        .await;
    assert_eq!(vault.bundle().await.unwrap().roots.len(), 2);

    let cross =
        json!({ "common_name": "root 2", "key_ref": "root-2", "add_basic_constraints": true });
    let cross = mesh
        .bao
        .write(&format!("{root}/intermediate/cross-sign"), cross)
        .await;
    let bridge =
        json!({ "csr": cross["csr"], "use_csr_values": true, "ttl": "8760h", "format": "pem" });
    let path = format!("{root}/issuer/root-1/sign-intermediate");
    let bridge = mesh.bao.write(&path, bridge).await;
    let imported = json!({ "pem_bundle": bridge["certificate"] });
    mesh.bao
        .write(&format!("{root}/issuers/import/cert"), imported)
        .await;
    let after = vault.bundle().await.unwrap();
    assert_eq!(after.roots.len(), 2);
    assert!(after.roots.contains(&before.roots[0]));
    // The chain of a new certificate still leads to the first root.
    issued(&vault, WEB, HOUR).await.unwrap();

    let response = mesh
        .bao
        .call(Method::DELETE, &format!("{root}/root"), Value::Null)
        .await;
    assert!(response.status < 300, "{response:?}");
    let error = vault.bundle().await.unwrap_err();
    assert_eq!(error.fault(), Fault::Issuer, "{error}");
}

#[tokio::test]
async fn a_server_on_another_machine_needs_https() {
    let mesh = Mesh::shared("one.test").await;
    let mut settings = mesh.settings();
    settings.address = "http://vault.example:8200".parse().unwrap();
    let error = Vault::connect(&settings, &mesh.trust_domain, VaultTimes::default()).unwrap_err();
    assert!(matches!(error, OpenError::Vault(_)));
    assert!(
        error
            .to_string()
            .contains("neither https nor http on loopback"),
        "{error}"
    );
}

#[tokio::test]
async fn the_set_up_can_be_removed_completely() {
    let bao = OpenBao::shared().await;
    let mesh = Mesh::new(bao, "one.test").await;
    let vault = mesh.vault();
    issued(&vault, WEB, HOUR).await.unwrap();
    mesh.remove().await;
    assert!(issued(&vault, WEB, HOUR).await.is_err());
    let mounts = bao.call(Method::GET, "sys/mounts", Value::Null).await.body;
    for mount in [&mesh.prepared.pki_mount, &mesh.prepared.root_mount] {
        assert_eq!(mounts["data"].get(format!("{mount}/")), None);
    }
    let policy = format!("sys/policies/acl/{}", mesh.prepared.policy);
    assert_eq!(
        bao.call(Method::GET, &policy, Value::Null).await.status,
        404
    );
}

#[tokio::test]
async fn debug_shows_no_token() {
    let mesh = Mesh::shared("one.test").await;
    let shown = format!("{:?} {:?}", mesh.vault(), mesh.prepared);
    assert!(!shown.contains(mesh.token()), "{shown}");
}

#[tokio::test]
async fn a_secret_is_only_read_below_the_prefix_for_any_path() {
    let bao = OpenBao::start().await;
    let engine = json!({ "type": "kv", "options": { "version": "2" } });
    bao.write("sys/mounts/secret", engine).await;
    // A new engine refuses everything until it is set up.
    until("the engine is ready", async || {
        let path = "secret/config";
        bao.call(Method::GET, path, Value::Null).await.status == 200
    })
    .await;
    let put = async |path: &str, data: Value| {
        let data = json!({ "data": data });
        bao.write(&format!("secret/data/{path}"), data).await;
    };
    let first = json!({ "password": "one", "port": 5432, "on": true });
    put("merlon/shop/db", first).await;
    put("other/db", json!({ "password": "foreign" })).await;
    let mesh = Mesh::new(&bao, "secrets.test").await;
    let vault = mesh.vault();

    let secret = vault.secret("shop/db").await.unwrap();
    assert_eq!(secret.version, 1);
    let of = |key: &str| secret.data.get(key).map(String::as_str);
    assert_eq!(
        [of("password"), of("port"), of("on")],
        [Some("one"), Some("5432"), Some("true")]
    );
    assert!(!format!("{secret:?}").contains("one"), "{secret:?}");
    put("merlon/shop/db", json!({ "password": "two" })).await;
    assert_eq!(vault.secret("shop/db").await.unwrap().version, 2);

    for path in [
        "../other/db",
        "shop/../../other/db",
        "",
        "shop//db",
        "shop/./db",
        "shop/db?version=1",
        "shop/%2e%2e",
    ] {
        let error = vault.secret(path).await.unwrap_err();
        assert!(matches!(error, IssueError::Setup(_)), "{path}: {error}");
        assert!(
            error.to_string().contains("is not a path"),
            "{path}: {error}"
        );
    }
    // The policy refuses it too.
    let settings = merlon_config::resource::VaultIssuer {
        kv_prefix: "other".to_owned(),
        ..mesh.settings()
    };
    let outside = Vault::connect(&settings, &mesh.trust_domain, VaultTimes::default()).unwrap();
    let error = outside.secret("db").await.unwrap_err();
    assert!(matches!(error, IssueError::Forbidden(_)), "{error}");

    let error = vault.secret("shop/gone").await.unwrap_err();
    assert!(
        error.to_string().contains("secret/merlon/shop/gone"),
        "{error}"
    );
    bao.call(Method::DELETE, "secret/data/merlon/shop/db", Value::Null)
        .await;
    let error = vault.secret("shop/db").await.unwrap_err();
    assert_eq!(error.fault(), Fault::Issuer, "{error}");
    bao.seal().await;
    let error = vault.secret("shop/db").await.unwrap_err();
    assert_eq!(error.fault(), Fault::Unavailable, "{error}");
}
