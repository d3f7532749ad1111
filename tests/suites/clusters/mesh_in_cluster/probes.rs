//! A node's probes and hooks, through the sidecar.

use merlon_tests::{
    cluster::{self, merlon},
    wait,
};

use super::{address_of, caller, meshed};

#[tokio::test]
async fn a_dead_program_fails_its_probes_through_the_sidecar() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("probes").await;
    let command = "busybox httpd -f -p 8080 -h /tmp & echo $! > /tmp/pid; echo up > /tmp/index.html; exec sleep infinity";
    let tcp = "          readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1, failureThreshold: 1 }";
    let http = "          ports: [{ name: http, containerPort: 8080 }]
          readinessProbe: { httpGet: { path: /index.html, port: http }, periodSeconds: 1, failureThreshold: 1 }";
    let exec = "          readinessProbe: { exec: { command: [test, -e, /tmp/index.html] }, periodSeconds: 1 }";
    let all = [
        cluster::program("by-tcp", 1, command, tcp),
        cluster::program("by-http", 1, command, http),
        cluster::program("by-exec", 1, command, exec),
    ];
    cluster.apply_in(&shop, &all.concat()).await;
    cluster.available(&shop).await;
    for name in ["by-tcp", "by-http"] {
        let from = format!("deploy/{name}");
        let killed = cluster
            .exec(&shop, &from, &["sh", "-c", "kill -9 $(cat /tmp/pid)"])
            .await;
        assert_eq!(killed.code(), 0, "{killed:?}");
        cluster
            .wait_for(&[
                "--for=condition=Ready=false",
                "-n",
                &shop,
                "pod",
                "-l",
                &format!("app={name}"),
            ])
            .await;
    }
    let deployment = "deployment/by-exec";
    cluster
        .wait_for(&["--for=condition=Available", "-n", &shop, deployment])
        .await;
}

#[tokio::test]
async fn the_node_can_call_a_hook_and_a_pod_outside_the_mesh_cannot() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("hooks").await;
    let outside = cluster.namespace("hooks-outside").await;
    cluster.apply_in(&outside, &caller("outsider")).await;
    let pod = format!(
        "
apiVersion: v1
kind: Pod
metadata: {{ name: web, labels: {{ app: web }} }}
spec:
  terminationGracePeriodSeconds: 120
  containers:
    - name: web
      image: {}
      imagePullPolicy: Never
      command:
        - sh
        - -c
        - |
          mkdir -p /site/cgi-bin
          printf '#!/bin/sh\\necho; echo bye; echo bye >> /site/calls' > /site/cgi-bin/quit
          chmod +x /site/cgi-bin/quit
          busybox httpd -p 8080 -h /site
          trap '' TERM
          until test -e /site/end; do sleep 0.1; done
      readinessProbe: {{ tcpSocket: {{ port: 8080 }}, periodSeconds: 1 }}
      lifecycle: {{ preStop: {{ httpGet: {{ path: /cgi-bin/quit, port: 8080 }} }} }}
",
        merlon::PROGRAMS
    );
    cluster.apply_in(&shop, &pod).await;
    cluster
        .wait_for(&["--for=condition=Ready", "-n", &shop, "pod/web"])
        .await;
    cluster.available(&outside).await;
    let hook_calls = async || {
        let file = ["sh", "-c", "cat /site/calls || true"];
        cluster.exec(&shop, "pod/web", &file).await.out
    };
    let address = address_of(cluster, &shop, "app=web").await;
    for path in ["", "/", "/0123456789abcdef0123456789abcdef"] {
        let url = format!("http://{address}:7563/probe/web/preStop{path}");
        let answer = cluster.curl(&outside, "outsider", &[&url]).await;
        assert!(answer.out.ends_with("\n404"), "{answer:?}");
    }
    assert_eq!(hook_calls().await, "");

    let delete = ["delete", "pod", "web", "-n", &shop, "--wait=false"];
    cluster.kubectl(&delete).await;
    wait::until("the node has called the hook", async || {
        hook_calls().await == "bye\n"
    })
    .await;
    cluster
        .exec(&shop, "pod/web", &["touch", "/site/end"])
        .await;
    cluster
        .wait_for(&["--for=delete", "-n", &shop, "pod/web"])
        .await;
}
