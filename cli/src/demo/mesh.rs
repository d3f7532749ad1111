//! The demo's mesh: starts all processes and waits until each sidecar has its certificate and snapshot.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::{
    children::{ANY_PORT, Children},
    folder::private_folder,
    issuer,
    resources::{Resources, TRUST_DOMAIN, Values, WorkloadAddresses},
    sabotage::Sabotage,
    server::write_atomically,
    token::SigningKey,
    vault::Vault,
    wire::{self, Reply},
};
use crate::{
    control_plane::{ControlPlane, ProxyStatus},
    failure::Failure,
};

/// The running mesh.
#[derive(Debug)]
pub(crate) struct Mesh<'a> {
    pub(crate) folder: PathBuf,
    pub(crate) children: &'a mut Children,
    pub(crate) resources: Resources,
    pub(crate) control_plane: ControlPlane,
    pub(crate) control_plane_address: SocketAddr,
    /// The address of `/metrics` of the control plane.
    pub(crate) control_plane_admin: SocketAddr,
    pub(crate) issuer: SocketAddr,
    pub(crate) web: Workload,
    pub(crate) orders: Workload,
    pub(crate) payments: Workload,
    /// A key that is not the issuer's.
    pub(crate) forger: SigningKey,
}

/// A program and its sidecar.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) namespace: &'static str,
    /// The address of the program.
    pub(crate) program: SocketAddr,
    /// The address of its sidecar for calls of the program.
    pub(crate) outbound: SocketAddr,
    /// The address of its sidecar for calls from the mesh.
    pub(crate) inbound: SocketAddr,
    /// The address of `/live`, `/ready` and `/metrics` of its sidecar.
    pub(crate) admin: SocketAddr,
}

impl Workload {
    /// The name of its sidecar's process and log file.
    pub(crate) fn sidecar(&self) -> String {
        format!("{}-sidecar", self.name)
    }

    /// Its SPIFFE ID, such as `spiffe://demo.merlon.test/ns/shop/sa/web`.
    pub(crate) fn identity(&self) -> String {
        format!(
            "spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}",
            self.namespace, self.name
        )
    }

    /// Its short name, such as `shop/web`.
    pub(crate) fn account(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The number of requests that its program has received.
    pub(crate) async fn requests(&self) -> Result<u64, Failure> {
        let request = wire::request("GET", "program", super::service::REQUEST_COUNT, None, None);
        let reply = wire::send(self.program, request).await;
        let reply = reply.map_err(|error| Failure::runtime(format!("`{}`: {error}", self.name)))?;
        Ok(reply
            .json()
            .get("seen")
            .and_then(Value::as_u64)
            .unwrap_or_default())
    }
}

impl<'a> Mesh<'a> {
    /// Starts all processes in `folder`, each after those that it depends on.
    pub(crate) async fn start(
        folder: &Path,
        vault: Option<&Vault>,
        sabotages: &[Sabotage],
        children: &'a mut Children,
    ) -> Result<Self, Failure> {
        let builder = Builder { folder, sabotages };
        let parts = builder.start(children, vault).await?;
        Ok(parts.with(children))
    }

    pub(crate) fn workloads(&self) -> [&Workload; 3] {
        [&self.web, &self.orders, &self.payments]
    }

    /// The status of every proxy.
    pub(crate) async fn proxies(&self) -> Result<Vec<ProxyStatus>, Failure> {
        self.control_plane.proxies().await
    }

    /// Waits until all proxies have acknowledged their snapshot and at least one snapshot differs from `before`.
    pub(crate) async fn await_change(&self, before: &[ProxyStatus]) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let now = self.proxies().await?;
            let changed = now.iter().any(|proxy| {
                let mut known = before.iter().filter(|old| old.id == proxy.id);
                known.all(|old| old.snapshot_version != proxy.snapshot_version)
            });
            if changed && now.iter().all(ProxyStatus::is_acknowledged) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Failure::runtime(
                    "the sidecars did not apply the changed resources within 30 seconds",
                ));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The status of every proxy, once no earlier change is pending.
    pub(crate) async fn settled(&self) -> Result<Vec<ProxyStatus>, Failure> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let mut before = self.proxies().await?;
        loop {
            sleep(Duration::from_millis(100)).await;
            let now = self.proxies().await?;
            let same = versions(&before) == versions(&now);
            if same && now.iter().all(ProxyStatus::is_acknowledged) {
                return Ok(now);
            }
            if Instant::now() > deadline {
                return Err(Failure::runtime(
                    "the snapshots of the sidecars still change after 30 seconds",
                ));
            }
            before = now;
        }
    }

    /// An access token from the issuer's token endpoint.
    pub(crate) async fn token(
        &self,
        subject: &str,
        audience: &str,
        expires_in: i64,
    ) -> Result<String, Failure> {
        let form = format!(
            "grant_type=client_credentials&sub={subject}&audience={audience}&expires_in={expires_in}"
        );
        let request = http::Request::post("/token")
            .header(http::header::HOST, self.issuer.to_string())
            .header(
                http::header::CONTENT_TYPE,
                "application/x-www-form-urlencoded",
            )
            .body(http_body_util::Full::new(form.into()))
            .unwrap_or_default();
        let reply: Reply = wire::send(self.issuer, request)
            .await
            .map_err(|error| Failure::runtime(format!("the token issuer: {error}")))?;
        match reply.text("/access_token") {
            token if token.is_empty() => Err(Failure::runtime(format!(
                "the token issuer answered {}: {}",
                reply.status,
                reply.json()
            ))),
            token => Ok(token),
        }
    }

    /// The description of the mesh for the report.
    pub(crate) fn about(&self) -> Map<String, Value> {
        let workloads = self.workloads().map(|workload| {
            json!({
                "name": workload.name, "identity": workload.identity(), "program": workload.program,
                "outbound": workload.outbound, "inbound": workload.inbound, "admin": workload.admin,
            })
        });
        let processes = self
            .children
            .pids()
            .into_iter()
            .map(|(name, pid)| (name.to_owned(), pid.into()));
        let mut about = Map::new();
        about.insert(
            "folder".to_owned(),
            self.folder.display().to_string().into(),
        );
        about.insert(
            "control_plane".to_owned(),
            self.control_plane_address.to_string().into(),
        );
        about.insert(
            "control_plane_socket".to_owned(),
            self.control_plane.socket().display().to_string().into(),
        );
        about.insert(
            "issuer".to_owned(),
            format!("http://{}", self.issuer).into(),
        );
        about.insert("workloads".to_owned(), workloads.to_vec().into());
        about.insert("processes".to_owned(), Value::Object(processes.collect()));
        about
    }
}

/// The snapshot version of each proxy, sorted by id.
pub(crate) fn versions(proxies: &[ProxyStatus]) -> Vec<(&str, Option<&str>)> {
    let each = proxies
        .iter()
        .map(|proxy| (proxy.id.as_str(), proxy.snapshot_version.as_deref()));
    let mut all: Vec<_> = each.collect();
    all.sort_unstable();
    all
}

/// Starts the processes of a mesh.
struct Builder<'a> {
    folder: &'a Path,
    sabotages: &'a [Sabotage],
}

struct Parts {
    folder: PathBuf,
    resources: Resources,
    control_plane: ControlPlane,
    control_plane_address: SocketAddr,
    control_plane_admin: SocketAddr,
    issuer: SocketAddr,
    workloads: [Workload; 3],
    forger: SigningKey,
}

impl Parts {
    fn with(self, children: &mut Children) -> Mesh<'_> {
        let [web, orders, payments] = self.workloads;
        Mesh {
            folder: self.folder,
            children,
            resources: self.resources,
            control_plane: self.control_plane,
            control_plane_address: self.control_plane_address,
            control_plane_admin: self.control_plane_admin,
            issuer: self.issuer,
            web,
            orders,
            payments,
            forger: self.forger,
        }
    }
}

impl Builder<'_> {
    async fn start(
        &self,
        children: &mut Children,
        vault: Option<&Vault>,
    ) -> Result<Parts, Failure> {
        let forger = SigningKey::generate(issuer::NEXT)?;
        let control_plane_binary = children.sibling("merlon-control-plane")?;
        let proxy_binary = children.sibling("merlon-proxy")?;

        // The ports in the resource files are chosen here, and reserved until their sidecar binds them.
        let ports = [Ports::choose()?, Ports::choose()?, Ports::choose()?];
        self.start_issuer(children, &forger)?;
        let programs = [
            ("web", "shop"),
            ("orders", "shop"),
            ("payments", "payments"),
        ];
        for ((name, _), ports) in programs.iter().zip(&ports) {
            start_program(children, name, ports.outbound.address)?;
        }
        let issuer = children.addresses("issuer").await?.get("listen")?;
        let mut addresses = Vec::new();
        for ((name, _), ports) in programs.iter().zip(&ports) {
            let program = children.addresses(name).await?.get("listen")?;
            addresses.push((program, ports.inbound.address));
        }
        let workload = |index: usize| {
            let (program, mesh) = addresses.get(index).copied().unwrap_or((issuer, issuer));
            WorkloadAddresses {
                mesh,
                port: program.port(),
            }
        };
        let resources = Resources::write(
            self.folder.join("resources"),
            &Values {
                issuer: &format!("http://{issuer}"),
                certificates: &vault.map(Vault::resource).unwrap_or_default(),
                web: workload(0),
                orders: workload(1),
                payments: workload(2),
            },
        )?;

        let socket = self.folder.join("admin.sock");
        let bound = self
            .start_control_plane(children, &control_plane_binary, &resources, &socket)
            .await?;
        let control_plane = ControlPlane::at(socket);
        let control_plane_address = bound.get("listen")?;
        await_control_plane(children, bound.get("admin")?).await?;

        for ((name, namespace), ports) in programs.iter().zip(&ports) {
            let mut identity = format!("{namespace}/{name}");
            if self.sabotages.contains(&Sabotage::Start) && *name == "orders" {
                "shop/web".clone_into(&mut identity);
            }
            let token = control_plane.join_token(&identity, None).await?;
            let sidecar = Sidecar {
                name,
                namespace,
                ports,
            };
            self.start_sidecar(
                children,
                &proxy_binary,
                &sidecar,
                control_plane_address,
                &token.token,
            )?;
        }
        let mut workloads = Vec::new();
        for (((name, namespace), ports), (program, _)) in
            programs.iter().zip(&ports).zip(&addresses)
        {
            let admin = children
                .addresses(&format!("{name}-sidecar"))
                .await?
                .get("admin")?;
            workloads.push(Workload {
                name,
                namespace,
                program: *program,
                outbound: ports.outbound.address,
                inbound: ports.inbound.address,
                admin,
            });
        }
        let workloads = <[Workload; 3]>::try_from(workloads)
            .map_err(|_| Failure::runtime("a workload is missing"))?;
        await_ready(children, &control_plane, &workloads).await?;
        Ok(Parts {
            folder: self.folder.to_owned(),
            resources,
            control_plane,
            control_plane_address,
            control_plane_admin: bound.get("admin")?,
            issuer,
            workloads,
            forger,
        })
    }

    fn start_issuer(&self, children: &mut Children, forger: &SigningKey) -> Result<(), Failure> {
        let mut arguments = arguments(["demo-issuer", "--listen", ANY_PORT]);
        let state = self.folder.join("issuer-state");
        private_folder(&state)?;
        for (flag, path) in [
            ("--addresses-file", children.addresses_file("issuer")),
            ("--state-dir", state),
        ] {
            arguments.push(flag.into());
            arguments.push(path.into());
        }
        if self.sabotages.contains(&Sabotage::ForgedSignature) {
            let file = self.folder.join("next-key.json");
            write_atomically(&file, &forger.public_jwk().to_string())?;
            arguments.push("--next-key".into());
            arguments.push(file.into());
        }
        let own = children.own().to_owned();
        children.start("issuer", &own, arguments, &[])
    }

    async fn start_control_plane(
        &self,
        children: &mut Children,
        binary: &Path,
        resources: &Resources,
        socket: &Path,
    ) -> Result<super::children::Addresses, Failure> {
        const NAME: &str = "control-plane";
        let mut arguments = arguments(["--listen", ANY_PORT, "--admin", ANY_PORT]);
        for (flag, path) in [
            ("--config", resources.folder()),
            ("--admin-socket", socket),
            ("--state-dir", &self.folder.join("control-plane-state")),
            ("--addresses-file", &children.addresses_file(NAME)),
        ] {
            arguments.push(flag.into());
            arguments.push(path.into());
        }
        children.start(NAME, binary, arguments, &[])?;
        children.addresses(NAME).await
    }

    fn start_sidecar(
        &self,
        children: &mut Children,
        binary: &Path,
        sidecar: &Sidecar<'_>,
        control_plane: SocketAddr,
        join_token: &str,
    ) -> Result<(), Failure> {
        let Sidecar {
            name,
            namespace,
            ports,
        } = sidecar;
        let process = format!("{name}-sidecar");
        let state = self.folder.join(format!("{process}-state"));
        private_folder(&state)?;
        let token_file = state.join("join-token");
        write_atomically(&token_file, join_token)?;
        let mut arguments = arguments([
            "--admin",
            ANY_PORT,
            "--workers",
            "1",
            "--drain-timeout",
            "2s",
        ]);
        for (flag, value) in [
            ("--identity", OsString::from(format!("{namespace}/{name}"))),
            ("--control-plane", format!("https://{control_plane}").into()),
            ("--join-token-file", token_file.into()),
            ("--state-dir", state.into()),
            ("--inbound", ports.inbound.address.to_string().into()),
            ("--outbound", ports.outbound.address.to_string().into()),
            ("--addresses-file", children.addresses_file(&process).into()),
        ] {
            arguments.push(flag.into());
            arguments.push(value);
        }
        children.start(&process, binary, arguments, &[])
    }
}

struct Sidecar<'a> {
    name: &'a str,
    namespace: &'a str,
    ports: &'a Ports,
}

fn start_program(children: &mut Children, name: &str, sidecar: SocketAddr) -> Result<(), Failure> {
    let sidecar = sidecar.to_string();
    let mut arguments = arguments([
        "demo-service",
        name,
        "--listen",
        ANY_PORT,
        "--sidecar",
        &sidecar,
    ]);
    arguments.push("--addresses-file".into());
    arguments.push(children.addresses_file(name).into());
    let own = children.own().to_owned();
    children.start(name, &own, arguments, &[])
}

fn arguments<const N: usize>(texts: [&str; N]) -> Vec<OsString> {
    texts.into_iter().map(OsString::from).collect()
}

/// Waits until the control plane is ready, that is, has a root to pin in join tokens.
async fn await_control_plane(children: &mut Children, admin: SocketAddr) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let reply = wire::send(
            admin,
            wire::request("GET", "control-plane", "/ready", None, None),
        )
        .await;
        let why = match reply {
            Ok(reply) if reply.status == 200 => return Ok(()),
            Ok(reply) => String::from_utf8_lossy(&reply.body).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        if let Some(exit) = children.unexpected_exit() {
            return Err(Failure::runtime(exit.to_string()));
        }
        if Instant::now() > deadline {
            return Err(Failure::runtime(format!(
                "the control plane is not ready: {why}"
            )));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until every sidecar is ready and has acknowledged its snapshot.
async fn await_ready(
    children: &mut Children,
    control_plane: &ControlPlane,
    workloads: &[Workload; 3],
) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let proxies = control_plane.proxies().await?;
        let mut waiting = None;
        for workload in workloads {
            let known = proxies.iter().any(|proxy| {
                proxy.identity == workload.identity() && proxy.is_acknowledged() && proxy.ready
            });
            if !known {
                waiting = Some(workload.sidecar());
            }
        }
        let Some(process) = waiting else {
            return Ok(());
        };
        if let Some(exit) = children.unexpected_exit() {
            return Err(Failure::runtime(exit.to_string()));
        }
        if Instant::now() > deadline {
            let log = children.log(&process);
            return Err(Failure::runtime(format!(
                "`{process}` is not ready after {} seconds; last lines of {}:\n{}",
                READY_TIMEOUT.as_secs(),
                log.display(),
                super::children::last_lines(&log, 5)
            )));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The two ports of a sidecar that other processes need before it starts.
struct Ports {
    inbound: Reserved,
    outbound: Reserved,
}

impl Ports {
    fn choose() -> Result<Self, Failure> {
        Ok(Self {
            inbound: Reserved::choose()?,
            outbound: Reserved::choose()?,
        })
    }
}

/// A free loopback port that the system gives to no other process while this value exists. The socket is bound but does not
/// listen, and shares the port (`SO_REUSEPORT`) with the sidecar, as the workers of the sidecar do among themselves.
struct Reserved {
    address: SocketAddr,
    _socket: socket2::Socket,
}

impl Reserved {
    fn choose() -> Result<Self, Failure> {
        let bind = || -> std::io::Result<Self> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            // The sidecar first binds without SO_REUSEPORT, to ensure that no other process listens.
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            let address = socket.local_addr()?.as_socket();
            let address = address.ok_or_else(|| std::io::Error::other("no address"))?;
            Ok(Self {
                address,
                _socket: socket,
            })
        };
        bind().map_err(|error| Failure::runtime(format!("no free port on 127.0.0.1: {error}")))
    }
}
