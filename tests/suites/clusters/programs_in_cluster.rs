//! Common programs in pods of a real Kubernetes cluster: a database, gRPC, an OpenID provider.

use std::fs;

use merlon_tests::{
    Cluster,
    cluster::{self, Image},
    process::Output,
    tools, wait,
};
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::OnceCell;

use crate::installed::installed;

/// The image with all of these programs.
const PEERS: &str = "localhost/peers:test";
/// The folder of the OpenID provider and its modules in that image.
const PROVIDER: &str = "/provider";

/// The shared cluster, with the image of the programs.
async fn meshed() -> &'static Cluster {
    static MESHED: OnceCell<&Cluster> = OnceCell::const_new();
    MESHED
        .get_or_init(async || {
            let cluster = installed().await.cluster;
            cluster.load(&peers(cluster)).await;
            cluster
        })
        .await
}

fn peers(cluster: &Cluster) -> Image {
    let chat = tools::binary("merlon").with_file_name("examples/chat");
    assert!(chat.exists(), "run `cargo build --example chat`");
    // `initdb` looks up the name of its user.
    let users = cluster.folder().join("passwd");
    fs::write(
        &users,
        "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n",
    )
    .expect("a file");
    let postgres = tools::installed("postgres")
        .canonicalize()
        .expect("PostgreSQL");
    let server = postgres.ancestors().nth(2).expect("a folder");
    let version = server
        .file_name()
        .expect("a version")
        .to_string_lossy()
        .into_owned();
    let shared = format!("/usr/share/postgresql/{version}");
    let libraries = format!("{}/lib", server.display());
    let oidc = tools::root().join("tests/oidc/pod.mjs");
    let modules = tools::folder().join("openid-provider/node_modules");
    Image::new(PEERS, &tools::installed("busybox"), "/bin/busybox")
        .with_applets()
        .file(&chat, "/bin/chat")
        .file(&users, "/etc/passwd")
        .program(&postgres)
        .program(&postgres.with_file_name("initdb"))
        .program(&postgres.with_file_name("psql"))
        .folder(shared.as_ref(), &shared)
        .folder(libraries.as_ref(), &libraries)
        .program(&which("node"))
        .file(&oidc, &format!("{PROVIDER}/pod.mjs"))
        .folder(&modules, &format!("{PROVIDER}/node_modules"))
}

fn which(program: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::env::split_paths(&path).map(|folder| folder.join(program));
    all.find(|found| found.exists())
        .unwrap_or_else(|| panic!("`{program}` is not on PATH: run `tests/tools/install test`"))
}

/// A program of the image and its service account, both named `name`.
fn program(name: &str, command: &str, more: &str) -> String {
    let lines = format!(
        "          securityContext: {{ runAsUser: 65534 }}\n          env: [{{ name: PATH, value: {} }}]\n{more}",
        [
            "/bin",
            &tools::installed("postgres")
                .canonicalize()
                .expect("PostgreSQL")
                .parent()
                .expect("a folder")
                .display()
                .to_string(),
            &which("node")
                .canonicalize()
                .expect("node")
                .parent()
                .expect("a folder")
                .display()
                .to_string(),
        ]
        .join(":")
    );
    cluster::program(name, 1, command, &lines).replace("localhost/programs:test", PEERS)
}

fn sleeper(name: &str) -> String {
    program(name, "exec sleep 2147483647", "")
}

/// A Service for the program `of`; `more` adds fields, such as `clusterIP: None, `.
fn service(name: &str, of: &str, port: u16, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name} }}\n\
         spec: {{ {more}selector: {{ app: {of} }}, ports: [{{ name: {name}, port: {port} }}] }}\n---\n"
    )
}

fn policy(services: &[&str], text: &str) -> String {
    let targets: Vec<String> = services
        .iter()
        .map(|name| format!("{{ kind: Service, name: {name} }}"))
        .collect();
    format!(
        "apiVersion: merlon.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: own }}\nspec:\n  \
         targetRefs: [{}]\n  policies: |\n    @id(\"own\")\n    {text}\n",
        targets.join(", ")
    )
}

async fn started(cluster: &Cluster, namespace: &str, documents: &[String]) {
    cluster.apply_in(namespace, &documents.concat()).await;
    cluster.available(namespace).await;
    cluster
        .programmed(namespace, "authorizationpolicy/own")
        .await;
}

async fn run(cluster: &Cluster, namespace: &str, from: &str, command: &str) -> Output {
    let from = format!("deploy/{from}");
    cluster.exec(namespace, &from, &["sh", "-c", command]).await
}

/// The lines of the access log of a program's sidecar that say that no policy permits something.
async fn refusals_in_log(cluster: &Cluster, namespace: &str, program: &str) -> Vec<String> {
    let program = format!("deploy/{program}");
    let log = cluster
        .kubectl(&["logs", "-n", namespace, &program, "-c", "merlon-proxy"])
        .await;
    let refusals = log.lines().filter(|line| line.contains("authz.denied"));
    refusals.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_database_is_reached_over_mutual_tls_and_only_by_permitted_clients() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("database").await;
    let server = "initdb -D /tmp/data --auth=trust --username=shop --no-sync --locale=C >/dev/null \
                  && exec postgres -D /tmp/data -c listen_addresses=0.0.0.0 -c unix_socket_directories= \
                  -c fsync=off -c jit=off -c timezone=GMT -c log_timezone=GMT";
    let ready = "          readinessProbe: { tcpSocket: { port: 5432 }, periodSeconds: 1 }";
    let allowed = format!(
        "permit (principal == Workload::\"{shop}/orders\", action == Action::\"tcp\", resource);"
    );
    started(
        cluster,
        &shop,
        &[
            program("db", server, ready),
            service("db", "db", 5432, ""),
            sleeper("orders"),
            sleeper("other"),
            policy(&["db"], &allowed),
        ],
    )
    .await;
    let psql = |sql: &str| format!("psql -h db -U shop -d postgres -qtA -c \"{sql}\" 2>&1");
    let capture = cluster.wire();
    let made =
        psql("create table notes (text text); insert into notes values ('canary-of-the-database')");
    let ended = run(cluster, &shop, "orders", &made).await;
    assert_eq!((ended.code(), &*ended.out), (0, ""), "{ended:?}");
    let ended = run(cluster, &shop, "orders", &psql("select text from notes")).await;
    assert_eq!(ended.out.trim(), "canary-of-the-database", "{ended:?}");
    capture
        .sealed(&["canary-of-the-database"], async |text| {
            cluster.in_plain(text).await;
        })
        .await;

    let insert = psql("insert into notes values ('of-the-other')");
    let refused = run(cluster, &shop, "other", &insert).await;
    // What psql returns when the server that it has found ends the connection.
    assert_eq!(refused.code(), 2, "{refused:?}");
    let found = "connection to server at \"db\"";
    assert!(refused.out.contains(found), "{refused:?}");
    // The server saw nothing of it, because its sidecar refused the connection.
    let notes = run(cluster, &shop, "orders", &psql("select text from notes")).await;
    assert_eq!(notes.out.trim(), "canary-of-the-database", "{notes:?}");
    let refusals = wait::until_value(
        "the refusal is in the log",
        async || refusals_in_log(cluster, &shop, "db").await,
        |refusals| !refusals.is_empty(),
    )
    .await;
    let other = format!("/ns/{shop}/sa/other");
    assert!(
        refusals.iter().all(|line| line.contains(&other)),
        "{refusals:?}"
    );
    // An open connection ends when its permit is removed.
    let open = psql("select pg_sleep(60)");
    let open = run(cluster, &shop, "orders", &open);
    let revoked = async {
        wait::until("the connection is open", async || {
            let count = psql("select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and pid <> pg_backend_pid()");
            run(cluster, &shop, "orders", &count).await.out.trim() == "1"
        })
        .await;
        let none = policy(&["db"], "forbid (principal, action, resource);");
        cluster.apply_in(&shop, &none).await;
    };
    let (ended, ()) = tokio::join!(open, revoked);
    assert_ne!(ended.code(), 0, "{ended:?}");
}

#[tokio::test]
async fn grpc_works_by_service_and_by_pod_and_is_authorized_by_method() {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let shop = cluster.meshed_namespace("grpc").await;
    let allowed = format!(
        "permit (principal == Workload::\"{shop}/web\", action == Action::\"grpc\", resource) unless {{ context.method == \"Fail\" }};"
    );
    let ready = "          readinessProbe: { tcpSocket: { port: 9090 }, periodSeconds: 1 }";
    started(
        cluster,
        &shop,
        &[
            program("chat", "exec chat serve 9090", ready),
            service("grpc", "chat", 9090, ""),
            service("grpc-each", "chat", 9090, "clusterIP: None, "),
            sleeper("web"),
            sleeper("other"),
            policy(&["grpc", "grpc-each"], &allowed),
        ],
    )
    .await;
    for host in [
        "grpc",
        "grpc-each",
        &format!("grpc.{shop}.svc.cluster.local"),
    ] {
        let call = async |from: &str, method: &str| {
            let command = format!("chat {method} http://{host}:9090 3");
            run(cluster, &shop, from, &command).await.out
        };
        assert_eq!(
            call("web", "say").await,
            "heard hello\nstatus 0\n",
            "{host}"
        );
        assert_eq!(
            call("web", "count").await,
            "hello 1\nhello 2\nhello 3\nstatus 0\n",
            "{host}"
        );
        // PERMISSION_DENIED; the program does not see refused calls.
        assert_eq!(call("web", "fail").await, "status 7\n", "{host}");
        assert_eq!(call("other", "say").await, "status 7\n", "{host}");
    }
    let seen = cluster
        .kubectl(&["logs", "-n", &shop, "deploy/chat", "-c", "chat"])
        .await;
    assert_eq!(
        seen.matches("/merlon.test.v1.Chat/Say").count(),
        3,
        "{seen}"
    );
    assert!(!seen.contains("Fail"), "{seen}");
}

#[tokio::test]
async fn tokens_of_a_provider_in_the_cluster_are_accepted_also_while_it_is_down_and_after_its_keys_change()
 {
    if !cluster::are_possible() {
        return;
    }
    let cluster = meshed().await;
    let login = cluster.namespace("login").await;
    let host = format!("login.{login}.svc.cluster.local");
    let issuer = format!("https://{host}:8443");
    let key = KeyPair::generate().expect("a key");
    let root = CertificateParams::new([host.clone()]).expect("a host");
    let root = root.self_signed(&key).expect("a certificate").pem();
    let indented =
        |pem: &str, by: usize| pem.trim().replace('\n', &format!("\n{}", " ".repeat(by)));
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ name: login }}\nstringData:\n  tls.crt: |\n    {}\n  tls.key: |\n    {}\n---\n",
        indented(&root, 4),
        indented(&key.serialize_pem(), 4)
    );
    let command = format!("exec node {PROVIDER}/pod.mjs {issuer} 8443 /tls");
    let mount = "          readinessProbe: { tcpSocket: { port: 8443 }, periodSeconds: 1 }
          volumeMounts: [{ name: tls, mountPath: /tls }]
      volumes: [{ name: tls, secret: { secretName: login } }]";
    let provider = [
        secret,
        program("login", &command, mount),
        service("login", "login", 8443, ""),
    ];
    cluster.apply_in(&login, &provider.concat()).await;
    cluster.available(&login).await;

    let shop = cluster.meshed_namespace("tokens").await;
    let site = "mkdir -p /tmp/site && echo orders > /tmp/site/index.html && exec busybox httpd -f -p 8080 -h /tmp/site";
    let ready = "          readinessProbe: { httpGet: { path: /, port: 8080 }, periodSeconds: 1 }";
    let authentication = format!(
        "apiVersion: merlon.io/v1alpha1\nkind: RequestAuthentication\nmetadata: {{ name: login }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: orders }}]\n  issuers:\n    - name: login\n      issuer: {issuer}\n      \
         audiences: [https://orders.example]\n      caCertificates: |\n        {}\n---\n",
        indented(&root, 8)
    );
    let allowed = "permit (principal, action, resource) when { context has user };";
    started(
        cluster,
        &shop,
        &[
            cluster::program("orders", 1, site, ready),
            service("orders", "orders", 8080, ""),
            cluster::program("web", 1, "exec sleep infinity", ""),
            authentication,
            policy(&["orders"], allowed),
        ],
    )
    .await;
    cluster
        .programmed(&shop, "requestauthentication/login")
        .await;

    // The program requests tokens from the provider, which is outside the mesh.
    let token = async |audience: &str| {
        let at = format!("{issuer}/token");
        let resource = format!("resource={audience}");
        let issued = wait::until_some("the provider issues a token", async || {
            let form = [
                "-k",
                "-u",
                "alice:alice-secret",
                "-d",
                "grant_type=client_credentials",
                "-d",
                "scope=orders:read",
                "-d",
                &resource,
                &at,
            ];
            let answer = cluster.curl(&shop, "web", &form).await.out;
            let (body, _) = answer.rsplit_once('\n')?;
            let body: serde_json::Value = serde_json::from_str(body).ok()?;
            Some(body["access_token"].as_str()?.to_owned())
        });
        issued.await
    };
    let call = async |token: Option<&str>| {
        let bearer = format!("Authorization: Bearer {}", token.unwrap_or_default());
        let mut arguments = vec!["-i", "http://orders:8080/"];
        if token.is_some() {
            arguments.extend(["-H", &bearer]);
        }
        cluster.curl(&shop, "web", &arguments).await.out
    };
    let right = "https://orders.example";
    let good = token(right).await;
    let without = call(None).await;
    assert!(
        without.ends_with("\n401") && without.to_lowercase().contains("www-authenticate: bearer"),
        "{without}"
    );
    // The sidecar has the provider's keys, or gets them for the first token.
    let answer = call(Some(&good)).await;
    assert!(answer.ends_with("\n200"), "{answer}");
    let foreign = call(Some(&token("https://other.example").await)).await;
    assert!(foreign.ends_with("\n401"), "{foreign}");
    let (signed, signature) = good.rsplit_once('.').expect("a token");
    let (head, payload) = signed.split_once('.').expect("a token");
    let forged = format!(
        "{head}.{payload}.{}",
        signature.chars().rev().collect::<String>()
    );
    let forged = call(Some(&forged)).await;
    assert!(forged.ends_with("\n401"), "{forged}");

    // While the provider is down, the tokens it signed stay valid.
    let deployment = "deployment/login";
    let scale = async |replicas: &str| {
        cluster
            .kubectl(&["scale", "-n", &login, deployment, replicas])
            .await;
    };
    scale("--replicas=0").await;
    cluster
        .wait_for(&["--for=delete", "-n", &login, "pod", "-l", "app=login"])
        .await;
    let away = call(Some(&good)).await;
    assert!(away.ends_with("\n200"), "{away}");
    // The provider returns with another key.
    scale("--replicas=1").await;
    cluster.rolled_out(&login, deployment).await;
    let new = token(right).await;
    // The sidecar gets the new key for the first token that names it.
    let answer = call(Some(&new)).await;
    assert!(answer.ends_with("\n200"), "{answer}");
}
