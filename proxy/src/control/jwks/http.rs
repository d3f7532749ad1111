//! Fetches documents of servers that are not trusted, with limits for size, time and address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_resolver::TokioResolver;
use merlon_config::loopback::is_loopback;
use reqwest::{
    Certificate, Client,
    dns::{Addrs, Name, Resolve, Resolving},
    header, redirect,
};
use url::{Host, Url};

use crate::limits::Limits;

/// Maximum size of a response.
const LIMIT: usize = 1 << 20;

/// Maximum number of redirects, all on the same host.
const REDIRECTS: usize = 3;

/// Why a document could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("`{0}` is not allowed: {1}")]
    Place(Url, &'static str),
    #[error("the issuer's `caCertificates` are not PEM certificates")]
    Roots(#[source] reqwest::Error),
    #[error("`{url}` did not respond")]
    Request {
        url: Url,
        #[source]
        source: reqwest::Error,
    },
    #[error("`{url}` responded with {status}")]
    Status { url: Url, status: u16 },
    #[error("`{0}` responded with more than 1 MiB")]
    TooLarge(Url),
}

/// A client for one issuer.
#[derive(Debug)]
pub(crate) struct Fetch {
    client: Client,
    /// Whether the issuer is on this machine; only then may its documents be.
    loopback: bool,
}

/// A fetched document.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) body: Vec<u8>,
    /// `max-age`, unless `no-store` or `no-cache` is set (RFC 9111 §5.2.2).
    pub(super) max_age: Option<Duration>,
}

impl Fetch {
    pub(crate) fn new(
        issuer: &Url,
        roots: Option<&str>,
        limits: &Limits,
    ) -> Result<Self, FetchError> {
        let loopback = is_loopback(issuer);
        let mut builder = Client::builder()
            .timeout(limits.jwks_timeout)
            .redirect(redirect::Policy::custom(same_host))
            .dns_resolver(Arc::new(Guarded { loopback }))
            // No proxy of the environment: the issuer's URL decides what is contacted.
            .no_proxy()
            .pool_max_idle_per_host(0)
            .user_agent(concat!("merlon-proxy/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = roots {
            let roots = Certificate::from_pem_bundle(pem.as_bytes()).map_err(FetchError::Roots)?;
            builder = builder.tls_certs_only(roots);
        }
        let client = builder.build().map_err(FetchError::Roots)?;
        Ok(Self { client, loopback })
    }

    pub(super) async fn get(&self, url: &Url) -> Result<Fetched, FetchError> {
        self.check_place(url)?;
        let failed = |source: reqwest::Error| FetchError::Request {
            url: url.clone(),
            source: source.without_url(),
        };
        let request = self
            .client
            .get(url.clone())
            .header(header::ACCEPT, "application/json");
        let mut answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        if !status.is_success() {
            return Err(FetchError::Status {
                url: url.clone(),
                status: status.as_u16(),
            });
        }
        let max_age = max_age(answer.headers());
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(failed)? {
            if body.len() + part.len() > LIMIT {
                return Err(FetchError::TooLarge(url.clone()));
            }
            body.extend_from_slice(&part);
        }
        Ok(Fetched { body, max_age })
    }

    /// Checks everything but host names, which are checked when they are resolved.
    pub(crate) fn check_place(&self, url: &Url) -> Result<(), FetchError> {
        let refuse = |why| Err(FetchError::Place(url.clone(), why));
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) => None,
            None => return refuse("the URL has no host"),
        };
        if address.is_some_and(|address| !may_reach(address, self.loopback)) {
            return refuse(
                "the address is local to this machine or link, and the issuer is not on this machine",
            );
        }
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.loopback && is_loopback(url) => Ok(()),
            _ => refuse("the scheme must be `https`"),
        }
    }
}

fn same_host(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let origin = |url: &Url| url.origin();
    let first = attempt.previous().first().map(origin);
    if attempt.previous().len() > REDIRECTS {
        attempt.error("too many redirects")
    } else if first != Some(origin(attempt.url())) {
        attempt.error("redirected to another host")
    } else {
        attempt.follow()
    }
}

/// Whether an issuer may be at this address: loopback only if the issuer is on this machine, and never a link-local
/// (clouds serve credentials there) or unspecified address.
fn may_reach(address: IpAddr, loopback: bool) -> bool {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !link_local
        && !address.is_unspecified()
        && !address.is_multicast()
        && (loopback || !address.is_loopback())
}

/// Resolves names and drops addresses that are not allowed, since a public name may resolve to an internal address.
struct Guarded {
    loopback: bool,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let loopback = self.loopback;
        Box::pin(async move {
            // `localhost` is not resolved by DNS (RFC 6761 §6.3), which could return another address.
            if name.as_str() == "localhost" {
                let addresses = [SocketAddr::from(([127, 0, 0, 1], 0))];
                return Ok::<Addrs, _>(Box::new(addresses.into_iter().filter(move |_| loopback)));
            }
            let resolver = TokioResolver::builder_tokio()?.build()?;
            let found = resolver.lookup_ip(name.as_str()).await?;
            let allowed: Vec<SocketAddr> = found
                .iter()
                .filter(|address| may_reach(*address, loopback))
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Names of directives are case-insensitive, and several fields are one list (RFC 9111 §5.2).
pub(crate) fn max_age(headers: &header::HeaderMap) -> Option<Duration> {
    let mut seconds = None;
    for value in headers.get_all(header::CACHE_CONTROL) {
        let text = value.to_str().ok()?.to_ascii_lowercase();
        for directive in text.split(',').map(str::trim) {
            if matches!(directive, "no-store" | "no-cache") {
                return None;
            }
            if let (None, Some(age)) = (seconds, directive.strip_prefix("max-age=")) {
                seconds = Some(age.trim_matches('"').parse().ok()?);
            }
        }
    }
    seconds.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(issuer: &str, url: &str) -> bool {
        let fetch = Fetch::new(&issuer.parse().unwrap(), None, &Limits::default()).unwrap();
        fetch.check_place(&url.parse().unwrap()).is_ok()
    }

    #[test]
    fn documents_of_a_remote_issuer_are_not_fetched_from_this_machine() {
        for url in [
            "http://issuer.test/keys",
            "https://127.0.0.1/keys",
            "https://[::1]/keys",
            "https://[::ffff:127.0.0.1]/keys",
            "https://169.254.169.254/latest",
            "https://0.0.0.0/keys",
            "file:///etc/passwd",
        ] {
            assert!(!check("https://issuer.test", url), "{url}");
        }
        assert!(check("https://issuer.test", "https://keys.test/keys"));
    }

    #[test]
    fn documents_of_a_local_issuer_are_fetched_from_this_machine_only() {
        assert!(check("http://127.0.0.1:8080", "http://127.0.0.1:8080/jwks"));
        assert!(!check(
            "http://127.0.0.1:8080",
            "http://169.254.169.254/jwks"
        ));
        assert!(!check("http://127.0.0.1:8080", "http://issuer.test/jwks"));
    }

    #[test]
    fn max_age_counts_only_if_storing_is_allowed() {
        let of = |fields: &[&str]| {
            let mut headers = header::HeaderMap::new();
            for field in fields {
                headers.append(header::CACHE_CONTROL, field.parse().unwrap());
            }
            max_age(&headers)
        };
        let ten_minutes = Some(Duration::from_secs(600));
        assert_eq!(of(&["public, max-age=600"]), ten_minutes);
        assert_eq!(of(&["public", "Max-Age=600"]), ten_minutes);
        for none in [
            &["no-store, max-age=600"][..],
            &["No-Store, max-age=600"],
            &["max-age=600", "no-cache"],
            &["max-age=never"],
        ] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
