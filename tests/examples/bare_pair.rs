//! Two proxies that only forward requests over mutual TLS: the baseline of `make bench`. They have no checks and no limits,
//! and an error closes the connection, so they are not for production.
//!
//! `bare_pair out|in DIR LISTEN TO` where DIR contains `ca.pem`, `client.pem`, `client.key`, `server.pem`, `server.key`.

use std::{
    cell::RefCell, collections::VecDeque, error::Error, future::Future, net::SocketAddr,
    path::Path, rc::Rc, sync::Arc,
};

use http::{HeaderValue, Uri, header, uri};
use hyper::{Request, Response, body::Incoming, client, server, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

type BoxError = Box<dyn Error + Send + Sync>;

/// Spawns tasks on the only thread.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        drop(spawn_local(future));
    }
}

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, dir, listen, to] = arguments.as_slice() else {
        return Err("usage: bare_pair out|in DIR LISTEN TO".into());
    };
    let (dir, listen, to) = (Path::new(dir), listen.parse()?, to.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    match role.as_str() {
        "out" => local.block_on(&runtime, outbound(dir, listen, to)),
        "in" => local.block_on(&runtime, inbound(dir, listen, to)),
        other => Err(format!("`{other}` is neither `out` nor `in`").into()),
    }
}

fn identity(
    dir: &Path,
    name: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), BoxError> {
    let chain = CertificateDer::pem_file_iter(dir.join(format!("{name}.pem")))?
        .collect::<Result<_, _>>()?;
    Ok((
        chain,
        PrivateKeyDer::from_pem_file(dir.join(format!("{name}.key")))?,
    ))
}

fn roots(dir: &Path) -> Result<Arc<RootCertStore>, BoxError> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(dir.join("ca.pem"))? {
        roots.add(root?)?;
    }
    Ok(Arc::new(roots))
}

async fn outbound(dir: &Path, listen: SocketAddr, to: SocketAddr) -> Result<(), BoxError> {
    let (chain, key) = identity(dir, "client")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(dir)?)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let listener = TcpListener::bind(listen).await?;
    let mut shared: Option<client::conn::http2::SendRequest<Incoming>> = None;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        if shared.is_none() {
            let upstream = TcpStream::connect(to).await?;
            upstream.set_nodelay(true)?;
            let tls = connector
                .connect(ServerName::try_from("server")?, upstream)
                .await?;
            let (sender, connection) = client::conn::http2::Builder::new(Local)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(1 << 24)
                .handshake(TokioIo::new(tls))
                .await?;
            spawn_local(async move { drop(connection.await) });
            shared = Some(sender);
        }
        let Some(sender) = shared.clone() else {
            continue;
        };
        spawn_local(async move {
            let pass = service_fn(move |request| forward_http2(sender.clone(), request));
            let served = server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(None)
                .serve_connection(TokioIo::new(stream), pass);
            drop(served.await);
        });
    }
}

async fn forward_http2(
    mut sender: client::conn::http2::SendRequest<Incoming>,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, BoxError> {
    let (mut parts, body) = request.into_parts();
    let host = parts
        .headers
        .remove(header::HOST)
        .ok_or("a request without host")?;
    parts.headers.remove(header::CONNECTION);
    let mut target = uri::Parts::from(parts.uri);
    target.scheme = Some(uri::Scheme::HTTPS);
    target.authority = Some(uri::Authority::try_from(host.as_bytes())?);
    parts.uri = Uri::from_parts(target)?;
    parts.version = http::Version::HTTP_2;
    Ok(sender
        .send_request(Request::from_parts(parts, body))
        .await?)
}

type Idle = Rc<RefCell<VecDeque<client::conn::http1::SendRequest<Incoming>>>>;

async fn inbound(dir: &Path, listen: SocketAddr, to: SocketAddr) -> Result<(), BoxError> {
    let (chain, key) = identity(dir, "server")?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(dir)?, Arc::clone(&provider)).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let idle = Idle::default();
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, idle) = (acceptor.clone(), Rc::clone(&idle));
        spawn_local(async move {
            let Ok(tls) = acceptor.accept(stream).await else {
                return;
            };
            let pass = service_fn(move |request| forward_http1(Rc::clone(&idle), to, request));
            let served = server::conn::http2::Builder::new(Local)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(1 << 24)
                .max_concurrent_streams(1_000)
                .serve_connection(TokioIo::new(tls), pass);
            drop(served.await);
        });
    }
}

async fn forward_http1(
    idle: Idle,
    to: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, BoxError> {
    let (mut parts, body) = request.into_parts();
    if let Some(authority) = parts.uri.authority() {
        parts
            .headers
            .insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
    }
    parts.uri = parts
        .uri
        .path_and_query()
        .ok_or("a request without path")?
        .as_str()
        .parse()?;
    parts.version = http::Version::HTTP_11;
    let reused = {
        let mut idle = idle.borrow_mut();
        let ready = idle
            .iter()
            .position(client::conn::http1::SendRequest::is_ready);
        let reused = ready.and_then(|at| idle.remove(at));
        idle.retain(|sender| !sender.is_closed());
        reused
    };
    let mut sender = match reused {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
            spawn_local(async move { drop(connection.await) });
            sender
        }
    };
    let answer = sender
        .send_request(Request::from_parts(parts, body))
        .await?;
    idle.borrow_mut().push_back(sender);
    Ok(answer)
}
