//! The task of one issuer: fetch, publish, wait, repeat.

use std::{sync::Arc, time::Duration};

use merlon_config::{causes::chain, clock::Moment, snapshot::Version};
use merlon_net::backoff::Backoff;
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, Instant},
};

use super::{budget::Budget, document, source::IssuerSource};
use crate::{
    limits::Limits,
    state::jwks_cache::{JwksCache, Question},
    telemetry::metrics::{FetchResult, Metrics},
};

/// The longest time between two fetches, for any `max-age` of the issuer.
const MAX_REFRESH: Duration = Duration::from_secs(24 * 3_600);

pub(super) async fn follow(
    source: IssuerSource,
    cache: JwksCache,
    mut questions: mpsc::Receiver<Question>,
    metrics: Arc<Metrics>,
    limits: Limits,
) {
    let mut known: Option<(Version, Moment)> = None;
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let mut budget = Budget::new(&limits);
    let mut waiting: Vec<oneshot::Sender<()>> = Vec::new();
    loop {
        let next = match document::fetch(&source, &limits).await {
            Ok(keys) => {
                metrics.jwks.inc(FetchResult::Ok);
                backoff.reset();
                let changed = known
                    .as_ref()
                    .is_none_or(|(digest, _)| *digest != keys.digest);
                if changed {
                    tracing::info!(
                        issuer = source.issuer,
                        keys = keys.set.len(),
                        "jwks.fetched"
                    );
                    cache.publish(&source.issuer, Some(keys.set));
                }
                known = Some((keys.digest, Moment::now()));
                let asked = keys.max_age.unwrap_or_default();
                asked.max(limits.jwks_refresh).min(MAX_REFRESH)
            }
            Err(error) => {
                metrics.jwks.inc(FetchResult::Failed);
                tracing::warn!(
                    issuer = source.issuer,
                    error = chain(&error),
                    "jwks.fetch_failed"
                );
                if known
                    .as_ref()
                    .is_some_and(|(_, at)| at.age() >= limits.jwks_last_good)
                {
                    known = None;
                    cache.publish(&source.issuer, None);
                }
                // Without keys, every request with a token of this issuer is refused, so retry sooner.
                if known.is_some() {
                    limits.jwks_retry
                } else {
                    backoff.next_wait()
                }
            }
        };
        // Waiting requests check the keys again, whatever the result.
        waiting.clear();
        let tried = Moment::now();
        loop {
            let left = next.saturating_sub(tried.age());
            if left.is_zero() {
                break;
            }
            tokio::select! {
                () = time::sleep(left.min(limits.clock_check)) => {}
                Some(question) = questions.recv() => {
                    // Otherwise the request is decided with the current keys.
                    if budget.take(&question.kid, Instant::now()) {
                        waiting.push(question.done);
                        break;
                    }
                }
            }
        }
        // All queued requests share one fetch.
        while let Ok(question) = questions.try_recv() {
            waiting.push(question.done);
        }
    }
}
