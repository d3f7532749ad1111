//! Tests against servers that misbehave in ways that a real one cannot be configured to.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use merlon_config::{causes::chain, live::Live};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{
    limits::Limits,
    tests::harness::{run, until},
};

/// A key set with one key of this `kid`.
fn keys(kid: &str) -> String {
    // RFC 7515 appendix A.3.
    format!(
        r#"{{"keys":[{{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"{kid}",
        "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}}]}}"#
    )
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A server on loopback with configured responses; `{origin}` in them is replaced by its own origin.
struct Server {
    origin: String,
    responses: Arc<Mutex<HashMap<&'static str, String>>>,
    fetched: Arc<AtomicUsize>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let this = Self {
            origin: origin.clone(),
            responses: Arc::default(),
            fetched: Arc::default(),
        };
        let (responses, fetched) = (Arc::clone(&this.responses), Arc::clone(&this.fetched));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (responses, fetched, origin) =
                    (Arc::clone(&responses), Arc::clone(&fetched), origin.clone());
                tokio::spawn(async move {
                    let mut head = vec![0; 4_096];
                    let read = stream.read(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..read]).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or("/");
                    if path == "/jwks" {
                        fetched.fetch_add(1, Ordering::SeqCst);
                    }
                    let responses = responses
                        .lock()
                        .unwrap()
                        .get(path)
                        .map(|text| text.replace("{origin}", &origin));
                    match responses.as_deref() {
                        // Never responds.
                        Some("hang") => std::future::pending().await,
                        Some("flood") => {
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                            while stream.write_all(&[b' '; 65_536]).await.is_ok() {}
                        }
                        Some(text) => drop(stream.write_all(text.as_bytes()).await),
                        None => drop(
                            stream
                                .write_all(answer("404 Not Found", "").as_bytes())
                                .await,
                        ),
                    }
                });
            }
        });
        this.discovers("{origin}", "{origin}/jwks");
        this
    }

    fn respond(&self, path: &'static str, text: &str) {
        self.responses.lock().unwrap().insert(path, text.to_owned());
    }

    fn discovers(&self, issuer: &str, jwks_uri: &str) {
        let body = format!(r#"{{"issuer":"{issuer}","jwks_uri":"{jwks_uri}"}}"#)
            .replace("{origin}", &self.origin);
        self.respond(
            "/.well-known/openid-configuration",
            &answer("200 OK", &body),
        );
    }

    fn source(&self) -> IssuerSource {
        IssuerSource {
            issuer: self.origin.clone(),
            jwks_uri: None,
            ca_certificates: None,
        }
    }

    async fn fetch(&self) -> Result<document::Keys, String> {
        self.fetch_with(Limits::default()).await
    }

    async fn fetch_with(&self, limits: Limits) -> Result<document::Keys, String> {
        document::fetch(&self.source(), &limits)
            .await
            .map_err(|error| chain(&error))
    }
}

#[test]
fn keys_are_found_by_discovery() {
    run(async {
        let server = Server::start().await;
        server.respond("/jwks", &answer("200 OK", &keys("a")));
        assert!(server.fetch().await.unwrap().set.has_key("a"));
    });
}

#[test]
fn a_document_of_another_issuer_is_refused() {
    run(async {
        let server = Server::start().await;
        server.discovers("https://issuer.test", "{origin}/jwks");
        assert!(
            server
                .fetch()
                .await
                .unwrap_err()
                .contains("names the issuer `https://issuer.test`")
        );
    });
}

#[test]
fn a_local_issuer_cannot_refer_to_another_host() {
    run(async {
        let server = Server::start().await;
        server.discovers("{origin}", "http://169.254.169.254/jwks");
        assert!(server.fetch().await.unwrap_err().contains("is not allowed"));
    });
}

#[test]
fn a_redirect_off_the_host_is_not_followed_and_one_within_it_is() {
    run(async {
        let (server, other) = (Server::start().await, Server::start().await);
        other.respond("/jwks", &answer("200 OK", &keys("theirs")));
        server.respond(
            "/jwks",
            &format!(
                "HTTP/1.1 302 Found\r\nlocation: {}/jwks\r\ncontent-length: 0\r\n\r\n",
                other.origin
            ),
        );
        assert!(
            server
                .fetch()
                .await
                .unwrap_err()
                .contains("redirected to another host")
        );
        assert_eq!(other.fetched.load(Ordering::SeqCst), 0);

        server.respond(
        "/jwks",
        "HTTP/1.1 302 Found\r\nlocation: /moved\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    );
        server.respond("/moved", &answer("200 OK", &keys("a")));
        assert!(server.fetch().await.unwrap().set.has_key("a"));
    });
}

#[test]
fn an_endless_response_is_cut_off() {
    run(async {
        let server = Server::start().await;
        server.respond("/jwks", "flood");
        assert!(
            server
                .fetch()
                .await
                .unwrap_err()
                .contains("more than 1 MiB")
        );
    });
}

#[test]
fn html_and_errors_are_rejected() {
    run(async {
        let server = Server::start().await;
        server.respond("/jwks", &answer("200 OK", "<html>maintenance</html>"));
        let error = server.fetch().await.unwrap_err();
        assert!(error.contains("the key set is not valid"), "{error}");
        server.respond("/jwks", &answer("500 Internal Server Error", &keys("a")));
        assert!(
            server
                .fetch()
                .await
                .unwrap_err()
                .contains("responded with 500")
        );
    });
}

#[test]
fn a_server_that_never_responds_times_out() {
    run(async {
        let server = Server::start().await;
        server.respond("/jwks", "hang");
        let limits = Limits {
            jwks_timeout: Duration::from_millis(50),
            ..Limits::default()
        };
        let fetched = server.fetch_with(limits);
        let error = fetched.await.unwrap_err();
        assert!(error.contains("did not respond"), "{error}");
    });
}

/// A cache that follows this server.
fn fetching(server: &Server) -> (JwksCache, Arc<Metrics>, tokio::task::JoinHandle<()>) {
    fetching_from(&[server], Limits::default())
}

/// A cache that follows these servers.
fn fetching_from(
    servers: &[&Server],
    limits: Limits,
) -> (JwksCache, Arc<Metrics>, tokio::task::JoinHandle<()>) {
    let (cache, refetches) = JwksCache::new(&limits);
    let metrics = Arc::new(Metrics::default());
    let mut fetcher = Fetcher::new(cache.clone(), refetches, Arc::clone(&metrics), limits);
    let issuers = servers.iter();
    fetcher.follow(
        issuers
            .map(|server| (server.origin.clone(), server.source()))
            .collect(),
    );
    let task = tokio::spawn(async move {
        // `run` would drop the issuer without a snapshot, so the test forwards the requests only.
        while let Some(refetch) = fetcher.refetches.recv().await {
            fetcher.forward(refetch);
        }
    });
    (cache, metrics, task)
}

#[test]
fn many_requests_for_an_unknown_key_share_one_fetch() {
    run(async {
        let server = Server::start().await;
        server.respond("/jwks", &answer("200 OK", &keys("old")));
        let (cache, _, _task) = fetching(&server);
        until("the first fetch", || cache.get(&server.origin).is_some()).await;
        let generation = cache.generation();

        server.respond("/jwks", &answer("200 OK", &keys("new")));
        let asking = (0..50).map(|_| cache.refetch(&server.origin, "new"));
        futures_util::future::join_all(asking).await;

        let found = cache.get(&server.origin).unwrap();
        assert!(
            found.has_key("new") && !found.has_key("old"),
            "a removed key is dropped"
        );
        assert!(cache.generation() > generation);
        assert_eq!(server.fetched.load(Ordering::SeqCst), 2);
        cache.refetch(&server.origin, "other").await;
        assert_eq!(
            server.fetched.load(Ordering::SeqCst),
            2,
            "within 5 seconds there is no other fetch"
        );
    });
}

#[test]
fn the_last_good_keys_stay_while_the_issuer_fails() {
    run(async {
        let server = Server::start().await;
        server.respond("/jwks", &answer("200 OK", &keys("a")));
        let (cache, metrics, _task) = fetching(&server);
        until("the first fetch", || cache.get(&server.origin).is_some()).await;
        let generation = cache.generation();
        server.respond("/jwks", &answer("500 Internal Server Error", ""));
        cache.refetch(&server.origin, "b").await;
        assert_eq!(
            metrics
                .jwks
                .value(crate::telemetry::metrics::FetchResult::Failed),
            1
        );
        assert!(cache.get(&server.origin).unwrap().has_key("a"));
        assert_eq!(cache.generation(), generation);
    });
}

#[test]
fn the_last_good_keys_are_dropped_only_when_no_fetch_succeeds_for_the_given_time() {
    run(async {
        let often = Limits {
            jwks_retry: Duration::from_millis(10),
            ..Limits::default()
        };
        let short = Limits {
            jwks_last_good: Duration::from_millis(50),
            ..often
        };
        for limits in [often, short] {
            let server = Server::start().await;
            server.respond("/jwks", &answer("200 OK", &keys("a")));
            let (cache, metrics, _task) = fetching_from(&[&server], limits);
            until("the first fetch", || cache.get(&server.origin).is_some()).await;
            let generation = cache.generation();
            server.respond("/jwks", &answer("500 Internal Server Error", ""));
            cache.refetch(&server.origin, "b").await;
            if limits == short {
                until("the end of the keys", || {
                    cache.get(&server.origin).is_none()
                })
                .await;
                assert!(
                    cache.generation() > generation,
                    "no verified token stays in a cache"
                );
            } else {
                let failed = || {
                    metrics
                        .jwks
                        .value(crate::telemetry::metrics::FetchResult::Failed)
                };
                until("ten failures", || failed() >= 10).await;
                assert!(cache.get(&server.origin).unwrap().has_key("a"));
            }
        }
    });
}

#[test]
fn an_issuer_that_hangs_delays_no_other() {
    run(async {
        let (hanging, other) = (Server::start().await, Server::start().await);
        hanging.respond("/jwks", "hang");
        other.respond("/jwks", &answer("200 OK", &keys("a")));
        let limits = Limits {
            // Waiting for either would fail the test.
            jwks_timeout: Duration::from_secs(3_600),
            jwks_wait: Duration::from_secs(3_600),
            ..Limits::default()
        };
        let (cache, _, _task) = fetching_from(&[&hanging, &other], limits);
        until("the hanging fetch", || {
            hanging.fetched.load(Ordering::SeqCst) == 1
        })
        .await;
        until("the other fetch", || cache.get(&other.origin).is_some()).await;
        other.respond("/jwks", &answer("200 OK", &keys("b")));
        let refetched = cache.refetch(&other.origin, "b");
        refetched.await;
        assert!(cache.get(&other.origin).unwrap().has_key("b"));
        assert!(cache.get(&hanging.origin).is_none());
    });
}

#[test]
fn a_failed_first_fetch_is_retried_within_seconds() {
    run(async {
        let server = Server::start().await;
        let (cache, _, _task) = fetching(&server);
        until("the first failure", || {
            server.fetched.load(Ordering::SeqCst) > 0
        })
        .await;
        server.respond("/jwks", &answer("200 OK", &keys("a")));
        until("the second fetch", || cache.get(&server.origin).is_some()).await;
    });
}

#[test]
fn an_issuer_that_no_service_uses_any_more_is_removed() {
    run(async {
        let server = Server::start().await;
        server.respond("/jwks", &answer("200 OK", &keys("a")));
        let (cache, refetches) = JwksCache::new(&Limits::default());
        let mut fetcher = Fetcher::new(cache.clone(), refetches, Arc::default(), Limits::default());
        fetcher.follow([(server.origin.clone(), server.source())].into());
        until("the first fetch", || cache.get(&server.origin).is_some()).await;
        let nothing = tokio::spawn(fetcher.run(Live::new(None)));
        until("the removal", || cache.get(&server.origin).is_none()).await;
        nothing.abort();
    });
}
