//! Fetching what a stranger's server says: bounded in size, time and place.

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

/// For connecting, asking and reading together.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer.
const LIMIT: usize = 1 << 20;

/// Redirects that are followed, all on one host.
const REDIRECTS: usize = 3;

/// Why an address did not give what was asked of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("`{0}` is not fetched from: {1}")]
    Place(Url, &'static str),
    #[error("the issuer's `caCertificates` are not PEM certificates")]
    Roots(#[source] reqwest::Error),
    #[error("`{url}` did not answer")]
    Request {
        url: Url,
        #[source]
        source: reqwest::Error,
    },
    #[error("`{url}` answered {status}")]
    Status { url: Url, status: u16 },
    #[error("`{0}` answered with more than 1 MiB")]
    TooLarge(Url),
}

/// A client for one issuer.
#[derive(Debug)]
pub(super) struct Fetch {
    client: Client,
    /// The issuer itself is on this machine: only then may its documents be.
    loopback: bool,
}

/// What was fetched.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) body: Vec<u8>,
    /// `max-age`, while nothing says `no-store` or `no-cache` (RFC 9111 §5.2.2).
    pub(super) max_age: Option<Duration>,
}

impl Fetch {
    pub(super) fn new(issuer: &Url, roots: Option<&str>) -> Result<Self, FetchError> {
        let loopback = is_loopback(issuer);
        let mut builder = Client::builder()
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::custom(same_host))
            .dns_resolver(Arc::new(Guarded { loopback }))
            // Where it is fetched from is the issuer's URL, not an environment variable's.
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

    /// Names are checked when they are resolved; here stands what needs no resolving.
    fn check_place(&self, url: &Url) -> Result<(), FetchError> {
        let refuse = |why| Err(FetchError::Place(url.clone(), why));
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) => None,
            None => return refuse("it has no host"),
        };
        if address.is_some_and(|address| !may_reach(address, self.loopback)) {
            return refuse(
                "it is an address of this machine or link, and the issuer is not on this machine",
            );
        }
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.loopback && is_loopback(url) => Ok(()),
            _ => refuse("it must be `https`"),
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

/// Loopback, link-local (clouds hand out credentials there) and unspecified addresses are nobody's issuer.
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

/// Resolves names, and drops addresses that must not be reached: also a public name may point inside.
struct Guarded {
    loopback: bool,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let loopback = self.loopback;
        Box::pin(async move {
            // Not from DNS (RFC 6761 §6.3), which could point it elsewhere.
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

fn max_age(headers: &header::HeaderMap) -> Option<Duration> {
    let text = headers.get(header::CACHE_CONTROL)?.to_str().ok()?;
    let mut parts = text.split(',').map(str::trim);
    if parts
        .clone()
        .any(|part| matches!(part, "no-store" | "no-cache"))
    {
        return None;
    }
    let seconds = parts.find_map(|part| part.strip_prefix("max-age="))?;
    seconds
        .trim_matches('"')
        .parse()
        .map(Duration::from_secs)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(issuer: &str, url: &str) -> bool {
        let fetch = Fetch::new(&issuer.parse().unwrap(), None).unwrap();
        fetch.check_place(&url.parse().unwrap()).is_ok()
    }

    #[test]
    fn an_issuer_elsewhere_leads_nobody_to_this_machine() {
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
    fn an_issuer_on_this_machine_has_its_keys_here() {
        assert!(check("http://127.0.0.1:8080", "http://127.0.0.1:8080/jwks"));
        assert!(!check(
            "http://127.0.0.1:8080",
            "http://169.254.169.254/jwks"
        ));
        assert!(!check("http://127.0.0.1:8080", "http://issuer.test/jwks"));
    }

    #[test]
    fn max_age_counts_only_where_storing_is_allowed() {
        let of = |text: &str| {
            let mut headers = header::HeaderMap::new();
            headers.insert(header::CACHE_CONTROL, text.parse().unwrap());
            max_age(&headers)
        };
        assert_eq!(of("public, max-age=600"), Some(Duration::from_secs(600)));
        assert_eq!(of("no-store, max-age=600"), None);
        assert_eq!(of("max-age=never"), None);
    }
}
