//! The control plane from beginning to end: read → bind → serve → drain, in that order.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use merlon_config::{report::Report, resource::CertificateIssuer};
use merlon_issuer::CertIssuer;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin::{self, Admin},
    authority::{self, Authority, Keeper},
    config::ControlPlaneConfig,
    health::{self, Health},
    inspect::Inspect,
    issue::{self, Issue},
    join_token::JoinTokens,
    ledger::Ledger,
    metrics::Metrics,
    push::{Push, Registry},
    serve,
    source::Files,
    store::{Store, StoreError},
    telemetry::Exporter,
    world::Worlds,
};

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The resources are wrong; nothing was changed.
    #[error("{0}")]
    Configuration(Report),
    /// Its folder cannot be used.
    #[error("the state directory {path} cannot be used: {source}")]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two would sign with one key and use one token twice.
    #[error("another control plane uses the state directory {0}")]
    StateDirTaken(PathBuf),
    /// An address cannot be listened on.
    #[error("{address} cannot be listened on: {source}")]
    Bind {
        /// Which.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The certificate issuer that the resources name cannot be used, and no waiting would mend that.
    #[error("`spec.certificates.issuer` of the MeshConfig cannot be used: {}", chain(.0))]
    Issuer(#[from] merlon_issuer::OpenError),
    /// Its database does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a control plane that ran does not any more.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The proxies' listener.
    #[error("the listener for proxies ended: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// A listener for people.
    #[error("a listener for administration ended: {0}")]
    Admin(#[from] io::Error),
    /// A task ended by a fault of its own.
    #[error("a part of the control plane ended: {0}")]
    Part(#[from] tokio::task::JoinError),
}

/// A running control plane. Dropping it ends it without a drain.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where proxies reach it.
    pub listen: SocketAddr,
    /// `/live`, `/ready`, `/metrics`.
    pub admin: SocketAddr,
    /// The Unix socket for administration.
    pub admin_socket: PathBuf,
    authority: Authority,
    shutdown: CancellationToken,
    main: Option<JoinHandle<Result<(), RunError>>>,
}

impl ControlPlane {
    /// Waits until proxies can be served: the certificate issuer has answered.
    pub async fn ready(&self) {
        self.authority.ready().await;
    }

    /// Cancelling it begins the end.
    pub fn shutdown_token(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Waits for the end, by [`ControlPlane::shutdown_token`] or by a failure.
    ///
    /// # Errors
    /// What failed.
    pub async fn wait(mut self) -> Result<(), RunError> {
        match self.main.take() {
            Some(main) => main.await?,
            None => Ok(()),
        }
    }

    /// Ends it: streams are told to go elsewhere, what is being answered is answered.
    ///
    /// # Errors
    /// What failed before or meanwhile.
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

/// Starts a control plane within the running runtime: reads the resources, binds, and returns while it serves.
///
/// # Errors
/// [`StartError`]; a wrong configuration is found before anything is written or bound.
pub async fn run(config: ControlPlaneConfig) -> Result<ControlPlane, StartError> {
    let metrics = Metrics::new();
    let (directory, counted) = (config.config.clone(), metrics.clone());
    let opened = tokio::task::spawn_blocking(move || Files::open(&directory, counted)).await;
    let (files, mesh) = opened
        .map_err(|_| StartError::Store(StoreError::Gone))?
        .map_err(StartError::Configuration)?;
    let lock = take_state_dir(&config.state_dir)?;
    let store = Store::open(&config.state_dir.join("control-plane.sqlite"))?;
    let bind_error = |address: String| move |source| StartError::Bind { address, source };
    let named = &mesh.config().certificates.issuer;
    let issuer = CertIssuer::open(named, &config.state_dir, &mesh.state().trust_domain).await?;
    authority::tell(&issuer);
    let issuer = (named.clone(), Arc::new(issuer));
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.map_err(bind_error(config.listen.to_string()))?;
    let health_listener = TcpListener::bind(config.admin).await;
    let health_listener = health_listener.map_err(bind_error(config.admin.to_string()))?;
    let socket = config.admin_socket.display().to_string();
    let admin_listener = admin::bind(&config.admin_socket)
        .await
        .map_err(bind_error(socket))?;
    let listen = listener
        .local_addr()
        .map_err(bind_error(config.listen.to_string()))?;
    let admin_address = health_listener
        .local_addr()
        .map_err(bind_error(config.admin.to_string()))?;

    let shutdown = CancellationToken::new();
    let authority = Authority::new();
    let parts = Parts {
        worlds: Worlds::new(mesh),
        registry: Registry::new(metrics.clone()),
        tokens: JoinTokens::new(store.clone()),
        ledger: Ledger::new(store),
        health: Health {
            authority: authority.clone(),
            shutdown: shutdown.clone(),
        },
        authority: authority.clone(),
        metrics,
        tasks: TaskTracker::new(),
        shutdown: shutdown.clone(),
        drain_timeout: config.drain_timeout,
        admin_socket: config.admin_socket.clone(),
        state_dir: config.state_dir,
        issuer,
        _lock: lock,
    };
    tracing::info!(
        listen = %listen,
        admin = %admin_address,
        admin_socket = %config.admin_socket.display(),
        config = %config.config.display(),
        version = env!("CARGO_PKG_VERSION"),
        "control_plane.started"
    );
    let listeners = Listeners {
        listener,
        health_listener,
        admin_listener,
    };
    let main = tokio::spawn(parts.serve(files, listeners));
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
    health_listener: TcpListener,
    admin_listener: tokio::net::UnixListener,
}

struct Parts {
    worlds: Worlds,
    registry: Registry,
    tokens: JoinTokens,
    ledger: Ledger,
    authority: Authority,
    health: Health,
    metrics: Metrics,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    drain_timeout: Duration,
    admin_socket: PathBuf,
    state_dir: PathBuf,
    issuer: (CertificateIssuer, Arc<CertIssuer>),
    /// Held as long as we run.
    _lock: File,
}

impl Parts {
    async fn serve(self, files: Files, listeners: Listeners) -> Result<(), RunError> {
        let exporter = Exporter::from_environment();
        let admin = Admin {
            worlds: self.worlds.clone(),
            authority: self.authority.clone(),
            registry: self.registry.clone(),
            tokens: self.tokens.clone(),
            ledger: self.ledger.clone(),
            health: self.health.clone(),
            source: files.status(),
        };
        let keeper = Keeper {
            authority: self.authority.clone(),
            worlds: self.worlds.clone(),
            ledger: self.ledger.clone(),
            metrics: self.metrics.clone(),
            state_dir: self.state_dir.clone(),
            issuer: Some(self.issuer.clone()),
        };
        let shutdown = || self.shutdown.clone();
        self.tasks
            .spawn(files.follow(self.worlds.clone(), shutdown()));
        self.tasks.spawn(keeper.run(shutdown()));
        let health = health::serve(
            listeners.health_listener,
            self.health.clone(),
            self.metrics.clone(),
            shutdown(),
        );
        let mut health = tokio::spawn(health);
        let mut admin = tokio::spawn(admin::serve(listeners.admin_listener, admin, shutdown()));
        let mut proxies = tokio::spawn(self.grpc(listeners.listener));
        // The first that ends before it was told to ends all.
        let ended: Result<(), RunError> = tokio::select! {
            ended = &mut health => flat(ended),
            ended = &mut admin => flat(ended),
            ended = &mut proxies => flat(ended),
            () = self.shutdown.cancelled() => Ok(()),
        };
        tracing::info!("control_plane.draining");
        self.shutdown.cancel();
        self.tasks.close();
        let rest = async {
            self.tasks.wait().await;
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
            worlds: self.worlds.clone(),
            registry: self.registry.clone(),
            metrics: self.metrics.clone(),
            tasks: self.tasks.clone(),
            shutdown: self.shutdown.clone(),
        };
        let (by_address, by_identity) = issue::rates();
        let issue = Issue {
            worlds: self.worlds.clone(),
            authority: self.authority.clone(),
            tokens: self.tokens.clone(),
            ledger: self.ledger.clone(),
            registry: self.registry.clone(),
            metrics: self.metrics.clone(),
            by_address,
            by_identity,
        };
        let inspect = Inspect {
            registry: self.registry.clone(),
            metrics: self.metrics.clone(),
            tasks: self.tasks.clone(),
            shutdown: self.shutdown.clone(),
        };
        let authority = self.authority.clone();
        serve::serve(
            listener,
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

/// A handle that was awaited to its end must not be awaited again.
async fn finished<T>(task: JoinHandle<T>) {
    if !task.is_finished() {
        let _ = task.await;
    }
}

/// The error with its causes, which its own words leave out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn take_state_dir(path: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::StateDir {
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    // It holds a signing key, and the hashes of secrets; also where it was there before.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    let lock = File::create(path.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StartError::StateDirTaken(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}
