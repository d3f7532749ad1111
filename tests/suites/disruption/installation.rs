//! The installation guide, followed word for word in a real cluster.

use std::{env, fs, os::unix::fs::symlink, path::Path};

use merlon_tests::{
    Cluster,
    cluster::{self, merlon},
    folder,
    process::Output,
    tools, wait,
};

const GUIDE: &str = include_str!("../../../docs/install.md");

/// The `sh` blocks below a heading of the guide.
fn blocks(heading: &str) -> Vec<String> {
    let (_, rest) = GUIDE
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("no `{heading}`"));
    let end = rest.find("\n## ").unwrap_or(rest.len());
    let mut found = Vec::new();
    let mut lines = rest[..end].lines();
    while let Some(line) = lines.next() {
        let Some(indent) = line.find("```sh") else {
            continue;
        };
        let typed = lines.by_ref().take_while(|line| line.trim() != "```");
        found.push(
            typed
                .map(|line| adapted(line.get(indent..).unwrap_or_default()) + "\n")
                .collect::<String>(),
        );
    }
    found
}

/// Uses an image of this cluster, whose nodes pull none, and does not wait for programs that ignore SIGTERM.
fn adapted(line: &str) -> String {
    line.replace("docker.io/library/busybox:1.37", cluster::BUSYBOX)
        .replace(
            "      serviceAccountName:",
            "      terminationGracePeriodSeconds: 1\n      serviceAccountName:",
        )
}

struct Reader<'a> {
    cluster: &'a Cluster,
    work: &'a Path,
}

impl Reader<'_> {
    async fn run(&self, block: &str) -> Output {
        let merlon = tools::binary("merlon");
        let programs = merlon.parent().expect("a folder").display();
        let bin = tools::folder().join("bin");
        let bin = bin.canonicalize().expect("the tools");
        let path = env::var("PATH").unwrap_or_default();
        self.cluster
            .inside("bash", Path::new("/bin/bash"))
            .env("PATH", format!("{}:{programs}:{path}", bin.display()))
            .env("HOME", self.work)
            .args(["-eu", "-o", "pipefail", "-c"])
            // Entering the node's namespaces changes to the root of its file system.
            .arg(format!("cd {}\n{block}", self.work.display()))
            .run()
            .await
    }

    async fn output(&self, block: &str) -> String {
        // kubectl refuses to restart an object twice within a second, which a person does not do.
        let what = "the last restart was a second ago";
        let ended = wait::until_some(what, async || {
            let ended = self.run(block).await;
            (!ended.err.contains("within the past second")).then_some(ended)
        })
        .await;
        assert_eq!(ended.code(), 0, "{block}\n{}{}", ended.out, ended.err);
        ended.out
    }
}

#[tokio::test]
async fn the_guide_works_from_an_empty_cluster_to_a_first_policy_and_to_uninstallation() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = Cluster::start().await;
    let work = folder::fresh();
    let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts");
    symlink(
        charts.canonicalize().expect("the charts"),
        work.path().join("charts"),
    )
    .expect("a link");
    let values = merlon::evaluation_values(cluster.load_merlon().await);
    fs::write(work.path().join("values.yaml"), values).expect("a file");
    let reader = Reader {
        cluster: &cluster,
        work: work.path(),
    };

    for block in blocks("## 4. The charts") {
        reader.output(&block).await;
    }
    let [look] = &blocks("## 5. Check the installation")[..] else {
        panic!("one block")
    };
    let seen = reader.output(look).await;
    assert!(seen.contains("Phase:          Succeeded"), "{seen}");

    let first = blocks("## 6. The first namespace");
    let [programs, label, refused, policy, ..] = &first[..] else {
        panic!("four blocks: {first:?}")
    };
    let seen = reader.output(programs).await;
    assert!(seen.ends_with("two orders\n"), "{seen}");
    reader.output(label).await;
    let meshed = "kubectl get pods --all-namespaces --selector merlon.io/meshed=true --output name";
    assert_eq!(
        reader
            .output(meshed)
            .await
            .lines()
            .filter(|pod| !pod.contains("merlon-test"))
            .count(),
        2
    );
    let answer = reader.run(refused).await;
    assert!(answer.err.contains("403 Forbidden"), "{answer:?}");
    let seen = reader.output(policy).await;
    assert!(seen.ends_with("two orders\n"), "{seen}");
    let wrong = policy.replace("Action::\"read\"", "Action::\"reed\"");
    assert_ne!(wrong, *policy);
    let answer = reader.run(&wrong).await;
    assert!(
        answer.err.contains("did you mean `Action::\"read\"`"),
        "{answer:?}"
    );

    for block in blocks("## Upgrade and rollback") {
        reader.output(&block).await;
    }

    reader.output("merlon check").await;

    let last = blocks("## Uninstall");
    let [out, uninstall, left, definitions] = &last[..] else {
        panic!("four blocks: {last:?}")
    };
    reader.output(out).await;
    wait::until("no pod is meshed", async || {
        reader
            .output(meshed)
            .await
            .lines()
            .all(|pod| pod.contains("merlon-test"))
    })
    .await;
    for block in [uninstall, left, definitions] {
        reader.output(block).await;
    }
    let kinds = "all,configmaps,secrets,serviceaccounts,leases,roles,rolebindings,clusterroles,\
                 clusterrolebindings,poddisruptionbudgets,mutatingwebhookconfigurations,\
                 validatingwebhookconfigurations,customresourcedefinitions,namespaces";
    let left = cluster
        .kubectl(&["get", kinds, "--all-namespaces", "--output=name"])
        .await;
    let ours: Vec<_> = left
        .lines()
        .filter(|name| name.contains("merlon"))
        .collect();
    assert!(ours.is_empty(), "left behind: {ours:#?}");
    let call = programs.lines().last().expect("a call");
    assert_eq!(reader.output(call).await, "two orders\n");
}
