//! The cluster that the tests of Merlon on Kubernetes use: it is real, and leaves nothing when it is dropped.

use merlon_tests::{Cluster, cluster};
use serde_json::json;

/// A pod in which tests run commands.
const CALLER: &str = "
apiVersion: v1
kind: Pod
metadata: { name: caller }
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - { name: caller, image: 'localhost/busybox:test', imagePullPolicy: Never, command: [sleep, '3600'] }
";

async fn caller(cluster: &Cluster, namespace: &str) {
    cluster.apply_in(namespace, CALLER).await;
    cluster
        .wait_for(&["--for=condition=Ready", "-n", namespace, "pod/caller"])
        .await;
}

#[tokio::test]
async fn a_native_sidecar_starts_before_the_program_and_does_not_keep_a_job_from_completing() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace("sidecars").await;
    let job = "
apiVersion: batch/v1
kind: Job
metadata: { name: once }
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 1
      initContainers:
        - name: sidecar
          image: 'localhost/busybox:test'
          imagePullPolicy: Never
          restartPolicy: Always
          command: [sh, -c, 'echo beside > /tmp/index.html && exec httpd -f -p 9000 -h /tmp']
          startupProbe: { httpGet: { path: /, port: 9000 }, periodSeconds: 1 }
      containers:
        - { name: program, image: 'localhost/busybox:test', imagePullPolicy: Never, command: [wget, -qO-, 'http://127.0.0.1:9000/'] }
";
    cluster.apply_in(&namespace, job).await;
    cluster
        .wait_for(&["--for=condition=Complete", "-n", &namespace, "job/once"])
        .await;
    let output = cluster
        .kubectl(&["logs", "-n", &namespace, "job/once", "-c", "program"])
        .await;
    assert_eq!(output, "beside\n");
}

#[tokio::test]
async fn a_projected_token_authenticates_its_service_account_for_its_audience_only() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace("tokens").await;
    let pod = "
apiVersion: v1
kind: Pod
metadata: { name: bearer }
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: bearer
      image: 'localhost/busybox:test'
      imagePullPolicy: Never
      command: [sleep, '3600']
      volumeMounts: [{ name: token, mountPath: /token }]
  volumes:
    - name: token
      projected: { sources: [{ serviceAccountToken: { path: token, audience: merlon, expirationSeconds: 600 } }] }
";
    cluster.apply_in(&namespace, pod).await;
    cluster
        .wait_for(&["--for=condition=Ready", "-n", &namespace, "pod/bearer"])
        .await;
    let token = cluster
        .exec(&namespace, "bearer", &["cat", "/token/token"])
        .await
        .out;

    let review = async |audience: &str| {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [audience] },
        });
        let file = tempfile::NamedTempFile::new_in(cluster.folder()).expect("a file");
        std::fs::write(file.path(), review.to_string()).expect("a file");
        let path = file.path().to_string_lossy();
        cluster.json(&["create", "-f", &path]).await["status"].clone()
    };
    let status = review("merlon").await;
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(
        status["user"]["username"],
        format!("system:serviceaccount:{namespace}:default")
    );
    let status = review("another").await;
    assert_ne!(status["authenticated"], true, "{status}");
}

#[tokio::test]
async fn two_clusters_run_side_by_side_and_a_dropped_one_leaves_nothing() {
    if !cluster::are_possible() {
        return;
    }
    let kept = Cluster::shared().await;
    let dropped = Cluster::start().await;
    assert_ne!(kept.addresses().node(), dropped.addresses().node());
    let namespace = dropped.namespace("gone").await;
    caller(&dropped, &namespace).await;
    let elsewhere = kept.try_kubectl(&["get", "namespace", &namespace]).await;
    assert!(elsewhere.err.contains("NotFound"), "{elsewhere:?}");

    let folder = dropped.folder().to_owned();
    let mark = folder
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let network = std::fs::read_link(format!("/proc/{}/ns/net", dropped.init())).expect("a link");
    assert!(
        !traces_of(&mark).is_empty(),
        "a running cluster leaves traces"
    );
    drop(dropped);

    assert_eq!(traces_of(&mark), Vec::<String>::new());
    assert!(!folder.exists());
    for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let other = std::fs::read_link(process.path().join("ns/net")).ok();
        assert_ne!(other.as_ref(), Some(&network), "{:?}", process.path());
    }
    kept.kubectl(&["get", "node", "node"]).await;
}

/// Processes, mounts and cgroups of this machine that contain a cluster's mark.
fn traces_of(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let cgroups = std::fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(mark) || cgroups.contains(mark) {
            found.push(format!("process {:?}", process.file_name()));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the mounts");
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(mark))
            .map(str::to_owned),
    );
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")
        .expect("the cgroups")
        .flatten()
    {
        if hierarchy.path().join(mark).exists() || hierarchy.file_name().to_string_lossy() == mark {
            found.push(format!("cgroup {:?}", hierarchy.path()));
        }
    }
    found
}
