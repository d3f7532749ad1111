//! A node with pods, as network namespaces on one bridge, each with interception rules and a sidecar: the parts of
//! Kubernetes that interception depends on, without the rest.

mod capture;
mod namespace;

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::OnceCell};

pub use self::{
    capture::Capture,
    namespace::{Namespace, are_possible, within},
};
use crate::{
    app::App,
    client::Reply,
    mesh::{LogLine, identity, limits_file},
    process::{Output, Plan, Process},
    tools, wait,
};

/// The user id of proxies.
const PROXY: u32 = 7565;
/// The port of the control plane.
const CONTROL_PLANE: u16 = 7564;

/// A node: a bridge, and the control plane at its address.
#[derive(Debug)]
pub struct Node {
    namespace: Namespace,
    folder: TempDir,
    control_plane: Process,
    // The pods of `in_plain`, and the program of the second.
    plain: OnceCell<(Pod, Pod, App)>,
}

/// A pod of a [`Node`].
#[derive(Debug)]
pub struct Pod {
    name: String,
    namespace: Namespace,
    number: u8,
    folder: PathBuf,
    sidecar: Option<Process>,
}

/// The node's address.
fn node() -> SocketAddr {
    (Ipv4Addr::new(10, 200, 0, 1), CONTROL_PLANE).into()
}

impl Node {
    /// Starts one whose control plane has these documents, and a `MeshConfig` with `settings`.
    ///
    /// # Panics
    /// If it does not become ready.
    pub async fn start(settings: &str, documents: &str) -> Self {
        let namespace = Namespace::new("node");
        for arguments in [
            // With a fixed MAC address: by default a bridge uses the lowest one of its ports, which changes with each pod,
            // while existing pods still send to the old one.
            "link add br0 address 02:00:0a:c8:00:01 type bridge",
            "link set br0 up",
            "addr add 10.200.0.1/24 dev br0",
            "addr add fd00:200::1/64 dev br0 nodad",
        ] {
            namespace.ip(&arguments.split(' ').collect::<Vec<_>>());
        }
        let folder = crate::folder::fresh();
        // Proxies run as another user, and each has its own folder in it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let resources = folder.path().join("resources");
        fs::create_dir(&resources).expect("a folder");
        let mut text = format!(
            "apiVersion: merlon.io/v1alpha1\nkind: MeshConfig\nmetadata: {{ name: mesh, namespace: merlon-system }}\n\
             spec: {{ trustDomain: mesh.test{settings} }}\n"
        );
        let _ = write!(text, "---\n{documents}");
        fs::write(resources.join("mesh.yaml"), text).expect("a file");
        let program = tools::binary("merlon-control-plane");
        let control_plane = Plan::new("control-plane", program, folder.path())
            .in_namespace(&namespace.path())
            .arg("--config")
            .arg(&resources)
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .arg("--admin-socket")
            .arg(folder.path().join("admin.sock"))
            .args(["--listen", &node().to_string()])
            .start();
        let this = Self {
            namespace,
            folder,
            control_plane,
            plain: OnceCell::new(),
        };
        wait::until("the control plane is ready", async || {
            assert!(this.control_plane.is_alive(), "{this:?}");
            let ready = SocketAddr::from((Ipv4Addr::LOCALHOST, 7565));
            get(&this.namespace, ready, "control-plane", "/ready")
                .await
                .is_ok_and(|reply| reply.status == 200)
        })
        .await;
        this
    }

    /// Sets bounds and time limits of the sidecars that start from now on: the fields of the proxy's `Limits`.
    ///
    /// # Panics
    /// If this is not a YAML mapping.
    pub fn limit_sidecars(&self, limits: &str) {
        fs::write(self.limits(), limits_file(limits)).expect("a file");
    }

    fn limits(&self) -> PathBuf {
        self.folder.path().join("limits.json")
    }

    /// Replaces text in its documents.
    ///
    /// # Panics
    /// If they do not contain `from`.
    pub fn edit(&self, from: &str, to: &str) {
        let file = self.folder.path().join("resources/mesh.yaml");
        let text = fs::read_to_string(&file).expect("the documents");
        assert!(text.contains(from), "no `{from}` in {text}");
        fs::write(&file, text.replace(from, to)).expect("a file");
    }

    /// Kills the control plane.
    pub fn kill_control_plane(&self) {
        self.control_plane.kill9();
    }

    /// A pod outside the mesh, without rules and sidecar.
    pub fn pod(&self, name: &str, number: u8) -> Pod {
        let namespace = Namespace::new(name);
        let port = format!("veth{number}");
        // The kernel removes the link of a dropped pod of this number later than the pod.
        self.namespace.try_ip(&["link", "del", &port]);
        self.namespace.ip(&[
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            namespace.name(),
        ]);
        self.namespace
            .ip(&["link", "set", &port, "master", "br0", "up"]);
        let (v4, v6) = (
            format!("{}/24", ipv4(number)),
            format!("{}/64", ipv6(number)),
        );
        namespace.ip(&["addr", "add", &v4, "dev", "eth0"]);
        namespace.ip(&["addr", "add", &v6, "dev", "eth0", "nodad"]);
        // The same for each pod of this number: others still have the address of an earlier one in their tables.
        let mac = format!("02:00:0a:c8:01:{number:02x}");
        namespace.ip(&["link", "set", "eth0", "address", &mac]);
        namespace.ip(&["link", "set", "eth0", "up"]);
        namespace.ip(&["route", "add", "default", "via", "10.200.0.1"]);
        namespace.ip(&["-6", "route", "add", "default", "via", "fd00:200::1"]);
        // Up to a second after the link is up. A packet that is lost before takes as long as a proxy waits for a connection.
        let what = format!("the bridge forwards for {name}");
        let link = || self.namespace.try_ip(&["-d", "link", "show", &port]);
        wait::block_until_value(what, link, |link| link.contains("state forwarding"));
        Pod {
            name: name.to_owned(),
            folder: self.folder.path().to_owned(),
            namespace,
            number,
            sidecar: None,
        }
    }

    /// A pod in the mesh, with rules and a ready sidecar.
    ///
    /// # Panics
    /// If it does not become ready.
    pub async fn meshed(&self, name: &str, number: u8, rules: &[&str]) -> Pod {
        let mut pod = self.pod(name, number);
        let applied = pod.intercept(&[&["apply"], rules].concat()).await;
        assert_eq!(applied.code(), 0, "{applied:?}");
        pod.start_sidecar(self).await;
        pod
    }

    /// Captures the traffic on the bridge.
    pub fn capture(&self) -> Capture {
        Capture::start(&self.namespace.path())
    }

    /// Sends a text in a plain HTTP request from one pod outside the mesh to another: the control of a capture.
    ///
    /// # Panics
    /// If the request is not answered.
    pub async fn in_plain(&self, text: &str) {
        let pods = self.plain.get_or_init(async || {
            let (client, server) = (self.pod("client", 250), self.pod("server", 251));
            let program = server.http(8080);
            (client, server, program)
        });
        let (client, server, _) = pods.await;
        let target = format!("/{text}");
        let answer = client.get(server.at(8080), "server", &target).await;
        answer.expect("an answer").is_ok();
    }

    async fn join_token(&self, workload: &str) -> String {
        let token = Plan::new("merlon", tools::binary("merlon"), self.folder.path())
            .args([
                "token",
                "create",
                "--output",
                "json",
                "--identity",
                workload,
            ])
            .arg("--control-plane-socket")
            .arg(self.folder.path().join("admin.sock"))
            .run()
            .await;
        let created: Value =
            serde_json::from_str(&token.out).unwrap_or_else(|error| panic!("{error}: {token:?}"));
        created["token"]
            .as_str()
            .unwrap_or_else(|| panic!("expected a token, got {created}"))
            .to_owned()
    }
}

/// The IPv4 address of the pod with this number.
pub fn ipv4(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 200, 0, number).into()
}

/// The IPv6 address of the pod with this number.
pub fn ipv6(number: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, number.into()).into()
}

impl Pod {
    /// The addresses of the pod with this number, as a list in YAML.
    pub fn addresses(number: u8) -> String {
        format!("[{}, \"{}\"]", ipv4(number), ipv6(number))
    }

    /// Its IPv4 address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (ipv4(self.number), port).into()
    }

    /// Its IPv6 address with a port.
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        (ipv6(self.number), port).into()
    }

    /// Starts an HTTP program on all its addresses.
    pub fn http(&self, port: u16) -> App {
        App::http_on(self.listen(port))
    }

    /// Starts a program with a server-first protocol, which echoes.
    pub fn tcp_server_first(&self, port: u16) -> App {
        App::tcp_server_first_on(self.listen(port))
    }

    fn listen(&self, port: u16) -> std::net::TcpListener {
        self.namespace.listen((Ipv6Addr::UNSPECIFIED, port).into())
    }

    /// Opens a connection from the pod.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.namespace.connect(to).and_then(TcpStream::from_std)
    }

    /// Sends a request from the pod.
    ///
    /// # Errors
    /// If there is no response.
    pub async fn get(&self, to: SocketAddr, host: &str, target: &str) -> Result<Reply, String> {
        let reply = get(&self.namespace, to, host, target).await;
        reply.map_err(|error| match &self.sidecar {
            Some(sidecar) => format!("{error}\n{sidecar:?}"),
            None => error,
        })
    }

    /// Runs `merlon-intercept` in it.
    pub async fn intercept(&self, arguments: &[&str]) -> Output {
        self.run(tools::binary("merlon-intercept"), arguments).await
    }

    /// Runs a program in it.
    pub async fn run(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Output {
        let name = format!("{}-run", self.name);
        Plan::new(&name, program, &self.folder)
            .in_namespace(&self.namespace.path())
            .args(arguments)
            .run()
            .await
    }

    /// Starts its sidecar as the proxy's user, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start_sidecar(&mut self, node_of: &Node) {
        let state = self.folder.join(format!("{}-state", self.name));
        if !state.exists() {
            fs::create_dir(&state).expect("a folder");
            fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("a mode");
            std::os::unix::fs::chown(&state, Some(PROXY), Some(PROXY)).expect("an owner");
        }
        let account = format!("shop/{}", self.name);
        let token = node_of.join_token(&account).await;
        let process = Plan::as_user(
            &self.name,
            tools::binary("merlon-proxy"),
            &self.folder,
            PROXY,
        )
        .in_namespace(&self.namespace.path())
        .args(["--interception", "--workers", "1"])
        .args(["--identity", &account])
        .args(["--control-plane", &format!("https://{}", node())])
        .args(["--join-token", &token])
        .arg("--state-dir")
        .arg(&state);
        let limits = node_of.limits();
        let process = match limits.exists() {
            true => process.arg("--test-limits").arg(limits),
            false => process,
        };
        self.sidecar = Some(process.start());
        wait::until(format!("{} is ready", self.name), async || {
            assert!(self.sidecar().is_alive(), "{self:?}");
            let ready = SocketAddr::from((Ipv4Addr::LOCALHOST, 7562));
            get(&self.namespace, ready, "admin", "/ready")
                .await
                .is_ok_and(|reply| reply.status == 200)
        })
        .await;
    }

    /// The number of inbound TLS handshakes that its sidecar refused.
    ///
    /// # Panics
    /// If the sidecar does not show its metrics.
    pub async fn refused_handshakes(&self) -> u64 {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 7562));
        let page = get(&self.namespace, admin, "admin", "/metrics").await;
        let page = page.expect("the metrics").text();
        let own = r#"merlon_tls_handshakes_total{direction="inbound",result="refused"} "#;
        let count = page.lines().find_map(|line| line.strip_prefix(own));
        count.map_or(0, |count| count.parse().expect("a number"))
    }

    /// Drops all packets between it and the node, so that its sidecar has no control plane from now on.
    ///
    /// # Panics
    /// If the rules are not accepted.
    pub async fn lose_control_plane(&self) {
        let node = node().ip();
        let rules = format!(
            "add table ip lost; add chain ip lost in {{ type filter hook input priority 0; }}; \
             add rule ip lost in ip saddr {node} drop; \
             add chain ip lost out {{ type filter hook output priority 0; }}; \
             add rule ip lost out ip daddr {node} drop"
        );
        let ended = self.run(tools::installed("nft"), &[&rules]).await;
        assert_eq!(ended.code(), 0, "{ended:?}");
    }

    /// The process log of its sidecar.
    pub fn process_log(&self) -> String {
        self.sidecar().err()
    }

    /// Kills its sidecar.
    pub fn kill_sidecar(&self) {
        self.sidecar().kill9();
    }

    /// Waits for an access-log line of its sidecar in which `field` is `value`.
    pub async fn log_where(&self, field: &str, value: &str) -> LogLine {
        wait::until_some(
            format!("`{}` logs {field}={value}", self.name),
            async || {
                let lines = LogLine::all(&self.sidecar().out());
                lines.into_iter().find(|line| line.text(field) == value)
            },
        )
        .await
    }

    fn sidecar(&self) -> &Process {
        self.sidecar
            .as_ref()
            .unwrap_or_else(|| panic!("{} has no sidecar", self.name))
    }

    /// Its SPIFFE ID.
    pub fn identity(&self) -> String {
        identity(&self.name)
    }
}

async fn get(
    namespace: &Namespace,
    to: SocketAddr,
    host: &str,
    target: &str,
) -> Result<Reply, String> {
    // Silence is neither an answer nor a refusal.
    let what = format!("an answer of {to} to {target}, or the end of the connection");
    wait::limit(what, request(namespace, to, host, target)).await
}

async fn request(
    namespace: &Namespace,
    to: SocketAddr,
    host: &str,
    target: &str,
) -> Result<Reply, String> {
    let stream = namespace.connect(to).and_then(TcpStream::from_std);
    let stream = stream.map_err(|error| format!("{to}: {error}"))?;
    let text = |error: hyper::Error| format!("{error:?}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    tokio::spawn(connection);
    let request = Request::get(target)
        .header(header::HOST, host)
        .body(Full::new(Bytes::new()))
        .map_err(|error| error.to_string())?;
    Reply::read(sender.send_request(request).await.map_err(text)?).await
}
