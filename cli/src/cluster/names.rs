//! Name resolution by hickory. The C library is linked statically and would load the machine's name-service modules, which
//! are built for another C library.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll},
    vec,
};

use hickory_resolver::TokioResolver;
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

/// Resolves names with the machine's resolver configuration.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Names;

/// Created for the first name; addresses need no resolver.
static RESOLVER: OnceLock<Option<TokioResolver>> = OnceLock::new();

impl Service<Name> for Names {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let resolver =
                RESOLVER.get_or_init(|| TokioResolver::builder_tokio().ok()?.build().ok());
            let resolver = resolver.as_ref().ok_or_else(|| {
                io::Error::other("the system's resolver configuration cannot be read")
            })?;
            let found = resolver.lookup_ip(name.as_str()).await;
            let found = found.map_err(io::Error::other)?;
            let addresses: Vec<SocketAddr> =
                found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok(addresses.into_iter())
        })
    }
}
