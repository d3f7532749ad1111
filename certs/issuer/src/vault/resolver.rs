use std::{net::SocketAddr, sync::OnceLock};

use hickory_resolver::TokioResolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Names by hickory: the statically linked C library would load the host's name-service modules.
#[derive(Debug, Default)]
pub(super) struct Hickory {
    /// Made at the first name, since an address needs none.
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
