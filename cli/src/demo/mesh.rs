//! The demo's mesh: all processes up, each sidecar with its certificate and its state.

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
    resources::{Facts, Place, Resources, TRUST_DOMAIN},
    sabotage::Sabotage,
    server::write_whole,
    token::SigningKey,
    vault::Vault,
    wire::{self, Reply},
};
use crate::{
    control_plane::{ControlPlane, ProxyStatus},
    failure::Failure,
};

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Mesh<'a> {
    pub(crate) folder: PathBuf,
    pub(crate) children: &'a mut Children,
    pub(crate) resources: Resources,
    pub(crate) control_plane: ControlPlane,
    pub(crate) control_plane_address: SocketAddr,
    /// Where `/metrics` of the control plane is.
    pub(crate) control_plane_admin: SocketAddr,
    pub(crate) issuer: SocketAddr,
    pub(crate) web: Workload,
    pub(crate) orders: Workload,
    pub(crate) payments: Workload,
    /// The key of somebody who is not the issuer.
    pub(crate) forger: SigningKey,
}

/// A program and the sidecar beside it.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) namespace: &'static str,
    /// Where the program listens.
    pub(crate) program: SocketAddr,
    /// Where its sidecar takes the program's calls.
    pub(crate) outbound: SocketAddr,
    /// Where its sidecar takes calls of the mesh.
    pub(crate) inbound: SocketAddr,
    /// `/live`, `/ready`, `/metrics` of its sidecar.
    pub(crate) admin: SocketAddr,
}

impl Workload {
    /// The name of its sidecar's process and log file.
    pub(crate) fn sidecar(&self) -> String {
        format!("{}-sidecar", self.name)
    }

    /// As in `spiffe://demo.merlon.test/ns/shop/sa/web`.
    pub(crate) fn identity(&self) -> String {
        format!(
            "spiffe://{TRUST_DOMAIN}/ns/{}/sa/{}",
            self.namespace, self.name
        )
    }

    /// As `shop/web`.
    pub(crate) fn account(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// How many requests its program has seen.
    pub(crate) async fn seen(&self) -> Result<u64, Failure> {
        let request = wire::ask("GET", "program", super::service::SEEN, None, None);
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
    /// Starts all of it in `folder`, in the order in which each needs the others.
    pub(crate) async fn start(
        folder: &Path,
        vault: Option<&Vault>,
        sabotage: Option<Sabotage>,
        children: &'a mut Children,
    ) -> Result<Self, Failure> {
        let starting = Starting { folder, sabotage };
        let parts = starting.start(children, vault).await?;
        Ok(parts.with(children))
    }

    pub(crate) fn workloads(&self) -> [&Workload; 3] {
        [&self.web, &self.orders, &self.payments]
    }

    /// What every proxy says of itself, by the identity's short name.
    pub(crate) async fn proxies(&self) -> Result<Vec<ProxyStatus>, Failure> {
        self.control_plane.proxies().await
    }

    /// Waits until all proxies have acknowledged a state, and some other one than `before`.
    pub(crate) async fn await_change(&self, before: &[ProxyStatus]) -> Result<(), Failure> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let now = self.proxies().await?;
            let changed = now.iter().any(|proxy| {
                let mut known = before.iter().filter(|old| old.id == proxy.id);
                known.all(|old| old.snapshot_version != proxy.snapshot_version)
            });
            if changed && now.iter().all(ProxyStatus::is_acknowledged) {
                return Ok(());
            }
            if Instant::now() > patience {
                return Err(Failure::runtime(
                    "the changed resources were not taken over within 5 seconds",
                ));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What every proxy enforces, once nothing of earlier changes is on its way any more.
    pub(crate) async fn settled(&self) -> Result<Vec<ProxyStatus>, Failure> {
        let patience = Instant::now() + PATIENCE;
        let mut before = self.proxies().await?;
        loop {
            sleep(Duration::from_millis(100)).await;
            let now = self.proxies().await?;
            let same = versions(&before) == versions(&now);
            if same && now.iter().all(ProxyStatus::is_acknowledged) {
                return Ok(now);
            }
            if Instant::now() > patience {
                return Err(Failure::runtime(
                    "the sidecars do not come to rest within 5 seconds",
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

    /// What the report says of the whole.
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

/// Which state each proxy enforces, in order of their ids.
pub(crate) fn versions(proxies: &[ProxyStatus]) -> Vec<(&str, Option<&str>)> {
    let each = proxies
        .iter()
        .map(|proxy| (proxy.id.as_str(), proxy.snapshot_version.as_deref()));
    let mut all: Vec<_> = each.collect();
    all.sort_unstable();
    all
}

/// What is there while not everything is.
struct Starting<'a> {
    folder: &'a Path,
    sabotage: Option<Sabotage>,
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

impl Starting<'_> {
    async fn start(
        &self,
        children: &mut Children,
        vault: Option<&Vault>,
    ) -> Result<Parts, Failure> {
        let forger = SigningKey::generate(issuer::NEXT)?;
        let control_plane_binary = children.sibling("merlon-control-plane")?;
        let proxy_binary = children.sibling("merlon-proxy")?;

        // The ports that resource files have to name are chosen here, and kept until their owner has them.
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
        let mut places = Vec::new();
        for ((name, _), ports) in programs.iter().zip(&ports) {
            let program = children.addresses(name).await?.get("listen")?;
            places.push((program, ports.inbound.address));
        }
        let place = |index: usize| {
            let (program, mesh) = places.get(index).copied().unwrap_or((issuer, issuer));
            Place {
                mesh,
                port: program.port(),
            }
        };
        let resources = Resources::write(
            self.folder.join("resources"),
            &Facts {
                issuer: &format!("http://{issuer}"),
                certificates: &vault.map(Vault::resource).unwrap_or_default(),
                web: place(0),
                orders: place(1),
                payments: place(2),
            },
        )?;

        let socket = self.folder.join("admin.sock");
        let addresses = self
            .start_control_plane(children, &control_plane_binary, &resources, &socket)
            .await?;
        let control_plane = ControlPlane::at(socket);
        let control_plane_address = addresses.get("listen")?;
        await_signer(children, addresses.get("admin")?).await?;

        for ((name, namespace), ports) in programs.iter().zip(&ports) {
            let mut identity = format!("{namespace}/{name}");
            if self.sabotage == Some(Sabotage::Start) && *name == "orders" {
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
        for (((name, namespace), ports), (program, _)) in programs.iter().zip(&ports).zip(&places) {
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
            control_plane_admin: addresses.get("admin")?,
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
        if self.sabotage == Some(Sabotage::ForgedSignature) {
            let file = self.folder.join("next-key.json");
            write_whole(&file, &forger.public_jwk().to_string())?;
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
        write_whole(&token_file, join_token)?;
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

/// Waits until the control plane is ready, which it is once it has a root to pin in join tokens.
async fn await_signer(children: &mut Children, admin: SocketAddr) -> Result<(), Failure> {
    let patience = Instant::now() + PATIENCE;
    loop {
        let reply = wire::send(
            admin,
            wire::ask("GET", "control-plane", "/ready", None, None),
        )
        .await;
        let why = match reply {
            Ok(reply) if reply.status == 200 => return Ok(()),
            Ok(reply) => String::from_utf8_lossy(&reply.body).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        if let Some(death) = children.dead() {
            return Err(Failure::runtime(death.to_string()));
        }
        if Instant::now() > patience {
            return Err(Failure::runtime(format!(
                "the control plane is not ready: {why}"
            )));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until every sidecar is ready and has acknowledged its state.
async fn await_ready(
    children: &mut Children,
    control_plane: &ControlPlane,
    workloads: &[Workload; 3],
) -> Result<(), Failure> {
    let patience = Instant::now() + PATIENCE;
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
        if let Some(death) = children.dead() {
            return Err(Failure::runtime(death.to_string()));
        }
        if Instant::now() > patience {
            let log = children.log(&process);
            return Err(Failure::runtime(format!(
                "`{process}` is not ready after {} seconds; the end of {}:\n{}",
                PATIENCE.as_secs(),
                log.display(),
                super::children::last_lines(&log, 5)
            )));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

/// The two ports of a sidecar that others have to know before it starts.
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

/// A free port of loopback that nobody else is given while this is held: bound, but not listening, and shared
/// (`SO_REUSEPORT`) with the sidecar, whose workers share it among themselves in the same way.
struct Reserved {
    address: SocketAddr,
    _socket: socket2::Socket,
}

impl Reserved {
    fn choose() -> Result<Self, Failure> {
        let bind = || -> std::io::Result<Self> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            // The sidecar makes sure, without sharing, that nobody listens.
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
