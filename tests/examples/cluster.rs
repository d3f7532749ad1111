//! Holds a cluster until it is told to end: `make cluster`.
//!
//! `cluster FOLDER`: writes there `kubeconfig`, which works on this machine, and `values.yaml`, by which the chart finds the
//! images that were loaded; then `ready`; and stays until SIGTERM or Ctrl-C.

use std::path::{Path, PathBuf};

use merlon_tests::{Cluster, cluster, cluster::merlon};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() {
    let Some(folder) = std::env::args().nth(1).map(PathBuf::from) else {
        eprintln!("error: no folder is given\nhint: cluster FOLDER");
        std::process::exit(2);
    };
    if !cluster::is_possible() {
        eprintln!(
            "error: a cluster needs root: it makes namespaces, mounts and cgroups\nhint: sudo make cluster"
        );
        std::process::exit(1);
    }
    let mut end = signal(SignalKind::terminate()).expect("a signal");
    let write = |name: &str, text: &str| put(&folder.join(name), text);
    let cluster = Cluster::start().await;
    let forwarded = cluster.forward().await;
    write("kubeconfig", &cluster.kubeconfig_at(forwarded));
    let images = cluster.load_merlon().await;
    cluster.install_gateway_crds().await;
    write("values.yaml", &merlon::evaluation_values(images));
    write("node", &cluster.init().to_string());
    write("ready", "");
    tokio::select! {
        _ = end.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

fn put(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
