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

/// Every setting, with its value in the file, in the environment and as a flag.
const SETTINGS: [(&str, [&str; 3]); 24] = [
    ("standalone", ["/file", "/env", "/flag"]),
    ("identity", ["file/a", "env/a", "flag/a"]),
    ("gateway", ["file/b", "env/b", "flag/b"]),
    ("workload", ["file", "env", "flag"]),
    (
        "control-plane",
        ["https://file", "https://env", "https://flag"],
    ),
    ("root-namespace", ["file", "env", "flag"]),
    ("join-token", ["file", "env", "flag"]),
    ("join-token-file", ["/file", "/env", "/flag"]),
    ("token-file", ["/file", "/env", "/flag"]),
    ("trust-domain-file", ["/file", "/env", "/flag"]),
    ("trust-bundle", ["/file", "/env", "/flag"]),
    ("certificate", ["/file", "/env", "/flag"]),
    ("key", ["/file", "/env", "/flag"]),
    ("state-dir", ["/file", "/env", "/flag"]),
    ("secrets-dir", ["/file", "/env", "/flag"]),
    ("inbound", ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]),
    ("outbound", ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]),
    ("interception", ["true", "false", "true"]),
    ("admin", ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]),
    (
        "probes-address",
        ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"],
    ),
    (
        "probes",
        [
            "{}",
            r#"{"/env": {"handler": {"tcpSocket": {"port": 1}}, "timeoutSeconds": 1}}"#,
            r#"{"/flag": {"handler": {"tcpSocket": {"port": 1}}, "timeoutSeconds": 1}}"#,
        ],
    ),
    ("workers", ["1", "2", "3"]),
    ("access-log", ["off", "refusals", "all"]),
    ("drain-timeout", ["1s", "2s", "3s"]),
];

const ARGUMENTS: &str = "MERLON_PROXY_TEST_ARGUMENTS";

fn variable(flag: &str) -> String {
    format!("MERLON_{}", flag.to_uppercase().replace('-', "_"))
}

/// Not a test of its own: [`a_flag_beats_the_environment_and_the_environment_beats_the_file`] runs it as a process with
/// another environment, which a test cannot change for itself.
#[test]
fn settings_of_a_child_process() {
    let Ok(arguments) = std::env::var(ARGUMENTS) else {
        return;
    };
    let flags = Flags::try_parse_from(arguments.lines()).unwrap();
    let file = flags.config.as_deref().map(ProxyBootstrap::load);
    let settings = flags.over(file.transpose().unwrap().unwrap_or_default());
    let token = settings
        .join_token
        .as_ref()
        .map(|token| reveal(token).to_string());
    println!("\nSETTINGS {token:?} {settings:?}");
}

/// What a process with these arguments and variables reads.
fn settings(arguments: &[String], variables: &[(String, &str)]) -> String {
    let own = std::iter::once("merlon-proxy").chain(arguments.iter().map(String::as_str));
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "flags::tests::settings_of_a_child_process",
            "--exact",
            "--nocapture",
        ])
        .env(ARGUMENTS, own.collect::<Vec<_>>().join("\n"))
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    let text = String::from_utf8(child.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("SETTINGS "));
    let errors = String::from_utf8_lossy(&child.stderr);
    line.unwrap_or_else(|| panic!("{text}{errors}")).to_owned()
}

#[test]
fn a_flag_beats_the_environment_and_the_environment_beats_the_file() {
    let [file_values, environment_values, flag_values] = [0, 1, 2];
    let camel_case = |flag: &str| {
        let mut words = flag.split('-');
        let first = words.next().unwrap().to_owned();
        words.fold(first, |name, word| {
            let (first, rest) = word.split_at(1);
            name + &first.to_uppercase() + rest
        })
    };
    let value = |flag: &str, text: &str| match flag {
        "interception" | "workers" | "probes" => serde_json::from_str(text).unwrap(),
        _ => serde_json::Value::from(text),
    };
    // Settings that exclude each other cannot be in one file.
    let sidecar = ["gateway", "control-plane", "join-token-file"];
    let gateway = ["workload", "standalone", "certificate", "key", "join-token"];
    for without in [&sidecar[..], &gateway[..]] {
        let table = SETTINGS.iter().filter(|(flag, _)| !without.contains(flag));
        let fields: serde_json::Map<_, _> = table
            .clone()
            .map(|(flag, values)| (camel_case(flag), value(flag, values[file_values])))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, serde_json::to_string(&fields).unwrap()).unwrap();
        let config = format!("--config={}", file.path().display());
        let flags = |source: usize| -> Vec<_> {
            let each = table.clone();
            each.map(|(flag, values)| format!("--{flag}={}", values[source]))
                .collect()
        };
        let variables: Vec<_> = table
            .clone()
            .map(|(flag, values)| (variable(flag), values[environment_values]))
            .collect();

        let only = |source| settings(&flags(source), &[]);
        let all = [vec![config.clone()], flags(flag_values)].concat();
        let config = [config];
        assert_eq!(settings(&config, &[]), only(file_values));
        assert_eq!(settings(&config, &variables), only(environment_values));
        assert_eq!(settings(&all, &variables), only(flag_values));
    }
}

#[test]
fn every_flag_is_also_a_variable_and_a_field_but_for_those_of_the_process() {
    use clap::CommandFactory as _;
    let command = Flags::command();
    let mut found = Vec::new();
    for argument in command.get_arguments() {
        let flag = argument.get_long().unwrap();
        let environment = argument.get_env().map(|name| name.to_str().unwrap());
        match flag {
            "addresses-file" | "test-limits" | "test-clock" => {
                assert_eq!(environment, None, "{flag}")
            }
            "config" => assert_eq!(environment, Some("MERLON_CONFIG")),
            _ => {
                assert_eq!(environment, Some(variable(flag).as_str()));
                found.push(flag.to_owned());
            }
        }
    }
    found.sort();
    let mut table = SETTINGS.map(|(flag, _)| flag.to_owned());
    table.sort();
    assert_eq!(found, table);
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

#[test]
fn the_table_of_the_readme_has_exactly_the_flags_that_help_shows_with_their_defaults() {
    use clap::CommandFactory as _;

    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once("\n## Flags\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut table = std::collections::BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `--")) {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let (flags, default) = (cells.next().unwrap(), cells.next().unwrap());
        for flag in flags.split(", ") {
            table.insert(flag.trim_matches('`').to_owned(), default);
        }
    }
    let command = Flags::command();
    let shown = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set());
    let mut flags = std::collections::BTreeSet::new();
    for argument in shown {
        let Some(long) = argument.get_long() else {
            continue;
        };
        let flag = format!("--{long}");
        let Some(default) = table.get(&flag) else {
            panic!("the table lacks `{flag}`");
        };
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        if let Some((_, value)) = help.split_once("[default: ") {
            let value = value.trim_end_matches(']').replace('`', "");
            let value = value.replace("number of available", "the available");
            assert_eq!(value, default.replace('`', ""), "the default of `{flag}`");
        }
        flags.insert(flag);
    }
    assert_eq!(flags, table.into_keys().collect());
}
