use clap::Parser as _;

use super::*;

fn read(more: &[&str]) -> Result<ProxyConfig, Report> {
    let always = [
        "merlon-proxy",
        "--identity",
        "shop/web",
        "--control-plane",
        "https://merlon:7564",
    ];
    Flags::try_parse_from(always.iter().chain(more))
        .unwrap()
        .into_config()
}

fn refusal(more: &[&str]) -> String {
    read(more).unwrap_err().to_string()
}

#[test]
fn a_pods_token_needs_the_meshs_roots_and_finds_the_trust_domain_beside_them() {
    let refused = refusal(&["--token-file", "/token"]);
    assert!(refused.contains("merlon-trust-bundle"), "{refused}");
    let trust = [
        "--token-file",
        "/token",
        "--trust-bundle",
        "/trust/bundle.pem",
    ];
    let of = |more: &[&str]| match read(more).unwrap().source {
        Source::ControlPlane { pod_token, .. } => pod_token.unwrap(),
        other => panic!("{other:?}"),
    };
    let token = of(&trust);
    assert_eq!(token.token, Path::new("/token"));
    assert_eq!(token.trust_domain, Path::new("/trust/trust-domain"));
    let elsewhere = [&trust[..], &["--trust-domain-file", "/domain"]].concat();
    assert_eq!(of(&elsewhere).trust_domain, Path::new("/domain"));
}

#[test]
fn a_pods_token_and_a_join_token_exclude_each_other() {
    let both = [
        "--token-file",
        "/token",
        "--trust-bundle",
        "/bundle.pem",
        "--join-token-file",
        "/join",
        "--state-dir",
        "/state",
    ];
    let refused = refusal(&both);
    assert!(refused.contains("not by both"), "{refused}");
    let refused = refusal(&["--trust-domain-file", "/domain", "--state-dir", "/state"]);
    assert!(refused.contains("for `--token-file` only"), "{refused}");
}
