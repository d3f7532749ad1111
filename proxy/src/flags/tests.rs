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
fn a_pod_token_requires_the_trust_bundle_and_reads_the_trust_domain_beside_it() {
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
fn a_pod_token_and_a_join_token_exclude_each_other() {
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
    assert!(refused.contains("exclude each other"), "{refused}");
    let refused = refusal(&["--trust-domain-file", "/domain", "--state-dir", "/state"]);
    assert!(refused.contains("with `--token-file` only"), "{refused}");
}

mod probes_in_text {
    use merlon_config::probe::{Grpc, Handler, HttpGet, Probe, Scheme, TcpSocket};
    use proptest::prelude::*;

    use super::*;

    fn handler() -> impl Strategy<Value = Handler> {
        let scheme = prop_oneof![Just(Scheme::Http), Just(Scheme::Https)];
        let headers = prop::collection::vec((any::<String>(), any::<String>()), 0..3);
        prop_oneof![
            (any::<u16>(), any::<String>(), scheme, headers).prop_map(
                |(port, path, scheme, headers)| Handler::HttpGet(HttpGet {
                    port,
                    path,
                    scheme,
                    headers,
                })
            ),
            any::<u16>().prop_map(|port| Handler::TcpSocket(TcpSocket { port })),
            (any::<u16>(), any::<String>())
                .prop_map(|(port, service)| Handler::Grpc(Grpc { port, service })),
        ]
    }

    proptest! {
        #[test]
        fn probes_survive_a_round_trip(
            written in prop::collection::btree_map(any::<String>(), (handler(), any::<u32>()), 0..4)
        ) {
            let written: Probes = written
                .into_iter()
                .map(|(path, (handler, timeout_seconds))| (path, Probe { handler, timeout_seconds }))
                .collect();
            let text = serde_json::to_string(&written).unwrap();
            prop_assert_eq!(&probes(&text).unwrap().0, &written);
            // Truncated text is rejected, not read in part.
            let mut short = text;
            short.pop();
            let refused = probes(&short).unwrap_err();
            prop_assert!(refused.contains("write each probe under its path"), "{}", refused);
        }

        #[test]
        fn invalid_text_is_rejected_without_a_panic(text in any::<String>()) {
            if let Err(refused) = probes(&text) {
                prop_assert!(refused.contains("write each probe under its path"), "{}", refused);
            }
        }
    }
}

/// Only a debug build has this flag.
#[test]
fn the_limits_of_a_test_come_from_a_file_and_a_wrong_file_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("limits.json");
    let with = |text: &str| {
        fs::write(&file, text).unwrap();
        read(&[
            "--state-dir",
            "/state",
            "--test-limits",
            file.to_str().unwrap(),
        ])
    };
    let limits = with(r#"{"connectTimeout": "50ms", "connections": 3}"#).unwrap();
    let expected = Limits {
        connect_timeout: Duration::from_millis(50),
        connections: 3,
        ..Limits::default()
    };
    assert_eq!(limits.limits, expected);
    assert_eq!(
        read(&["--state-dir", "/state"]).unwrap().limits,
        Limits::default()
    );
    for (text, problem) in [
        (
            r#"{"connectTimeOut": "50ms"}"#,
            "unknown field `connectTimeOut`",
        ),
        (r#"{"connectTimeout": 50}"#, "a duration"),
        ("connections: 3", "expected value"),
    ] {
        let refused = with(text).unwrap_err().to_string();
        assert!(refused.contains("limits.json"), "{refused}");
        assert!(refused.contains(problem), "{refused}");
    }
    fs::remove_file(&file).unwrap();
    let missing = read(&[
        "--state-dir",
        "/state",
        "--test-limits",
        file.to_str().unwrap(),
    ]);
    assert!(missing.unwrap_err().to_string().contains("limits.json"));
}
