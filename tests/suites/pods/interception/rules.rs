//! The rules that `merlon-intercept` installs.

use merlon_tests::{
    pods::{Node, are_possible},
    tools,
};

use super::documents;

#[tokio::test]
async fn rules_are_reapplied_checked_shown_and_removed_without_a_trace() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let pod = node.pod("bare", 30);
    let nft = tools::installed("nft");
    let before = pod.run(&nft, &["list", "ruleset"]).await.out;
    for backend in ["nftables", "iptables"] {
        let with = |command: &'static str| vec![command, "--backend", backend];
        let dry = pod
            .intercept(&[with("apply"), vec!["--dry-run"]].concat())
            .await;
        assert!(dry.code() == 0 && dry.out.contains("7560"), "{dry:?}");
        let absent = pod.intercept(&with("check")).await;
        assert!(
            absent.code() == 1 && absent.err.contains("not in force"),
            "{absent:?}"
        );

        assert_eq!(pod.intercept(&with("apply")).await.code(), 0);
        let once = pod.run(&nft, &["list", "ruleset"]).await.out;
        assert_eq!(pod.intercept(&with("apply")).await.code(), 0);
        assert_eq!(pod.run(&nft, &["list", "ruleset"]).await.out, once);
        assert_eq!(pod.intercept(&with("check")).await.code(), 0);
        let others = [with("check"), vec!["--proxy-uid", "1"]].concat();
        let others = pod.intercept(&others).await;
        assert!(
            others.code() == 1 && others.err.contains("differ from these arguments"),
            "{others:?}"
        );

        let flush: &[&str] = match backend {
            "nftables" => &["nft", "flush", "chain", "inet", "merlon", "output"],
            _ => &["iptables", "-t", "nat", "-F", "MERLON_OUTPUT"],
        };
        let (program, flush) = (tools::installed(flush[0]), &flush[1..]);
        assert_eq!(pod.run(&program, flush).await.code(), 0);
        let emptied = pod.intercept(&with("check")).await;
        assert!(
            emptied.code() == 1 && emptied.err.contains("incomplete"),
            "{emptied:?}"
        );

        assert_eq!(pod.intercept(&["remove"]).await.code(), 0);
        assert_eq!(
            pod.intercept(&["remove"]).await.code(),
            0,
            "also without rules"
        );
        let after = pod.run(&nft, &["list", "ruleset"]).await.out;
        assert!(!after.to_lowercase().contains("merlon"), "{after}");
        if backend == "nftables" {
            assert_eq!(after, before);
        }
    }
}

#[tokio::test]
async fn without_privileges_rules_are_refused_with_the_missing_capability() {
    if !are_possible() {
        return;
    }
    let node = Node::start("", &documents()).await;
    let pod = node.pod("bare", 30);
    let program = tools::binary("merlon-intercept");
    let program = program.to_str().unwrap();
    let user = [
        "--reuid=7565",
        "--regid=7565",
        "--clear-groups",
        program,
        "apply",
    ];
    let refused = pod.run(tools::installed("setpriv"), &user).await;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.err.contains("NET_ADMIN"), "{refused:?}");
    let wrong = pod
        .intercept(&["apply", "--exclude-outbound-ports", "80;flush ruleset"])
        .await;
    assert_eq!(wrong.code(), 2, "{wrong:?}");
    assert!(wrong.err.contains("is not a port"), "{wrong:?}");
}
