//! `make cluster`: runs a cluster until SIGTERM or Ctrl-C.
//!
//! `cluster FOLDER` writes these files to the folder: `kubeconfig`, which works on this machine; `values.yaml`, the chart's
//! values for the loaded images; `node`, the process id of the node; and last `ready`.

use std::path::{Path, PathBuf};

use merlon_tests::{Cluster, cluster, cluster::merlon};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() {
    let Some(folder) = std::env::args().nth(1).map(PathBuf::from) else {
        eprintln!("error: the folder is missing\nhint: cluster FOLDER");
        std::process::exit(2);
    };
    if !cluster::is_possible() {
        eprintln!(
            "error: a cluster needs root to create namespaces, mounts and cgroups\nhint: sudo make cluster"
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
