//! Resolves the names of external hosts.

use std::{cell::RefCell, net::IpAddr, rc::Rc};

use hickory_resolver::TokioResolver;

use crate::protocol::denial::Upstream;

/// Resolves names with the host's `resolv.conf`, without NSS modules.
#[derive(Default)]
pub(crate) struct Resolver {
    resolver: RefCell<Option<Rc<TokioResolver>>>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    pub(crate) async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, Upstream> {
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(vec![address]);
        }
        let known = self.resolver.borrow().clone();
        let resolver = match known {
            Some(resolver) => resolver,
            None => {
                let built = TokioResolver::builder_tokio().and_then(|builder| builder.build());
                let built = Rc::new(built.map_err(|error| {
                    tracing::warn!(%error, "resolver.unavailable");
                    Upstream::Dns
                })?);
                *self.resolver.borrow_mut() = Some(Rc::clone(&built));
                built
            }
        };
        let found = resolver.lookup_ip(host).await.map_err(|error| {
            tracing::debug!(%error, host, "host.not_resolved");
            Upstream::Dns
        })?;
        Ok(found.iter().collect())
    }
}
