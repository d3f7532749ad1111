//! The ports of a Gateway, opened and closed as its state changes. Listeners that differ in host alone share one.

use std::{
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use merlon_config::snapshot::GatewayState;
use merlon_policy::principal::Principal;
use rustls::ServerConfig;
use tokio::{net::TcpStream, task::JoinHandle};

use super::certificate::{Chooser, Files};
use crate::{
    downstream::{
        connection::{self, Stream},
        listener,
        listeners::{self, Wanted},
    },
    gateway,
    inbound::Peer,
    protocol::tls_session::Session,
    state::Snapshot,
    telemetry::metrics::{Direction, Transport},
    worker::Local,
};

/// One port, with all that its socket needs: while that stays the same, the socket stays, whatever becomes of routes,
/// hosts and pushed certificates.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    port: u16,
    secure: bool,
    files: Vec<Files>,
    /// Of its listeners, for people.
    names: String,
}

impl PartialEq for Port {
    fn eq(&self, other: &Self) -> bool {
        (self.port, self.secure, &self.files) == (other.port, other.secure, &other.files)
    }
}

impl Port {
    /// All ports of a gateway.
    pub(crate) fn all(gateway: &GatewayState) -> Vec<Self> {
        let mut ports: Vec<Self> = Vec::new();
        for listener in &gateway.listeners {
            let name = format!("`{}`", listener.name);
            let known = ports.iter().position(|port| port.port == listener.port);
            if known.is_none() {
                ports.push(Self {
                    port: listener.port,
                    secure: listener.protocol.eq_ignore_ascii_case("HTTPS"),
                    files: Vec::new(),
                    names: String::new(),
                });
            }
            let index = known.unwrap_or(ports.len() - 1);
            let Some(port) = ports.get_mut(index) else {
                continue;
            };
            if !port.names.is_empty() {
                port.names.push_str(", ");
            }
            port.names.push_str(&name);
            if let Some(tls) = &listener.tls
                && let (Some(certificate), Some(key)) = (&tls.certificate_file, &tls.key_file)
            {
                port.files.push(Files {
                    host: listener.hostname.clone(),
                    certificate: certificate.clone(),
                    key: key.clone(),
                });
            }
        }
        ports
    }
}

/// Where the Gateway says.
impl Wanted for Port {
    const KIND: &'static str = "listeners of the gateway";

    fn all(snapshot: &Snapshot) -> &[Self] {
        &snapshot.ports
    }

    fn name(&self) -> String {
        format!("listener {} (port {})", self.names, self.port)
    }

    fn open(&self, local: &Rc<Local>) -> Result<JoinHandle<()>, String> {
        let tls = match self.secure {
            true => {
                let chooser = Chooser::open(self.port, &self.files, &local.shared)?;
                Some((chooser.config()?, chooser))
            }
            false => None,
        };
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port));
        let (socket, part) = listeners::socket(local, address, &self.name())?;
        let local = Rc::clone(local);
        Ok(tokio::task::spawn_local(async move {
            // Dropped in the order of their making turned round: the address is let go of after its socket.
            let (_part, socket) = (part, socket);
            let config = tls.as_ref().map(|(config, _)| Arc::clone(config));
            let serve = |local, stream, address| accept(local, stream, address, config.clone());
            match &tls {
                Some((_, chooser)) => tokio::select! {
                    () = listener::serve(&local, &socket, serve) => {}
                    () = chooser.follow() => {}
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
