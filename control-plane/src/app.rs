//! The life of the process: read → bind → serve → drain, in that order.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use merlon_compile::Mesh;
use merlon_config::{causes::chain, report::Report, resource::CertificateIssuer};
use merlon_issuer::CertIssuer;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{
        self, Admin,
        health::{self, Health},
    },
    cluster::{token_review::Reviewer, watch::Contact},
    config::{ControlPlaneConfig, Source},
    grpc,
    issuance::{
        authority::{self, Authority, CertificateManager},
        issue::{self, Issue},
        join_token::JoinTokens,
        ledger::Ledger,
        shared_ca::SharedCa,
    },
    limits::Limits,
    push::{Push, Registry, inspect::Inspect},
    secrets::{self, Deliveries},
    source::{
        Files, SharedStatus,
        kubernetes::{Kubernetes, KubernetesDeps, OpenError},
    },
    state::{
        snapshot::Snapshots,
        state_dir::{StateDirError, take_state_dir},
        store::{Store, StoreError},
    },
    tasks::Tasks,
    telemetry::{metrics::Metrics, spans::Exporter},
    webhook,
};

/// Why the control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The resources are invalid; nothing was changed.
    #[error("{0}")]
    Configuration(Report),
    /// The state directory cannot be used.
    #[error("the state directory {path} cannot be used: {source}")]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Two control planes would sign with one key and accept one token twice.
    #[error("another control plane uses the state directory {0}")]
    StateDirTaken(PathBuf),
    /// A listener cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The configured certificate issuer cannot be used, and a retry does not help.
    #[error("`spec.certificates.issuer` of the MeshConfig cannot be used: {}", chain(.0))]
    Issuer(#[from] merlon_issuer::OpenError),
    /// The database cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings of the injector are invalid.
    #[error("{0}")]
    Injection(Report),
    /// The cluster cannot be watched.
    #[error(transparent)]
    Cluster(#[from] OpenError),
}

impl From<StateDirError> for StartError {
    fn from(error: StateDirError) -> Self {
        match error {
            StateDirError::Unusable { path, source } => Self::StateDir { path, source },
            StateDirError::Taken(path) => Self::StateDirTaken(path),
        }
    }
}

/// Why a running control plane ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The listener for proxies failed.
    #[error("the listener for proxies ended: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// An administration or health listener failed.
    #[error("a listener for administration ended: {0}")]
    Admin(#[from] io::Error),
    /// A task panicked.
    #[error("a task of the control plane failed: {0}")]
    Part(#[from] tokio::task::JoinError),
    /// A task that runs until the shutdown ended before it.
    #[error("a task of the control plane ended before the shutdown: {0}")]
    Ended(String),
}

/// A running control plane. Dropping it stops it without a drain.
#[derive(Debug)]
pub struct ControlPlane {
    /// The address for proxies.
    pub listen: SocketAddr,
    /// The address of `/live`, `/ready` and `/metrics`.
    pub admin: SocketAddr,
    /// The Unix socket for administration.
    pub admin_socket: PathBuf,
    authority: Authority,
    shutdown: CancellationToken,
    main: Option<JoinHandle<Result<(), RunError>>>,
}

impl ControlPlane {
    /// Waits until the first certificate is issued, so that proxies can be served.
    pub async fn ready(&self) {
        self.authority.ready().await;
    }

    /// Cancelling this token starts the drain.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Waits until the control plane has ended, by [`ControlPlane::shutdown_token`] or by a failure.
    ///
    /// # Errors
    /// The first failure.
    pub async fn wait(mut self) -> Result<(), RunError> {
        match self.main.take() {
            Some(main) => main.await?,
            None => Ok(()),
        }
    }

    /// Drains and stops: open streams end with `UNAVAILABLE`, requests in progress are answered.
    ///
    /// # Errors
    /// A failure before or during the drain.
    pub async fn shutdown(self) -> Result<(), RunError> {
        self.shutdown.cancel();
        self.wait().await
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Starts a control plane in the current runtime: reads the resources, binds, and returns while it serves.
///
/// In a cluster it serves `/live` and `/ready` at once, and returns when the first mesh has compiled.
///
/// # Errors
/// [`StartError`]. With a directory of files, an invalid configuration is reported before anything is written or bound.
pub async fn run(config: ControlPlaneConfig) -> Result<ControlPlane, StartError> {
    Box::pin(run_until(config, CancellationToken::new())).await
}

/// Like [`run`]. Cancelling `shutdown` starts the drain, also before the start is complete.
///
/// # Errors
/// Those of [`run`], and `OpenError::Ended` in [`StartError::Cluster`] after a shutdown before the start was complete.
pub async fn run_until(
    config: ControlPlaneConfig,
    shutdown: CancellationToken,
) -> Result<ControlPlane, StartError> {
    let drain_timeout = config.drain_timeout;
    let common = Common::new(config.limits, shutdown.clone());
    let tasks = common.tasks.clone();
    // In a cluster the first mesh may take long, and the webhooks are served meanwhile.
    let in_cluster = matches!(config.source, Source::Kubernetes(_));
    let started = tokio::select! {
        started = Box::pin(open_and_start(config, common)) => started,
        () = shutdown.cancelled(), if !in_cluster => Err(OpenError::Ended.into()),
    };
    if started.is_err() {
        // The webhooks may be serving.
        shutdown.cancel();
        let _ = tokio::time::timeout(drain_timeout, tasks.finished()).await;
    }
    started
}

async fn open_and_start(
    config: ControlPlaneConfig,
    common: Common,
) -> Result<ControlPlane, StartError> {
    match &config.source {
        Source::Files(directory) => {
            let (directory, counted) = (directory.clone(), common.metrics.clone());
            let opened = tokio::task::spawn_blocking(move || Files::open(&directory, counted));
            let (files, mesh) = opened
                .await
                .map_err(|_| StartError::Store(StoreError::Gone))?
                .map_err(StartError::Configuration)?;
            let lock = take_state_dir(&config.state_dir)?;
            let named = &mesh.config().certificates.issuer;
            let issuer = CertIssuer::open(
                named,
                &config.state_dir,
                &mesh.state().trust_domain,
                config.limits.vault.into(),
            )
            .await?;
            authority::log_issuer(&issuer);
            let issuer = (named.clone(), Arc::new(issuer));
            let health = common.health_listener(&config).await?;
            let opened = Opened {
                mesh,
                lock,
                health,
                issuer: Some(issuer),
                followed: Followed::Files(Box::new(files)),
            };
            start(config, common, opened).await
        }
        Source::Kubernetes(kubernetes) => {
            let health = common.health_listener(&config).await?;
            let lock = take_state_dir(&config.state_dir)?;
            let webhook = match &kubernetes.webhook {
                Some(webhook) => Some((bind(webhook.listen).await?, bind(webhook.fallback).await?)),
                None => None,
            };
            let cluster = Kubernetes::connect(kubernetes, common.kubernetes_deps()).await?;
            if let (Some(settings), Some(listeners)) = (&kubernetes.webhook, webhook) {
                let deps = webhook::WebhookDeps {
                    client: cluster.client().clone(),
                    namespace: &kubernetes.namespace,
                    replica: &kubernetes.replica,
                    cluster: cluster.cluster().clone(),
                    dry_run: cluster.dry_run().clone(),
                    leads: cluster.leads().clone(),
                    metrics: common.metrics.clone(),
                    limits: common.limits.webhook,
                    tasks: common.tasks.clone(),
                    shutdown: common.shutdown.clone(),
                };
                // Before the first mesh: admission must work while users fix the resources that prevent it.
                webhook::start(settings, listeners, deps).map_err(StartError::Injection)?;
            }
            let (cluster, mesh) = cluster.first_mesh(&common.shutdown).await?;
            let opened = Opened {
                mesh,
                lock,
                health,
                // The certificate manager opens it and retries: an unavailable issuer must not stop a replica.
                issuer: None,
                followed: Followed::Cluster(Box::new(cluster)),
            };
            start(config, common, opened).await
        }
    }
}

/// What exists before the resources are read.
struct Common {
    limits: Limits,
    metrics: Metrics,
    authority: Authority,
    registry: Registry,
    contact: Contact,
    deliveries: Deliveries,
    tasks: Tasks,
    shutdown: CancellationToken,
}

impl Common {
    fn new(limits: Limits, shutdown: CancellationToken) -> Self {
        let metrics = Metrics::new();
        Self {
            registry: Registry::new(metrics.clone(), limits.registry, limits.inspection.timeout),
            limits,
            metrics,
            authority: Authority::new(),
            contact: Contact::default(),
            deliveries: Deliveries::default(),
            tasks: Tasks::new(shutdown.clone()),
            shutdown,
        }
    }

    fn kubernetes_deps(&self) -> KubernetesDeps {
        KubernetesDeps {
            registry: self.registry.clone(),
            authority: self.authority.clone(),
            metrics: self.metrics.clone(),
            contact: self.contact.clone(),
            deliveries: self.deliveries.clone(),
            limits: self.limits,
            tasks: self.tasks.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    fn health(&self) -> Health {
        Health {
            authority: self.authority.clone(),
            contact: self.contact.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    /// Binds and serves `/live`, `/ready` and `/metrics`.
    async fn health_listener(
        &self,
        config: &ControlPlaneConfig,
    ) -> Result<(SocketAddr, JoinHandle<io::Result<()>>), StartError> {
        let listener = bind(config.admin).await?;
        let address = listener.local_addr();
        let address = address.map_err(bind_error(config.admin.to_string()))?;
        let (health, metrics) = (self.health(), self.metrics.clone());
        let served = health::serve(
            listener,
            self.limits.admin,
            health,
            metrics,
            self.shutdown.clone(),
        );
        Ok((address, tokio::spawn(served)))
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(bind_error(address.to_string()))
}

fn bind_error(address: String) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Bind { address, source }
}

/// The result of the start, before serving.
struct Opened {
    mesh: Arc<Mesh>,
    lock: File,
    health: (SocketAddr, JoinHandle<io::Result<()>>),
    issuer: Option<(CertificateIssuer, Arc<CertIssuer>)>,
    followed: Followed,
}

/// The source of resources, while it is followed.
enum Followed {
    Files(Box<Files>),
    Cluster(Box<Kubernetes>),
}

impl Followed {
    fn status(&self) -> SharedStatus {
        match self {
            Self::Files(files) => files.status(),
            Self::Cluster(cluster) => cluster.status(),
        }
    }

    async fn follow(self, snapshots: Snapshots, shutdown: CancellationToken) {
        match self {
            Self::Files(files) => files.follow(snapshots, shutdown).await,
            Self::Cluster(cluster) => cluster.follow(snapshots, shutdown).await,
        }
    }
}

async fn start(
    config: ControlPlaneConfig,
    common: Common,
    opened: Opened,
) -> Result<ControlPlane, StartError> {
    let store = Store::open(
        &config.state_dir.join("control-plane.sqlite"),
        config.limits.store,
    )?;
    let listener = bind(config.listen).await?;
    let socket = config.admin_socket.display().to_string();
    let admin_listener = admin::bind(&config.admin_socket)
        .await
        .map_err(bind_error(socket))?;
    let listen = listener
        .local_addr()
        .map_err(bind_error(config.listen.to_string()))?;
    let (admin_address, health) = opened.health;
    let (reviewer, shared) = match &opened.followed {
        Followed::Files(_) => (None, None),
        Followed::Cluster(cluster) => (Some(cluster.reviewer()), Some(cluster.shared_ca())),
    };
    let (shutdown, authority) = (common.shutdown.clone(), common.authority.clone());
    let snapshots = Snapshots::new(opened.mesh);
    if let Followed::Cluster(cluster) = &opened.followed {
        snapshots.publish_certificates(cluster.certificates());
    }
    let parts = Parts {
        snapshots,
        tokens: JoinTokens::new(store.clone()),
        ledger: Ledger::new(store),
        health: common.health(),
        registry: common.registry,
        authority: common.authority,
        deliveries: common.deliveries,
        metrics: common.metrics,
        tasks: common.tasks,
        shutdown: common.shutdown,
        drain_timeout: config.drain_timeout,
        limits: config.limits,
        admin_socket: config.admin_socket.clone(),
        state_dir: config.state_dir,
        issuer: opened.issuer,
        reviewer,
        shared,
        _lock: opened.lock,
    };
    tracing::info!(
        listen = %listen,
        admin = %admin_address,
        admin_socket = %config.admin_socket.display(),
        source = ?config.source,
        version = env!("CARGO_PKG_VERSION"),
        "control_plane.started"
    );
    let listeners = Listeners {
        listener,
        health,
        admin_listener,
    };
    let main = tokio::spawn(parts.serve(opened.followed, listeners));
    Ok(ControlPlane {
        listen,
        admin: admin_address,
        admin_socket: config.admin_socket,
        authority,
        shutdown,
        main: Some(main),
    })
}

struct Listeners {
    listener: TcpListener,
    health: JoinHandle<io::Result<()>>,
    admin_listener: tokio::net::UnixListener,
}

struct Parts {
    snapshots: Snapshots,
    registry: Registry,
    tokens: JoinTokens,
    ledger: Ledger,
    authority: Authority,
    deliveries: Deliveries,
    health: Health,
    metrics: Metrics,
    tasks: Tasks,
    shutdown: CancellationToken,
    drain_timeout: Duration,
    limits: Limits,
    admin_socket: PathBuf,
    state_dir: PathBuf,
    issuer: Option<(CertificateIssuer, Arc<CertIssuer>)>,
    reviewer: Option<Reviewer>,
    shared: Option<SharedCa>,
    /// Holds the lock on the state directory.
    _lock: File,
}

impl Parts {
    async fn serve(self, followed: Followed, listeners: Listeners) -> Result<(), RunError> {
        let exporter = Exporter::from_environment();
        let admin = Admin {
            snapshots: self.snapshots.clone(),
            authority: self.authority.clone(),
            registry: self.registry.clone(),
            tokens: self.tokens.clone(),
            ledger: self.ledger.clone(),
            health: self.health.clone(),
            source: followed.status(),
        };
        let certificates = CertificateManager {
            authority: self.authority.clone(),
            snapshots: self.snapshots.clone(),
            ledger: self.ledger.clone(),
            metrics: self.metrics.clone(),
            limits: self.limits.issuance,
            vault: self.limits.vault.into(),
            state_dir: self.state_dir.clone(),
            issuer: self.issuer.clone(),
            shared: self.shared.clone(),
        };
        let shutdown = || self.shutdown.clone();
        let tasks = self.tasks.clone();
        let followed = followed.follow(self.snapshots.clone(), shutdown());
        tasks.spawn_lasting("resources", followed);
        tasks.spawn_lasting("certificate", certificates.run(shutdown()));
        let reader = secrets::Reader {
            snapshots: self.snapshots.clone(),
            authority: self.authority.clone(),
            deliveries: self.deliveries.clone(),
            limits: self.limits.secrets,
        };
        tasks.spawn_lasting("secrets", reader.run(shutdown()));
        let mut health = listeners.health;
        let mut admin = tokio::spawn(admin::serve(listeners.admin_listener, admin, shutdown()));
        let mut proxies = tokio::spawn(self.grpc(listeners.listener));
        // If a listener or a task ends before the shutdown, the whole process ends.
        let ended: Result<(), RunError> = tokio::select! {
            biased;
            // First: during the shutdown all of them end.
            () = self.shutdown.cancelled() => Ok(()),
            ended = &mut health => flat(ended),
            ended = &mut admin => flat(ended),
            ended = &mut proxies => flat(ended),
            ended = tasks.first_end() => Err(RunError::Ended(ended)),
        };
        tracing::info!("control_plane.draining");
        self.shutdown.cancel();
        let rest = async {
            tasks.finished().await;
            let _ = tokio::join!(finished(proxies), finished(admin), finished(health));
        };
        if tokio::time::timeout(self.drain_timeout, rest)
            .await
            .is_err()
        {
            tracing::warn!("control_plane.drain_timeout");
        }
        let _ = fs::remove_file(&self.admin_socket);
        let _ = tokio::task::spawn_blocking(move || exporter.shutdown()).await;
        tracing::info!("control_plane.ended");
        ended
    }

    fn grpc(
        &self,
        listener: TcpListener,
    ) -> impl Future<Output = Result<(), tonic::transport::Error>> + use<> {
        let push = Push {
            snapshots: self.snapshots.clone(),
            registry: self.registry.clone(),
            metrics: self.metrics.clone(),
            limits: self.limits.push,
            tasks: self.tasks.clone(),
            shutdown: self.shutdown.clone(),
        };
        let (by_address, by_identity) = issue::rates(&self.limits.issuance);
        let issue = Issue {
            snapshots: self.snapshots.clone(),
            authority: self.authority.clone(),
            tokens: self.tokens.clone(),
            reviewer: self.reviewer.clone(),
            ledger: self.ledger.clone(),
            registry: self.registry.clone(),
            metrics: self.metrics.clone(),
            limits: self.limits.issuance,
            by_address,
            by_identity,
        };
        let inspect = Inspect {
            registry: self.registry.clone(),
            metrics: self.metrics.clone(),
            limits: self.limits.inspection,
            tasks: self.tasks.clone(),
            shutdown: self.shutdown.clone(),
        };
        let authority = self.authority.clone();
        grpc::serve(
            (listener, self.limits.proxies),
            authority,
            push,
            issue,
            inspect,
            self.metrics.clone(),
            self.shutdown.clone(),
        )
    }
}

fn flat<E: Into<RunError>>(
    ended: Result<Result<(), E>, tokio::task::JoinError>,
) -> Result<(), RunError> {
    ended?.map_err(Into::into)
}

/// A handle that has completed must not be awaited again.
async fn finished<T>(task: JoinHandle<T>) {
    if !task.is_finished() {
        let _ = task.await;
    }
}
