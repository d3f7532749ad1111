use proptest::prelude::*;

use super::*;

const HEAD: &str = "@id(\"a\") permit (principal, action, resource) ";

/// The message of the only excess and the text from its place on.
#[track_caller]
fn excess(text: &str) -> (String, &str) {
    let excesses = statements(text).unwrap_err();
    let [excess] = excesses.as_slice() else {
        panic!("{excesses:?}")
    };
    (
        excess.message.clone(),
        excess.at.map_or("", |at| text.get(at..).unwrap()),
    )
}

fn policy(condition: &str) -> String {
    format!("{HEAD}when {{ {condition} }};")
}

#[test]
fn each_policy_starts_after_the_previous_semicolon() {
    let first = "@id(\"a;\\\";\") // a comment; \"\npermit (principal, action, resource);";
    let text =
        format!("// the first;\n {first}\r\n// comment;\rforbid (principal, action, resource);");
    let starts = statements(&text).unwrap();
    let starts: Vec<&str> = starts
        .iter()
        .map(|at| text.get(*at..*at + 6).unwrap())
        .collect();
    assert_eq!(starts, ["@id(\"a", "forbid"]);
}

#[test]
fn a_document_has_at_most_1_mib() {
    assert!(statements(&" ".repeat(MAX_TEXT)).is_ok());
    let (message, _) = excess(&" ".repeat(MAX_TEXT + 1));
    assert_eq!(
        message,
        "the policy text has 1048577 bytes; the maximum is 1048576 (1MiB)"
    );
}

#[test]
fn a_document_has_at_most_2000_policies() {
    assert_eq!(statements(&";".repeat(MAX_POLICIES)).unwrap().len(), 2_000);
    let (message, _) = excess(&";".repeat(MAX_POLICIES + 1));
    assert_eq!(message, "the policy text has more than 2000 policies");
}

#[test]
fn a_policy_has_at_most_64_kib() {
    let long = |bytes: usize| {
        let rest = policy("context.path == \"\"").len();
        policy(&format!("context.path == \"{}\"", "x".repeat(bytes - rest)))
    };
    assert_eq!(long(MAX_POLICY).len(), MAX_POLICY);
    assert!(statements(&long(MAX_POLICY).repeat(3)).is_ok());
    let text = long(MAX_POLICY) + &long(MAX_POLICY + 1);
    let (message, place) = excess(&text);
    assert_eq!(message, "the policy has more than 65536 bytes (64KiB)");
    assert_eq!(place.len(), MAX_POLICY + 1, "the policy's start");
}

#[test]
fn a_policy_has_at_most_256_levels() {
    // The braces of `when` are one level.
    let nested = |open: &str, inner: &str, close: &str, levels: usize| {
        let levels = levels - 1;
        policy(&(open.repeat(levels) + inner + &close.repeat(levels)))
    };
    for (open, inner, close) in [
        ("(", "true", ")"),
        ("[", "1", "]"),
        ("{a:", "1", "}"),
        ("context.f(", "1", ")"),
        ("if true then true else ", "true", ""),
        ("if ", "true", " then true else true"),
    ] {
        let most = nested(open, inner, close, MAX_NESTING);
        assert_eq!(statements(&most).map(|all| all.len()), Ok(1), "{most}");
        let more = nested(open, inner, close, MAX_NESTING + 1);
        let (message, place) = excess(&more);
        assert_eq!(
            message,
            "the policy has more than 256 levels of brackets and `if`s here"
        );
        assert!(
            place.starts_with(open.trim_start_matches("context.f").chars().next().unwrap()),
            "{place}"
        );
    }
}

#[test]
fn levels_that_were_closed_do_not_count() {
    let listed = vec!["if (a) then [b] else {c: d}"; 100];
    let text = policy(&format!("[{}]", listed.join(",")));
    assert!(statements(&text).is_ok());
}

#[test]
fn a_policy_has_at_most_1024_operators() {
    // `when` is one.
    for (first, next) in [
        ("true", " || true"),
        ("true", " && true"),
        ("1", " + 1"),
        ("1", " - 1"),
        ("1", " * 1"),
        ("1", " == 1"),
        ("1", " != 1"),
        ("1", " < 1"),
        ("1", " >= 1"),
        ("context", ".a"),
        ("true", "!"),
        ("true", " in true"),
        ("true", " is true"),
        ("true", " like true"),
        ("true", " has true"),
        ("true", " } unless { true"),
    ] {
        let chain = |operators: usize| policy(&(first.to_owned() + &next.repeat(operators - 1)));
        assert!(statements(&chain(MAX_OPERATORS)).is_ok(), "{next}");
        let text = chain(MAX_OPERATORS + 1);
        let (message, place) = excess(&text);
        assert_eq!(message, "the policy has more than 1024 operators here");
        let from_last = next.trim_start_matches([' ', '}']).len() + " };".len();
        assert_eq!(place.len(), from_last, "the last operator, {next}");
    }
}

#[test]
fn a_path_after_has_counts_as_the_tests_of_its_prefixes() {
    let path = |dots: usize| policy(&format!("context has a{}", ".a".repeat(dots)));
    assert!(statements(&path(44)).is_ok(), "1 + 2 + … + 44 = 990");
    assert!(statements(&path(45)).is_err(), "… + 45 = 1035");
}

#[test]
fn a_carriage_return_ends_a_comment_as_in_cedar() {
    let text = policy(&format!("true // \r {}", "|| true".repeat(MAX_OPERATORS)));
    assert!(statements(&text).is_err());
}

#[test]
fn brackets_in_strings_and_comments_do_not_count() {
    let text = policy(&format!(
        "context.path == \"{}\\\"\" // {}\n",
        "(".repeat(1_000),
        "(".repeat(1_000)
    ));
    assert!(statements(&text).is_ok());
}

#[test]
fn every_policy_reports_its_own_excess() {
    let wrong = policy(&"(".repeat(300));
    let text = [wrong.as_str(), &policy("true"), &wrong].concat();
    assert_eq!(statements(&text).unwrap_err().len(), 2);
}

proptest! {
    #[test]
    fn tokens_of_any_text_are_in_order_and_skip_only_whitespace_and_comments(text in "[ -~\n\ré]{0,200}") {
        let mut end = 0;
        for (at, token) in tokens(&text) {
            let (Token::Word(token) | Token::Text(token) | Token::Sign(token)) = token;
            prop_assert!(at >= end && !token.is_empty());
            prop_assert_eq!(text.get(at..at + token.len()).unwrap(), token);
            let skipped = text.get(end..at).unwrap().trim();
            prop_assert!(skipped.is_empty() || skipped.contains("//"), "{}", skipped);
            end = at + token.len();
        }
    }

    /// What Cedar accepts has as many policies as are counted here, so no policy escapes the bounds.
    #[test]
    fn cedar_finds_the_same_policies(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("permit (principal, action, resource);".to_owned()),
                Just("forbid (principal, action, resource) when { context.a == \"//;\\\"\" };".to_owned()),
                "// [ -~]{0,20}\r",
                "//[ -~]{0,20}\n",
                "[ \t\n\r\u{a0}]{1,3}",
            ],
            0..12,
        ),
    ) {
        let text = parts.concat();
        if let Ok(set) = text.parse::<cedar_policy::PolicySet>() {
            prop_assert_eq!(statements(&text).unwrap().len(), set.policies().count());
        }
    }
}

#[test]
fn the_policies_of_a_text_are_counted_even_if_it_is_not_valid() {
    let one = "permit (principal, action, resource);";
    for (text, count) in [
        ("", 0),
        ("// ;", 0),
        (one, 1),
        ("permit (", 1),
        (
            "@reason(\"a;b\") permit (principal, action, resource); // ;\n",
            1,
        ),
        (";;;", 3),
    ] {
        assert_eq!(policies_in(text), count, "{text}");
    }
    assert_eq!(policies_in(&one.repeat(5_000)), 5_000);
}
