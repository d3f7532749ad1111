//! A gateway's certificates, from Secrets.

use merlon_tests::{
    Cluster,
    cluster::{self, merlon},
    wait,
};
use serde_json::Value;

use super::{
    PODS, answers, call, certificate, edge, gateway_pods, namespace, route, route_condition,
};

#[tokio::test]
async fn each_host_has_its_certificate_from_a_secret_and_a_new_one_is_served_without_a_restart() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = edge().await;
    let shop = namespace(cluster, "secure", &["orders"]).await;
    let everything = "    - backendRefs: [{ name: orders, port: 80 }]";
    let accounts = route("bank", "my.bank.example", everything);
    cluster
        .apply_in(&shop, &route("shop", "shop.example", everything))
        .await;
    cluster.apply_in(&shop, &accounts).await;
    route_condition(cluster, &shop, "shop", "Accepted=True").await;

    let capture = cluster.wire();
    let pem = secret(cluster, "shop-cert").await;
    trust(cluster, &pem).await;
    let say = "https://shop.example/cgi-bin/say";
    let trusting = ["--cacert", "/tmp/ca.pem"];
    answers(cluster, say, &trusting, "\n200").await;
    let sealed = ["-H", "canary: sealed-for-the-secure-shop"];
    let answer = call(cluster, say, &[trusting, sealed].concat()).await;
    for expected in [
        "HTTP_X_FORWARDED_PROTO=https\n",
        "HTTP_CANARY=sealed-for-the-secure-shop\n",
    ] {
        assert!(answer.out.contains(expected), "{expected}: {answer:?}");
    }
    // The same header in plain text, through the same gateway, is the control.
    let plain = "http://shop.example/cgi-bin/say";
    capture
        .sealed(&["sealed-for-the-secure-shop"], async |text| {
            let canary = format!("canary: {text}");
            let answer = call(cluster, plain, &["-H", &canary]).await;
            assert!(answer.out.ends_with("\n200"), "{answer:?}");
        })
        .await;

    // The bank's listener accepts routes only from namespaces with a label, which this one does not have.
    let (reason, _) = route_condition(cluster, &shop, "bank", "Accepted=True").await;
    assert_eq!(reason, "Accepted", "by the listener for all hosts");
    let bank = "https://my.bank.example/cgi-bin/say";
    let answer = call(cluster, bank, &["-k"]).await;
    assert!(answer.out.ends_with("\n404"), "{answer:?}");
    cluster
        .kubectl(&["label", "namespace", &shop, "money=yes"])
        .await;
    answers(cluster, bank, &["-k"], "\n200").await;
    // A connection for one host cannot request another; an unknown host gets no certificate.
    let answer = call(cluster, say, &["-k", "-H", "Host: my.bank.example"]).await;
    assert!(answer.out.ends_with("\n421"), "{answer:?}");
    let answer = call(cluster, "https://unknown.example/", &["-k"]).await;
    assert!(answer.out.ends_with("\n000"), "{answer:?}");

    let _pods = PODS.lock().await;
    let pods = gateway_pods(cluster).await;
    let new = certificate(cluster, "shop-cert", "shop.example").await;
    trust(cluster, &new).await;
    answers(cluster, say, &trusting, "\n200").await;
    // A broken certificate disables its own listener and no other.
    cluster
        .kubectl(&[
            "patch",
            "secret",
            "bank-cert",
            "-n",
            merlon::NAMESPACE,
            "-p",
            r#"{"stringData":{"tls.crt":"nonsense"}}"#,
        ])
        .await;
    wait::until("the status reports the listener", async || {
        let gateway = cluster
            .json(&["get", "gateway", "merlon-gateway", "-n", merlon::NAMESPACE])
            .await;
        let listeners = gateway["status"]["listeners"].to_string();
        listeners.contains("InvalidCertificateRef") && listeners.contains("merlon-system/bank-cert")
    })
    .await;
    answers(cluster, bank, &["-k"], "\n000").await;
    let report = cluster.merlon(&["check"]).await;
    let problem = "the listener `bank` is not served: the Secret `merlon-system/bank-cert`";
    assert!(report.out.contains(problem), "{report:?}");
    let answer = call(cluster, say, &trusting).await;
    assert!(answer.out.ends_with("\n200"), "{answer:?}");
    certificate(cluster, "bank-cert", "*.bank.example").await;
    answers(cluster, bank, &["-k"], "\n200").await;
    assert_eq!(
        gateway_pods(cluster).await,
        pods,
        "no gateway was restarted"
    );

    // A proxy's dump names the Secret and does not contain its key.
    let proxies = ["proxy", "status", "--kubernetes", "--output", "json"];
    let proxies: Value = serde_json::from_str(&cluster.merlon(&proxies).await.out).expect("JSON");
    let mut all = proxies.as_array().expect("proxies").iter();
    let of_the_gateway = |proxy: &&Value| {
        let identity = proxy["identity"].as_str().unwrap_or_default();
        identity.ends_with("/sa/merlon-gateway") && proxy["state"] != "disconnected"
    };
    let gateway = all.find(of_the_gateway).expect("a gateway");
    let id = gateway["id"].as_str().expect("an id");
    let shown = cluster
        .merlon(&["proxy", "config", id, "--kubernetes"])
        .await;
    assert!(shown.out.contains("merlon-system/shop-cert"), "{shown:?}");
    assert!(!shown.out.contains("PRIVATE KEY"), "{}", shown.out);
}

/// The certificate in a Secret.
async fn secret(cluster: &Cluster, name: &str) -> String {
    let template = r#"-o=go-template={{index .data "tls.crt" | base64decode}}"#;
    cluster
        .kubectl(&["get", "secret", name, "-n", merlon::NAMESPACE, template])
        .await
}

/// Sets the CA certificate that the visitor's curl trusts.
async fn trust(cluster: &Cluster, pem: &str) {
    let write = ["sh", "-c", "printf %s \"$0\" > /tmp/ca.pem", pem];
    let ended = cluster.exec("visitors", "deploy/visitor", &write).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
}
