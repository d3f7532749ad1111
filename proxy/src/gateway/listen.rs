//! The listeners of a Gateway, opened and closed as its state changes; certificates are read again when they change.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use merlon_config::resource::{GatewayListener, ListenerTls};
use merlon_policy::principal::Principal;
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{net::TcpStream, task::JoinHandle};

use crate::{
    connection::{self, Stream},
    gateway,
    health::Unready,
    inbound::Peer,
    listener,
    metrics::{Direction, Transport},
    session::Session,
    worker::Local,
};

/// How often certificate files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Listens where the Gateway says, and follows when the snapshot changes it.
pub(crate) async fn listeners(local: Rc<Local>) {
    let mut changes = local.shared.snapshot.watch();
    let mut open: HashMap<String, JoinHandle<()>> = HashMap::new();
    loop {
        let current = local.current();
        let gateway = current
            .snapshot()
            .and_then(|snapshot| snapshot.workload.gateway.as_ref());
        let wanted = gateway
            .map(|gateway| gateway.listeners.as_slice())
            .unwrap_or_default();
        // A listener is the same as long as all that it says is the same.
        let wanted: HashMap<String, &GatewayListener> = wanted
            .iter()
            .map(|listener| (format!("{listener:?}"), listener))
            .collect();
        open.retain(|key, task| {
            let keep = wanted.contains_key(key) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        tokio::task::yield_now().await;
        let mut failed = Vec::new();
        for (key, listener) in wanted {
            if open.contains_key(&key) {
                continue;
            }
            match begin(&local, listener) {
                Ok(task) => {
                    open.insert(key, task);
                }
                Err(problem) => failed.push(format!("listener `{}`: {problem}", listener.name)),
            }
        }
        if gateway.is_some() {
            if failed.is_empty() {
                local.shared.health.have(Unready::Listener);
            } else {
                local
                    .shared
                    .health
                    .lack(Unready::Listener, failed.join("; "));
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn begin(local: &Rc<Local>, listener: &GatewayListener) -> Result<JoinHandle<()>, String> {
    let tls = match &listener.tls {
        Some(files) => Some(Rc::new(Certificate::read(files)?)),
        None if listener.protocol.eq_ignore_ascii_case("HTTPS") => {
            return Err("it has no certificate".to_owned());
        }
        None => None,
    };
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, listener.port));
    let socket = listener::bind(address).map_err(|error| format!("{address}: {error}"))?;
    let socket = listener::adopt(socket).ok_or("it cannot be served")?;
    let host: Option<Rc<str>> = listener.hostname.as_deref().map(Rc::from);
    let local = Rc::clone(local);
    Ok(tokio::task::spawn_local(async move {
        let serve =
            |local, stream, address| accept(local, stream, address, tls.clone(), host.clone());
        match &tls {
            Some(certificate) => tokio::select! {
                () = listener::serve(&local, &socket, serve) => {}
                () = certificate.follow() => {}
            },
            None => listener::serve(&local, &socket, serve).await,
        }
    }))
}

async fn accept(
    local: Rc<Local>,
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Rc<Certificate>>,
    host: Option<Rc<str>>,
) {
    let mut peer = Peer::new(&local, Direction::Gateway, address, Principal::Anonymous);
    peer.own_port = stream.local_addr().ok().map(|own| own.port());
    peer.listener_host = host;
    let Some(certificate) = tls else {
        return connection::serve_plain(&local, stream, Rc::new(peer), gateway::serve).await;
    };
    let config = certificate.config.borrow().clone();
    let Some(stream) = connection::handshake(&local, Direction::Gateway, config, stream).await
    else {
        return;
    };
    let session = stream.get_ref().1;
    let h2 = session.alpn_protocol() == Some(b"h2");
    peer.session = Some(Rc::new(Session::of(session, Vec::new())));
    peer.server_name = session
        .server_name()
        .map(|name| name.to_ascii_lowercase().into());
    let (peer, stream) = (Rc::new(peer), Stream::mesh(stream));
    if h2 {
        connection::serve_h2(&local, stream, Transport::Tls, peer, gateway::serve).await;
    } else {
        connection::serve_http1(&local, stream, Transport::Tls, peer, gateway::serve).await;
    }
}

/// A listener's certificate, as its files were when they last made sense.
#[derive(Debug)]
struct Certificate {
    files: ListenerTls,
    config: RefCell<Arc<ServerConfig>>,
}

impl Certificate {
    fn read(files: &ListenerTls) -> Result<Self, String> {
        Ok(Self {
            files: files.clone(),
            config: RefCell::new(load(files)?),
        })
    }

    /// Takes changed files over; broken ones change nothing.
    async fn follow(&self) {
        let mut known = self.changed_at().await;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.changed_at().await;
            if now == known {
                continue;
            }
            known = now;
            match load(&self.files) {
                Ok(config) => *self.config.borrow_mut() = config,
                Err(problem) => tracing::warn!(%problem, "the old certificate stays"),
            }
        }
    }

    async fn changed_at(&self) -> [Option<SystemTime>; 2] {
        let at = async |path: &Path| {
            tokio::fs::metadata(path)
                .await
                .and_then(|file| file.modified())
                .ok()
        };
        [
            at(&self.files.certificate_file).await,
            at(&self.files.key_file).await,
        ]
    }
}

/// TLS 1.2 and 1.3 at the edge; HTTP/2 first.
fn load(files: &ListenerTls) -> Result<Arc<ServerConfig>, String> {
    let name = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(&files.certificate_file)
            .and_then(Iterator::collect)
            .map_err(|error| name(&files.certificate_file, &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key_file)
        .map_err(|error| name(&files.key_file, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| name(&files.certificate_file, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
