//! A gateway's certificates, from Secrets.

use merlon_tests::{
    Cluster,
    cluster::{self, merlon},
    wait,
};
use serde_json::Value;

use super::{
    PODS, ask, certificate, edge, gateway_pods, namespace, route, route_says, until_answered,
};

#[tokio::test]
async fn each_host_has_its_certificate_from_a_secret_and_a_new_one_is_served_within_seconds() {
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
    route_says(cluster, &shop, "shop", "Accepted=True").await;

    let capture = cluster.wire();
    let pem = secret(cluster, "shop-cert").await;
    trust(cluster, &pem).await;
    let say = "https://shop.example/cgi-bin/say";
    let trusting = ["--cacert", "/tmp/ca.pem"];
    until_answered(cluster, say, &trusting, "\n200").await;
    let sealed = ["-H", "canary: sealed-for-the-secure-shop"];
    let answer = ask(cluster, say, &[trusting, sealed].concat()).await;
    for told in [
        "HTTP_X_FORWARDED_PROTO=https\n",
        "HTTP_CANARY=sealed-for-the-secure-shop\n",
    ] {
        assert!(answer.out.contains(told), "{told}: {answer:?}");
    }
    // What is asked in plain afterwards is found, so that what was asked before would have been found as well.
    let open = ["-H", "canary: open-to-the-secure-shop"];
    let plain = "http://shop.example/cgi-bin/say";
    let answer = ask(cluster, plain, &open).await;
    assert!(answer.out.ends_with("\n200"), "{answer:?}");
    wait::until("the capture has it", async || {
        capture.has("open-to-the-secure-shop")
    })
    .await;
    assert!(
        !capture.has("sealed-for-the-secure-shop"),
        "a payload crossed the wire in plain"
    );

    // The bank's listener takes routes of namespaces with a label that this one does not have.
    let (reason, _) = route_says(cluster, &shop, "bank", "Accepted=True").await;
    assert_eq!(reason, "Accepted", "by the listener for every host");
    let bank = "https://my.bank.example/cgi-bin/say";
    let answer = ask(cluster, bank, &["-k"]).await;
    assert!(answer.out.ends_with("\n404"), "{answer:?}");
    cluster
        .kubectl(&["label", "namespace", &shop, "money=yes"])
        .await;
    until_answered(cluster, bank, &["-k"], "\n200").await;
    // With the certificate of one host nobody gets to another; without the name of a host there is none.
    let answer = ask(cluster, say, &["-k", "-H", "Host: my.bank.example"]).await;
    assert!(answer.out.ends_with("\n421"), "{answer:?}");
    let answer = ask(cluster, "https://unknown.example/", &["-k"]).await;
    assert!(answer.out.ends_with("\n000"), "{answer:?}");

    let _pods = PODS.lock().await;
    let pods = gateway_pods(cluster).await;
    let new = certificate(cluster, "shop-cert", "shop.example").await;
    trust(cluster, &new).await;
    until_answered(cluster, say, &trusting, "\n200").await;
    // A broken one takes its own listener away, and nobody else's.
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
    wait::until("the listener is told of", async || {
        let gateway = cluster
            .json(&["get", "gateway", "merlon-gateway", "-n", merlon::NAMESPACE])
            .await;
        let said = gateway["status"]["listeners"].to_string();
        said.contains("InvalidCertificateRef") && said.contains("merlon-system/bank-cert")
    })
    .await;
    until_answered(cluster, bank, &["-k"], "\n000").await;
    let told = cluster.merlon(&["check"]).await;
    let problem = "the listener `bank` is not served: the Secret `merlon-system/bank-cert`";
    assert!(told.out.contains(problem), "{told:?}");
    let answer = ask(cluster, say, &trusting).await;
    assert!(answer.out.ends_with("\n200"), "{answer:?}");
    certificate(cluster, "bank-cert", "*.bank.example").await;
    until_answered(cluster, bank, &["-k"], "\n200").await;
    assert_eq!(
        gateway_pods(cluster).await,
        pods,
        "no gateway was restarted"
    );

    // A key is nobody's business: neither in what a proxy shows nor in a log.
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

/// The certificate that a Secret holds.
async fn secret(cluster: &Cluster, name: &str) -> String {
    let template = r#"-o=go-template={{index .data "tls.crt" | base64decode}}"#;
    cluster
        .kubectl(&["get", "secret", name, "-n", merlon::NAMESPACE, template])
        .await
}

/// What the visitor's curl trusts from now on.
async fn trust(cluster: &Cluster, pem: &str) {
    let write = ["sh", "-c", "printf %s \"$0\" > /tmp/ca.pem", pem];
    let ended = cluster.exec("visitors", "deploy/visitor", &write).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
}
