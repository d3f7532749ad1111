//! Keys of token issuers: fetched here, read by workers without a lock.

mod budget;
pub(crate) mod document;
pub(crate) mod http;
mod issuer;
mod source;

use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use self::source::IssuerSource;
use crate::{
    limits::Limits,
    state::{
        jwks_cache::{JwksCache, QUEUE, Question, Refetch},
        snapshot::Snapshot,
    },
    telemetry::metrics::Metrics,
};

/// Keeps the cache up to date, with one task per issuer, so that a failing issuer does not affect others.
#[derive(Debug)]
pub(crate) struct Fetcher {
    cache: JwksCache,
    refetches: mpsc::Receiver<Refetch>,
    metrics: Arc<Metrics>,
    limits: Limits,
    running: BTreeMap<String, Running>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Running {
    source: IssuerSource,
    questions: mpsc::Sender<Question>,
    task: AbortHandle,
}

impl Fetcher {
    pub(crate) fn new(
        cache: JwksCache,
        refetches: mpsc::Receiver<Refetch>,
        metrics: Arc<Metrics>,
        limits: Limits,
    ) -> Self {
        Self {
            cache,
            refetches,
            metrics,
            limits,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Follows the issuers of `snapshot` until the process ends.
    pub(crate) async fn run(mut self, snapshot: merlon_config::live::Live<Option<Arc<Snapshot>>>) {
        let mut changed = snapshot.watch();
        loop {
            // Mark as seen before reading: the next iteration picks up a change in between.
            changed.borrow_and_update();
            let issuers = issuers(snapshot.load_full().as_deref());
            self.follow(issuers);
            loop {
                tokio::select! {
                    Ok(()) = changed.changed() => break,
                    Some(refetch) = self.refetches.recv() => self.forward(refetch),
                    // A task ends only when it is aborted; nothing to clean up.
                    Some(_) = self.tasks.join_next() => {}
                    else => return,
                }
            }
        }
    }

    fn follow(&mut self, wanted: BTreeMap<String, IssuerSource>) {
        let gone = |(name, running): (&String, &Running)| {
            (wanted.get(name) != Some(&running.source)).then(|| name.clone())
        };
        let gone: Vec<String> = self.running.iter().filter_map(gone).collect();
        for name in gone {
            if let Some(running) = self.running.remove(&name) {
                running.task.abort();
                self.cache.publish(&name, None);
            }
        }
        for (name, source) in wanted {
            if self.running.contains_key(&name) {
                continue;
            }
            let (questions, queue) = mpsc::channel(QUEUE);
            let follow = issuer::follow(
                source.clone(),
                self.cache.clone(),
                queue,
                Arc::clone(&self.metrics),
                self.limits,
            );
            let task = self.tasks.spawn(follow);
            self.running.insert(
                name,
                Running {
                    source,
                    questions,
                    task,
                },
            );
        }
    }

    fn forward(&self, refetch: Refetch) {
        if let Some(running) = self.running.get(&refetch.issuer) {
            // If the queue is full, the request is decided with the current keys.
            let _ = running.questions.try_send(refetch.question);
        }
    }
}

/// All issuers that services use. If descriptions of an issuer differ, the first one by service name is used.
fn issuers(snapshot: Option<&Snapshot>) -> BTreeMap<String, IssuerSource> {
    let mut wanted = BTreeMap::new();
    let Some(snapshot) = snapshot else {
        return wanted;
    };
    let mut services: Vec<_> = snapshot.services.iter().collect();
    services.sort_by_key(|(name, _)| *name);
    for (_, service) in services {
        for document in &service.state.authentication {
            for issuer in &document.spec.issuers {
                let source = IssuerSource::from(issuer);
                let used = wanted
                    .entry(issuer.issuer.clone())
                    .or_insert_with(|| source.clone());
                if *used != source {
                    tracing::warn!(
                        issuer = issuer.issuer,
                        resource = %document.from,
                        "jwks.source_conflict"
                    );
                }
            }
        }
    }
    wanted
}

#[cfg(test)]
mod tests;
