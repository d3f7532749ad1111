//! Build → bind → serve → drain.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use merlon_config::{live::Live, report::Report, resource::OutboundListener};
use tokio::{sync::watch, task::LocalSet, time};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{ProxyConfig, Source},
    control::{
        Control, admin, probes,
        secret_folder::SecretFolder,
        standalone::Standalone,
        state_dir::{StateDir, StateDirError},
    },
    downstream::listeners,
    protocol::{address_claims::Claims, original_dst, sockets},
    state::{
        destinations::Destinations,
        gateway_ports::Port,
        jwks_cache::JwksCache,
        readiness::{Readiness, Unready},
        shared::{Shared, Shutdown},
    },
    telemetry::{decision_log::DecisionLog, metrics::Metrics, spans},
    worker::{self, Worker},
};

/// Why a proxy could not be started. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is invalid: exit code 2.
    #[error("{0}")]
    Configuration(Report),
    /// A listener cannot be bound.
    #[error("cannot listen on `{address}`")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error("cannot use the state directory `{}`", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: StateDirError,
    },
    /// The directory for secrets cannot be used.
    #[error("cannot use the directory for secrets `{}`", path.display())]
    SecretsDir {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A thread or a runtime cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// A thread of the proxy ended unexpectedly.
#[derive(Debug, thiserror::Error)]
#[error("a thread of the proxy ended unexpectedly")]
pub struct Ended;

/// A running proxy. Dropping it ends the proxy at once; [`Handle::drain`] drains it first.
#[derive(Debug)]
pub struct Handle {
    addresses: Addresses,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    drain: CancellationToken,
    end: CancellationToken,
    ended: watch::Receiver<Option<bool>>,
}

impl Handle {
    /// The bound addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The state that the workers share, for tests and demos.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Starts the shutdown: not ready, no new connections, GOAWAY; open requests may finish within the drain timeout.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Resolves when the proxy has ended, drained or timed out.
    ///
    /// # Errors
    /// [`Ended`] if no shutdown was requested.
    pub async fn ended(&mut self) -> Result<(), Ended> {
        let ended = self.ended.wait_for(Option::is_some).await;
        match ended.map(|requested| *requested) {
            Ok(Some(true)) => Ok(()),
            _ => Err(Ended),
        }
    }

    /// Resolves when it is ready.
    pub async fn ready(&self) {
        let mut changes = self.shared.readiness.watch();
        while !self.shared.readiness.is_ready() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.drain.cancel();
        self.end.cancel();
    }
}

/// Starts a proxy on its own threads, and returns when its listeners are bound. It may not be ready yet.
///
/// # Errors
/// [`StartError`]; in standalone mode it includes every problem of the resource files.
pub fn start(config: ProxyConfig) -> Result<Handle, StartError> {
    let node_id = node_id();
    let metrics = Arc::new(Metrics::default());
    let state_dir = config.state_dir.as_deref().map(|path| {
        StateDir::open(path).map_err(|source| StartError::StateDir {
            path: path.to_owned(),
            source,
        })
    });
    let state_dir = state_dir.transpose()?.map(Arc::new);
    let secrets = config.secrets_dir.as_deref().map(|path| {
        SecretFolder::open(path).map_err(|source| StartError::SecretsDir {
            path: path.to_owned(),
            source,
        })
    });
    let secrets = secrets.transpose()?.map(Arc::new);

    let (destinations, lookups) = Destinations::new(&config.limits);
    let (keys, refetches) = JwksCache::new(&config.limits);
    let (spans, exporter) = spans::from_environment(&metrics);
    let shared = Arc::new(Shared {
        snapshot: Live::new(None),
        identity: Live::new(None),
        has_identity: !matches!(config.source, Source::Standalone { identity: None, .. }),
        interception: config.interception,
        keys,
        destinations,
        decisions: DecisionLog::new(&node_id, &config.limits),
        egress: crate::telemetry::egress_log::EgressLog::default(),
        spans,
        listeners: Claims::default(),
        readiness: Readiness::default(),
        access_log: config.access_log,
        limits: config.limits,
    });
    shared
        .readiness
        .add_reason(Unready::NoSnapshot, "there is no snapshot yet");
    if secrets.is_some() && matches!(config.source, Source::ControlPlane { .. }) {
        let message = "the granted secrets are not known yet";
        shared.readiness.add_reason(Unready::NoSecret, message);
    }
    if shared.has_identity {
        shared
            .readiness
            .add_reason(Unready::NoIdentity, "there is no certificate yet");
    }
    for worker in 0..config.workers.get() {
        for kind in [
            <OutboundListener as listeners::Wanted>::KIND,
            <Port as listeners::Wanted>::KIND,
        ] {
            shared.readiness.add_part_reason(
                Unready::Listener,
                &listeners::unopened(worker, kind),
                format!("{kind} are not open yet"),
            );
        }
    }
    // Before any listener is bound: a proxy with invalid files does not start.
    let standalone = match &config.source {
        Source::Standalone {
            directory,
            identity,
        } => {
            let standalone = Standalone::new(
                directory,
                identity.clone(),
                &config.subject,
                &shared,
                &metrics,
            );
            Some(standalone.map_err(StartError::Configuration)?)
        }
        Source::ControlPlane { .. } => None,
    };
    let bound = Bound::new(&config)?;
    let addresses = bound.addresses;
    shared.listeners.set_of_process(bound.all());
    let drain = CancellationToken::new();
    let end = CancellationToken::new();
    let (ended, ended_receiver) = watch::channel(None);
    let control = Control {
        node_id,
        shared: Arc::clone(&shared),
        metrics: Arc::clone(&metrics),
        config,
        state_dir,
        secrets,
        standalone,
        lookups,
        refetches,
        exporter,
    };
    let shutdown = Shutdown {
        drain: CancellationToken::new(),
        end: end.clone(),
    };
    run(control, bound, &drain, shutdown, ended).map_err(StartError::Thread)?;
    Ok(Handle {
        addresses,
        shared,
        metrics,
        drain,
        end,
        ended: ended_receiver,
    })
}

/// All bound listeners, before any is served.
struct Bound {
    inbound: Vec<Vec<TcpListener>>,
    outbound: Vec<Vec<TcpListener>>,
    admin: TcpListener,
    probes: Option<TcpListener>,
    addresses: Addresses,
}

impl Bound {
    fn new(config: &ProxyConfig) -> Result<Self, StartError> {
        let workers = config.workers.get();
        let all = |address| -> Result<Vec<Vec<TcpListener>>, StartError> {
            if config.subject.is_gateway() {
                return Ok((0..workers).map(|_| Vec::new()).collect());
            }
            let bound = sockets::bind_all(address, workers);
            let bound = bound.map_err(|source| StartError::Bind { address, source })?;
            let mut each: Vec<_> = bound.into_iter().map(|listener| vec![listener]).collect();
            let port = each.first().and_then(|first| first.first());
            let port = port.and_then(|first| first.local_addr().ok());
            let other = port.map(|bound| SocketAddr::new(address.ip(), bound.port()));
            let other = other.and_then(original_dst::counterpart);
            if let Some(other) = other.filter(|_| config.interception) {
                match sockets::bind_all(other, workers) {
                    Ok(bound) => {
                        for (mine, listener) in each.iter_mut().zip(bound) {
                            mine.push(listener);
                        }
                    }
                    // A host without IPv6 has no IPv6 connections.
                    Err(error) if is_no_such_family(&error) => {}
                    Err(source) => {
                        return Err(StartError::Bind {
                            address: other,
                            source,
                        });
                    }
                }
            }
            Ok(each)
        };
        let (inbound, outbound) = (all(config.inbound)?, all(config.outbound)?);
        let (admin, admin_address) = bind(config.admin)?;
        let probes = config.probes.as_ref();
        let probes = probes.map(|(address, _)| bind(*address)).transpose()?;
        let (probes, probes_address) = probes.unzip();
        let address = |listeners: &[Vec<TcpListener>]| {
            let first = listeners.first().and_then(|mine| mine.first());
            first.and_then(|first| first.local_addr().ok())
        };
        let addresses = Addresses {
            inbound: address(&inbound),
            outbound: address(&outbound),
            admin: admin_address,
            probes: probes_address,
        };
        Ok(Self {
            inbound,
            outbound,
            admin,
            probes,
            addresses,
        })
    }

    /// Every address that is bound.
    fn all(&self) -> Vec<SocketAddr> {
        let of_workers = self.inbound.iter().chain(&self.outbound).flatten();
        let of_workers = of_workers.filter_map(|listener| listener.local_addr().ok());
        let of_control = [Some(self.addresses.admin), self.addresses.probes];
        let all: BTreeSet<_> = of_workers.chain(of_control.into_iter().flatten()).collect();
        all.into_iter().collect()
    }
}

/// A listener of the control thread, and its bound address.
fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let listen = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    listen().map_err(|source| StartError::Bind { address, source })
}

/// Whether binding failed because the host does not support the address family.
fn is_no_such_family(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

/// Starts the threads: one per worker, and the control thread.
fn run(
    control: Control,
    bound: Bound,
    drain: &CancellationToken,
    shutdown: Shutdown,
    ended: watch::Sender<Option<bool>>,
) -> io::Result<()> {
    let mut workers = Vec::new();
    let mut inbound = bound.inbound.into_iter();
    let mut outbound = bound.outbound.into_iter();
    let (alive, all_ended) = tokio::sync::mpsc::channel::<()>(1);
    for index in 0..control.config.workers.get() {
        let worker = Worker {
            index,
            shared: Arc::clone(&control.shared),
            metrics: control.metrics.worker(),
            inbound: inbound.next().unwrap_or_default(),
            outbound: outbound.next().unwrap_or_default(),
            interception: control.config.interception,
            shutdown: shutdown.clone(),
        };
        // Long validations run on threads of this runtime.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .thread_stack_size(merlon_policy::stack::EVALUATION)
            .enable_all()
            .build()?;
        workers.push((runtime, worker));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for (runtime, worker) in workers {
        let alive = alive.clone();
        let name = format!("worker-{}", worker.index);
        let thread = thread::Builder::new()
            .name(name)
            .stack_size(merlon_policy::stack::EVALUATION);
        let spawned = thread.spawn(move || {
            let local = LocalSet::new();
            local.block_on(&runtime, worker::run(worker));
            drop(alive);
        });
        if let Err(error) = spawned {
            // Stop the workers that are already running.
            shutdown.drain.cancel();
            shutdown.end.cancel();
            return Err(error);
        }
    }
    drop(alive);
    let (on_error, drain) = (shutdown.clone(), drain.clone());
    let spawned = thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            let serving = serve(
                control,
                (bound.admin, bound.probes),
                drain,
                shutdown,
                all_ended,
            );
            let requested = runtime.block_on(serving);
            runtime.shutdown_timeout(Duration::from_millis(100));
            // There is no receiver if the handle was dropped.
            let _ = ended.send(Some(requested));
        });
    if let Err(error) = spawned {
        on_error.drain.cancel();
        on_error.end.cancel();
        return Err(error);
    }
    Ok(())
}

/// Runs the control thread until the shutdown is complete. True if the shutdown was requested.
async fn serve(
    control: Control,
    (admin, probes): (TcpListener, Option<TcpListener>),
    drain: CancellationToken,
    shutdown: Shutdown,
    mut all_ended: tokio::sync::mpsc::Receiver<()>,
) -> bool {
    let timeout = control.config.drain_timeout;
    let shared = Arc::clone(&control.shared);
    match tokio::net::TcpListener::from_std(admin) {
        Ok(listener) => {
            tokio::spawn(admin::serve(
                listener,
                Arc::clone(&shared),
                Arc::clone(&control.metrics),
            ));
        }
        Err(error) => tracing::error!(%error, "admin.failed"),
    }
    if let (Some(listener), Some((_, probes))) = (probes, &control.config.probes) {
        let metrics = Arc::clone(&control.metrics);
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                tokio::spawn(probes::serve(listener, probes.clone(), metrics));
            }
            Err(error) => tracing::error!(%error, "probes.failed"),
        }
    }
    let exporter = control.start();
    let requested = tokio::select! {
        () = drain.cancelled() => true,
        // All senders are dropped: all workers ended.
        _ = all_ended.recv() => false,
    };
    shared
        .readiness
        .add_reason(Unready::Draining, "the proxy is shutting down");
    tracing::info!(timeout = ?timeout, "proxy.draining");
    shutdown.drain.cancel();
    let drained = async {
        tokio::select! {
            _ = time::timeout(timeout, all_ended.recv()) => {}
            () = shutdown.end.cancelled() => {}
        }
    };
    drained.await;
    shutdown.end.cancel();
    // A worker ends at its next poll; the process does not wait longer for one that is stuck.
    let _ = time::timeout(Duration::from_secs(2), all_ended.recv()).await;
    exporter.flush().await;
    requested
}

/// An id that is unique per process, also among processes with the same identity on one machine.
fn node_id() -> String {
    use std::fmt::Write as _;
    let mut random = [0_u8; 8];
    // Without entropy no certificate can be made either; the process id still distinguishes processes of a machine.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let mut id = format!("{}-", std::process::id());
    for byte in random {
        // Writing to a String does not fail.
        let _ = write!(id, "{byte:02x}");
    }
    id
}

/// The bound addresses, with port 0 resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Mesh TLS from other proxies. `None` in a gateway.
    pub inbound: Option<SocketAddr>,
    /// Requests of the local program. `None` in a gateway.
    pub outbound: Option<SocketAddr>,
    /// `/live`, `/ready`, `/metrics`.
    pub admin: SocketAddr,
    /// The kubelet's probes of the program, if configured.
    pub probes: Option<SocketAddr>,
}
