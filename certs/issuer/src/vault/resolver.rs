use std::{net::SocketAddr, sync::OnceLock};

use hickory_resolver::TokioResolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Name resolution by hickory. The statically linked C library would load the name-service modules of the host.
#[derive(Debug, Default)]
pub(super) struct Hickory {
    /// Created for the first name; addresses need no resolver.
    resolver: OnceLock<Option<TokioResolver>>,
}

impl Resolve for Hickory {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self
            .resolver
            .get_or_init(|| TokioResolver::builder_tokio().ok()?.build().ok())
            .clone();
        Box::pin(async move {
            let resolver = resolver.ok_or("the system's resolver configuration cannot be read")?;
            let found = resolver.lookup_ip(name.as_str()).await?;
            let addresses: Vec<_> = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            Ok::<Addrs, _>(Box::new(addresses.into_iter()))
        })
    }
}
