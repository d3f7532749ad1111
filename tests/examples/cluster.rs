//! Holds a cluster until it is told to end: `make cluster`.
//!
//! `cluster FILE`: writes to FILE a kubeconfig that works on this machine, then `FILE.ready`, and stays.

use std::path::PathBuf;

use merlon_tests::{Cluster, cluster};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() {
    let Some(file) = std::env::args().nth(1).map(PathBuf::from) else {
        eprintln!("error: no file for the kubeconfig is given\nhint: cluster FILE");
        std::process::exit(2);
    };
    if !cluster::is_possible() {
        eprintln!(
            "error: a cluster needs root: it makes namespaces, mounts and cgroups\nhint: run it as root"
        );
        std::process::exit(1);
    }
    let mut end = signal(SignalKind::terminate()).expect("a signal");
    let cluster = Cluster::start().await;
    let forwarded = cluster.forward().await;
    let kubeconfig = cluster.kubeconfig_at(forwarded);
    std::fs::write(&file, kubeconfig).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let images = cluster.load_merlon().await;
    println!("tag {}", images.tag());
    println!("node {}", cluster.init());
    println!("folder {}", cluster.folder().display());
    std::fs::write(file.with_extension("ready"), "").expect("a file");
    tokio::select! {
        _ = end.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    let _ = std::fs::remove_file(file.with_extension("ready"));
}
