//! The configuration files of a cluster's programs.

use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path};

use aws_lc_rs::rand;
use serde_json::json;

use super::{addresses::Addresses, sweep};
use crate::tools;

/// Writes them.
pub(super) fn write(folder: &Path, addresses: Addresses) {
    for name in ["pki", "cni", "volumes"] {
        fs::create_dir(folder.join(name)).expect("a folder");
    }
    let key = rcgen::KeyPair::generate().expect("a key");
    secret(&folder.join("pki/accounts.pem"), &key.serialize_pem());
    put(&folder.join("pki/accounts.pub"), &key.public_key_pem());
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).expect("random bytes");
    let token = format!("{:032x}", u128::from_be_bytes(bytes));
    secret(
        &folder.join("pki/tokens.csv"),
        &format!("{token},admin,admin,\"system:masters\"\n"),
    );
    let at = |name: &str| folder.join(name).display().to_string();
    secret(
        &folder.join("kubeconfig"),
        &json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": {
                "server": format!("https://{}:6443", addresses.node()),
                "certificate-authority": at("pki/apiserver.crt"),
            }}],
            "users": [{ "name": "admin", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "admin" } }],
            "current-context": "test",
        })
        .to_string(),
    );
    put(
        &folder.join("cni/10-pods.conflist"),
        &network(folder, addresses),
    );
    put(&folder.join("containerd.toml"), &containerd(folder));
    put(&folder.join("kubelet.json"), &kubelet(folder, addresses));
}

fn put(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn secret(path: &Path, text: &str) {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn network(folder: &Path, addresses: Addresses) -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": folder.join("leases"),
                    "ranges": [[{ "subnet": addresses.pods() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
    .to_string()
}

// `restrict_oom_score_adj`: root does not have CAP_SYS_RESOURCE on every machine. The sandbox image is pinned, because
// garbage collection would remove it and no registry could provide it again.
fn containerd(folder: &Path) -> String {
    let folder_text = folder.display();
    let plugins = tools::folder().join("cni");
    let plugins = plugins.canonicalize().unwrap_or_else(|error| {
        panic!(
            "{}: {error}; install it with: make tools",
            plugins.display()
        )
    });
    format!(
        r#"version = 3
root = "{folder_text}/containerd"
state = "{folder_text}/containers"
[grpc]
  address = "{folder_text}/containerd.sock"
[ttrpc]
  address = "{folder_text}/containerd.sock.ttrpc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "localhost/pause:test"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["{plugins}"]
  conf_dir = "{folder_text}/cni"
"#,
        plugins = plugins.display()
    )
}

// The kubelet accepts anonymous requests, which are the API server's `exec` and `logs`: the network has no other clients.
fn kubelet(folder: &Path, addresses: Addresses) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", sweep::cgroup(folder)),
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": false,
        "containerRuntimeEndpoint": format!("unix://{}", folder.join("containerd.sock").display()),
        "volumePluginDir": folder.join("volumes"),
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "failSwapOn": false,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "address": addresses.node().to_string(),
        "healthzBindAddress": "127.0.0.1",
        "clusterDNS": [addresses.dns().to_string()],
        "clusterDomain": "cluster.local",
    })
    .to_string()
}

/// The documents of the cluster's name server.
pub(super) fn name_server(addresses: Addresses) -> String {
    include_str!("../../cluster/dns.yaml").replace("CLUSTER_DNS", &addresses.dns().to_string())
}
