//! The ports of a Gateway, opened and closed as its state changes. Listeners that differ only in the host share a port.

use std::{
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use merlon_policy::principal::Principal;
use rustls::ServerConfig;
use tokio::{net::TcpStream, task::JoinHandle};

use super::certificate::CertificateResolver;
use crate::{
    downstream::{
        connection::{self, PrefixedStream},
        listener,
        listeners::{self, Wanted},
        peer::Peer,
    },
    gateway,
    protocol::tls_session::TlsSession,
    request::worker_context::WorkerContext,
    state::{gateway_ports::Port, snapshot::Snapshot},
    telemetry::metrics::{Direction, Transport},
};

/// The ports of the Gateway.
impl Wanted for Port {
    const KIND: &'static str = "listeners of the gateway";

    fn all(snapshot: &Snapshot) -> &[Self] {
        &snapshot.ports
    }

    fn name(&self) -> String {
        format!("listener {} (port {})", self.names, self.port)
    }

    fn open(&self, local: &Rc<WorkerContext>) -> Result<JoinHandle<()>, String> {
        let tls = match self.secure {
            true => {
                let resolver = CertificateResolver::open(self.port, &self.files, &local.shared)?;
                Some((resolver.config()?, resolver))
            }
            false => None,
        };
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port));
        let (socket, part) = listeners::socket(local, address, &self.name())?;
        let local = Rc::clone(local);
        Ok(tokio::task::spawn_local(async move {
            // Dropped in reverse order of declaration: the address is released after its socket is closed.
            let (_part, socket) = (part, socket);
            let config = tls.as_ref().map(|(config, _)| Arc::clone(config));
            let serve = |local, stream, address| accept(local, stream, address, config.clone());
            match &tls {
                Some((_, resolver)) => tokio::select! {
                    () = listener::serve(&local, &socket, serve) => {}
                    () = resolver.watch_files() => {}
                },
                None => listener::serve(&local, &socket, serve).await,
            }
        }))
    }
}

async fn accept(
    local: Rc<WorkerContext>,
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
) {
    let mut peer = Peer::new(&local, Direction::Gateway, address, Principal::Anonymous);
    peer.own_port = stream.local_addr().ok().map(|own| own.port());
    let Some(config) = tls else {
        return connection::serve_plain(&local, stream, Rc::new(peer), gateway::serve).await;
    };
    let Some(stream) = connection::handshake(&local, Direction::Gateway, config, stream).await
    else {
        return;
    };
    let session = stream.get_ref().1;
    let h2 = session.alpn_protocol() == Some(b"h2");
    peer.session = Some(Rc::new(TlsSession::from_connection(session, Vec::new())));
    peer.server_name = session
        .server_name()
        .map(|name| name.to_ascii_lowercase().into());
    let (peer, stream) = (Rc::new(peer), PrefixedStream::new(stream));
    if h2 {
        connection::serve_h2(&local, stream, Transport::Tls, peer, gateway::serve).await;
    } else {
        connection::serve_http1(&local, stream, Transport::Tls, peer, gateway::serve).await;
    }
}
