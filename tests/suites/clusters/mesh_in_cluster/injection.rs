//! Pods with an injected sidecar: which are refused, what is added to them, jobs.

use merlon_tests::{
    cluster::{self, merlon},
    process::Plan,
    tools,
};
use serde_json::Value;

use super::{meshed, orders, web_reads};

#[tokio::test]
async fn a_pod_that_cannot_join_the_mesh_is_refused_with_the_fix_and_may_opt_out() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("pods").await;
    let pod = |name: &str, metadata: &str, spec: &str| {
        format!(
            "
apiVersion: v1
kind: Pod
metadata: {{ name: {name}{metadata} }}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{ name: program, image: '{}', imagePullPolicy: Never, command: [sleep, infinity] }}]
  {spec}
",
            merlon::PROGRAMS
        )
    };
    let typo = ", annotations: { merlon.io/exclude-outbound-port: '5432' }";
    for (metadata, spec, expected) in [
        ("", "hostNetwork: true", "or remove `hostNetwork`"),
        (typo, "", "did you mean `merlon.io/exclude-outbound-ports`?"),
        ("", "securityContext: { runAsUser: 7565 }", "7565"),
    ] {
        let refused = cluster
            .try_apply_in(&shop, &pod("refused", metadata, spec))
            .await;
        assert_ne!(refused.code(), 0);
        assert!(refused.err.contains(expected), "{}", refused.err);
    }
    let opted_out = ", labels: { merlon.io/inject: disabled }";
    cluster
        .apply_in(&shop, &pod("opted-out", opted_out, ""))
        .await;
    let made = cluster
        .json(&["get", "pod", "opted-out", "-n", &shop])
        .await;
    assert!(made["spec"]["initContainers"].is_null(), "{made}");

    // The sidecar containers do not get the program's token for the API server.
    cluster.apply_in(&shop, &pod("meshed", "", "")).await;
    let made = cluster.json(&["get", "pod", "meshed", "-n", &shop]).await;
    let mounts = |container: &Value| -> Vec<String> {
        let all = container["volumeMounts"].as_array().into_iter().flatten();
        all.filter_map(|mount| Some(mount["name"].as_str()?.to_owned()))
            .collect()
    };
    let is_token = |name: &String| name.starts_with("kube-api-access");
    let own = mounts(&made["spec"]["containers"][0]);
    assert!(own.iter().any(is_token), "{own:?}");
    for number in 0..2 {
        let ours = mounts(&made["spec"]["initContainers"][number]);
        assert!(!ours.iter().any(is_token), "{ours:?}");
    }

    let privileged = pod("warned", "", "shareProcessNamespace: true");
    let warned = cluster.try_apply_in(&shop, &privileged).await;
    assert!(
        warned
            .err
            .contains("Warning: merlon: with `shareProcessNamespace"),
        "{warned:?}"
    );
}

#[tokio::test]
async fn merlon_inject_writes_the_pod_that_the_webhook_makes_and_the_webhook_leaves_it_unchanged() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("offline").await;
    let folder = tempfile::tempdir_in(cluster.folder()).expect("a folder");
    let path_of = |name: &str| folder.path().join(name).display().to_string();
    let settings = ["get", "configmap", "merlon-injection"];
    let entry = [
        "-n",
        merlon::NAMESPACE,
        "-o",
        r"jsonpath={.data.injection\.yaml}",
    ];
    let settings = cluster
        .kubectl(&[settings.as_slice(), &entry].concat())
        .await;
    std::fs::write(path_of("injection.yaml"), settings).expect("a file");
    let pod = "
apiVersion: v1
kind: Pod
metadata: { name: orders, labels: { app: orders } }
spec:
  initContainers: [{ name: first, image: first }]
  containers:
    - name: orders
      image: orders
      ports: [{ name: http, containerPort: 8080 }]
      env: [{ name: SWITCH, value: 'on' }, { name: PRICE, value: '1e3' }]
      readinessProbe: { httpGet: { path: /, port: http } }
      livenessProbe: { tcpSocket: { port: 8080 } }
      lifecycle: { preStop: { httpGet: { path: /quit, port: http } } }
      volumeMounts: [{ name: data, mountPath: /data }]
  volumes: [{ name: data, configMap: { name: data, defaultMode: 0640 } }]
";
    std::fs::write(path_of("plain.yaml"), pod).expect("a file");
    let written = Plan::new("inject", tools::binary("merlon"), folder.path())
        .args(["inject", "-n", &shop, "-f", &path_of("plain.yaml")])
        .args(["--settings", &path_of("injection.yaml")])
        .run()
        .await;
    assert_eq!(written.code(), 0, "{}", written.err);
    std::fs::write(path_of("meshed.yaml"), &written.out).expect("a file");

    let (mut made, mut keys) = (Vec::new(), std::collections::BTreeSet::new());
    for file in ["plain.yaml", "meshed.yaml"] {
        let file = path_of(file);
        let create = ["create", "--dry-run=server", "-n", &shop, "-f", &file];
        let mut pod = cluster.json(&create).await;
        // Kubernetes names this volume differently in each pod.
        let text = pod["spec"].to_string();
        let at = text.find("kube-api-access-").expect("the token volume");
        let volume = &text[at..at + "kube-api-access-12345".len()];
        let text = text.replace(volume, "kube-api-access");
        // The injector makes a new probe key for each pod.
        let (_, key) = text.split_once("/probe/orders/preStop/").expect("a hook");
        let key = key.get(..32).expect("a key");
        assert!(key.bytes().all(|b| b.is_ascii_hexdigit()), "{key}");
        pod["spec"] = serde_json::from_str(&text.replace(key, "KEY")).expect("JSON");
        keys.insert(key.to_owned());
        made.push(pod);
    }
    assert_eq!(keys.len(), 2, "each pod has a key of its own: {keys:?}");
    let (online, offline) = (&made[0], &made[1]);
    assert_eq!(online["spec"]["initContainers"][1]["name"], "merlon-proxy");
    assert_eq!(online["spec"], offline["spec"]);
    for own in ["annotations", "labels"] {
        assert_eq!(online["metadata"][own], offline["metadata"][own]);
    }
}

#[tokio::test]
async fn jobs_complete_and_init_containers_reach_the_mesh() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("jobs").await;
    cluster.apply_in(&shop, &orders(1)).await;
    cluster.available(&shop).await;
    let policy = web_reads(&shop).replace("/web\"", "/default\"");
    cluster.apply_in(&shop, &policy).await;
    cluster
        .programmed(&shop, "authorizationpolicy/orders")
        .await;
    let job = format!(
        "
apiVersion: batch/v1
kind: Job
metadata: {{ name: once }}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      initContainers:
        - {{ name: before, image: '{image}', imagePullPolicy: Never, command: [curl, -sf, -m, '10', 'http://orders/'] }}
      containers:
        - {{ name: program, image: '{image}', imagePullPolicy: Never, command: [curl, -sf, -m, '10', 'http://orders/'] }}
",
        image = merlon::PROGRAMS
    );
    cluster.apply_in(&shop, &job).await;
    cluster
        .wait_for(&["--for=condition=Complete", "-n", &shop, "job/once"])
        .await;
    for container in ["before", "program"] {
        let output = cluster
            .kubectl(&["logs", "-n", &shop, "job/once", "-c", container])
            .await;
        assert_eq!(output, "canary-of-orders\n", "{container}");
    }
}
