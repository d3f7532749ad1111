//! The listeners of a Gateway, opened and closed as its state changes; certificates are read again when they change.

use std::{
    cell::RefCell,
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
    inbound::Peer,
    listener::{
        self,
        keep::{self, Wanted},
    },
    metrics::{Direction, Transport},
    session::Session,
    state::Snapshot,
    worker::Local,
};

/// How often certificate files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Where the Gateway says.
impl Wanted for GatewayListener {
    const KIND: &'static str = "listeners of the gateway";

    fn all(snapshot: &Snapshot) -> &[Self] {
        let gateway = snapshot.workload.gateway.as_ref();
        gateway.map_or(&[], |gateway| &gateway.listeners)
    }

    fn name(&self) -> String {
        format!("listener `{}` (port {})", self.name, self.port)
    }

    fn open(&self, local: &Rc<Local>) -> Result<JoinHandle<()>, String> {
        let tls = match &self.tls {
            Some(files) => Some(Rc::new(Certificate::read(files)?)),
            None if self.protocol.eq_ignore_ascii_case("HTTPS") => {
                return Err("it has no certificate; give it `tls`".to_owned());
            }
            None => None,
        };
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port));
        let (socket, part) = keep::socket(local, address, &self.name())?;
        let host: Option<Rc<str>> = self.hostname.as_deref().map(Rc::from);
        let local = Rc::clone(local);
        Ok(tokio::task::spawn_local(async move {
            // Dropped in the order of their making turned round: the address is let go of after its socket.
            let (_part, socket) = (part, socket);
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
