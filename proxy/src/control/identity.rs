//! The identity's life: made here, certified by the control plane, renewed at half of its life, kept over a restart.

pub(crate) mod files;
pub(crate) mod issue;
pub(crate) mod publish;
pub(crate) mod saved;

use std::{sync::Arc, time::Duration};

use merlon_certs::{LEAF_BACKDATE, MeshTls, TrustRoots, X509Svid};
use merlon_config::{causes::chain, snapshot::TrustBundle};
use merlon_net::backoff::{Backoff, unit};
use rustls_pki_types::UnixTime;
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, Instant},
};

use self::{
    issue::{Evidence, IdentityDeps, IssueError, Issued},
    saved::SavedIdentity,
};
use super::state_dir::StateDir;
use crate::{
    state::{readiness::Unready, shared::Shared},
    telemetry::metrics::{FetchResult, Metrics},
};

/// Asks for a renewal now; answered with the old and the new serial number.
pub(crate) type Renew = mpsc::Sender<oneshot::Sender<Result<(String, String), String>>>;

/// Keeps the identity.
#[derive(Debug)]
pub(crate) struct Keeper {
    start: IdentityDeps,
    state_dir: Option<Arc<StateDir>>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    asked: mpsc::Receiver<oneshot::Sender<Result<(String, String), String>>>,
    current: Option<CurrentIdentity>,
    used_token: Option<[u8; 32]>,
}

/// An identity in force.
#[derive(Debug, Clone)]
struct CurrentIdentity {
    svid: Arc<X509Svid>,
    bundle: TrustBundle,
    renew_at: UnixTime,
}

/// How long tries are apart, from a second to five minutes, and never more than a 20th of the certificate's life.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

impl Keeper {
    pub(crate) fn new(
        start: IdentityDeps,
        state_dir: Option<Arc<StateDir>>,
        shared: Arc<Shared>,
        metrics: Arc<Metrics>,
    ) -> (Self, Renew) {
        let (renew, asked) = mpsc::channel(4);
        let this = Self {
            start,
            state_dir,
            shared,
            metrics,
            asked,
            current: None,
            used_token: None,
        };
        (this, renew)
    }

    /// Until the process ends.
    pub(crate) async fn run(mut self) {
        self.restore();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut snapshots = self.shared.snapshot.watch();
        let mut retry_at = Instant::now();
        let mut asking: Option<oneshot::Sender<Result<(String, String), String>>> = None;
        loop {
            // Looked at every minute at least: the clock may be set while we sleep.
            let due = Instant::now() + self.until_due().min(Duration::from_secs(60));
            tokio::select! {
                () = time::sleep_until(due.max(retry_at)) => {}
                Some(asker) = self.asked.recv() => asking = Some(asker),
                Ok(()) = snapshots.changed() => {
                    self.follow_roots();
                    continue;
                }
            }
            if asking.is_none() && !self.until_due().is_zero() {
                continue;
            }
            let before = self
                .current
                .as_ref()
                .map(|current| current.svid.serial.clone());
            let tried = self.renew().await;
            let wait = match &tried {
                Ok(Issued::Svid { .. }) => {
                    backoff = self.backoff();
                    Duration::ZERO
                }
                Ok(Issued::Later(wait)) => *wait,
                Err(error) => {
                    let message = chain(error);
                    let hint = error.mending(&self.start.workload);
                    let hint = hint.as_deref();
                    // A pod may ask before the control plane was told of it.
                    if error.is_final() && self.start.pod_token.is_none() {
                        tracing::error!(
                            address = %self.start.address,
                            error = message,
                            hint,
                            "certificate.request_failed"
                        );
                    } else {
                        tracing::warn!(
                            address = %self.start.address,
                            error = message,
                            "certificate.request_failed"
                        );
                    }
                    self.lack(&match hint {
                        Some(hint) => format!("{message}; {hint}"),
                        None => message,
                    });
                    // A pod may ask before the control plane was told of it.
                    if error.is_final() && self.start.pod_token.is_none() {
                        RETRY.1
                    } else {
                        backoff.next_wait()
                    }
                }
            };
            retry_at = Instant::now() + wait;
            if let Some(asker) = asking.take() {
                let after = self
                    .current
                    .as_ref()
                    .map(|current| current.svid.serial.clone());
                let answer = match tried {
                    Ok(Issued::Svid { .. }) => {
                        Ok((before.unwrap_or_default(), after.unwrap_or_default()))
                    }
                    Ok(Issued::Later(wait)) => {
                        Err(format!("the control plane asks to come back in {wait:?}"))
                    }
                    Err(error) => Err(chain(&error)),
                };
                // The asker went away with its stream.
                let _ = asker.send(answer);
            }
        }
    }

    /// Takes up what an earlier process left behind.
    fn restore(&mut self) {
        let Some(state_dir) = &self.state_dir else {
            return;
        };
        let kept = match SavedIdentity::read(state_dir) {
            Ok(Some(kept)) => kept,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(error = chain(&error), "identity.not_restored");
                return;
            }
        };
        self.used_token = kept.used_token();
        match kept.restore(&self.start.workload, self.start.join_token.as_ref()) {
            Ok((svid, bundle)) => self.take(svid, bundle),
            Err(error) => tracing::warn!(error = chain(&error), "identity.not_restored"),
        }
    }

    /// By the pod's token, which ends with the pod; by the certificate in force while the cluster cannot be asked about
    /// that, and outside of one; by the join token before there is a certificate and after it ended.
    async fn renew(&mut self) -> Result<Issued, IssueError> {
        let identity = self.shared.identity.load_full();
        let used = self.used_token;
        let unused = self
            .start
            .join_token
            .as_ref()
            .filter(|token| Some(token.secret_sha256()) != used);
        let live = Option::as_ref(&identity);
        let by_certificate = live.map(|tls| Evidence::Certificate(Arc::clone(tls)));
        let (evidence, otherwise) = match (&self.start.pod_token, by_certificate, unused) {
            (Some(token), by_certificate, _) => (Evidence::PodToken(token), by_certificate),
            (None, Some(by_certificate), _) => (by_certificate, None),
            (None, None, Some(token)) => (Evidence::JoinToken(token), None),
            (None, None, None) => return Err(IssueError::NoEvidence),
        };
        let token = match &evidence {
            Evidence::JoinToken(token) => Some(token.secret_sha256()),
            Evidence::Certificate(_) | Evidence::PodToken(_) => None,
        };
        let mut issued = issue::issue(&self.start, evidence).await;
        if issued.is_err()
            && let Some(evidence) = otherwise
        {
            // What was wrong with the better evidence is what is told.
            issued = issue::issue(&self.start, evidence).await.or(issued);
        }
        self.metrics.issues.inc(if issued.is_ok() {
            FetchResult::Ok
        } else {
            FetchResult::Failed
        });
        let issued = issued?;
        if let Issued::Svid { svid, bundle } = &issued {
            self.used_token = token.or(self.used_token);
            self.take(Arc::clone(svid), bundle.clone());
            self.keep();
        }
        Ok(issued)
    }

    /// Puts an identity in force.
    fn take(&mut self, svid: Arc<X509Svid>, bundle: TrustBundle) {
        let renew_at = svid.renewal_at(unit());
        self.current = Some(CurrentIdentity {
            svid,
            bundle,
            renew_at,
        });
        self.publish();
        self.follow_roots();
    }

    /// The snapshot knows the roots of all trust domains, and newer ones than those that came with the certificate.
    fn follow_roots(&mut self) {
        let snapshot = self.shared.snapshot.load_full();
        let (Some(snapshot), Some(current)) = (snapshot.as_ref(), &mut self.current) else {
            return;
        };
        let own = snapshot
            .bundles
            .iter()
            .find(|bundle| bundle.trust_domain == current.bundle.trust_domain);
        if let Some(own) = own
            && *own != current.bundle
        {
            tracing::info!(roots = own.roots.len(), "trust_bundle.changed");
            current.bundle = own.clone();
            self.keep();
        }
        self.publish();
    }

    fn publish(&self) {
        let Some(current) = &self.current else { return };
        if current.svid.not_after.as_secs() <= UnixTime::now().as_secs() {
            return;
        }
        let snapshot = self.shared.snapshot.load_full();
        let foreign = snapshot
            .as_ref()
            .as_ref()
            .map_or(&[][..], |snapshot| &snapshot.bundles);
        let foreign = foreign
            .iter()
            .filter(|bundle| bundle.trust_domain != current.bundle.trust_domain);
        let roots = TrustRoots::from_bundles(foreign.chain([&current.bundle]));
        let tls = roots.map_err(|error| error.to_string()).and_then(|roots| {
            MeshTls::new(Arc::clone(&current.svid), Arc::new(roots))
                .map_err(|error| error.to_string())
        });
        match tls {
            Ok(tls) => publish::publish(&self.shared, &self.metrics, tls),
            Err(error) => tracing::error!(error, "identity.rejected"),
        }
    }

    fn keep(&self) {
        let (Some(state_dir), Some(current)) = (&self.state_dir, &self.current) else {
            return;
        };
        let kept = SavedIdentity::new(&current.svid, &current.bundle, self.used_token);
        let written = kept
            .map_err(|error| chain(&error))
            .and_then(|kept| kept.write(state_dir).map_err(|error| error.to_string()));
        self.metrics.persists.inc(if written.is_ok() {
            FetchResult::Ok
        } else {
            FetchResult::Failed
        });
        if let Err(error) = written {
            tracing::error!(error, "identity.not_saved");
        }
    }

    /// Zero: now.
    fn until_due(&self) -> Duration {
        let now = UnixTime::now().as_secs();
        let due = self
            .current
            .as_ref()
            .map_or(0, |current| current.renew_at.as_secs());
        Duration::from_secs(due.saturating_sub(now))
    }

    fn backoff(&self) -> Backoff {
        let life = self.current.as_ref().map_or(RETRY.1 * 20, |current| {
            let (from, to) = (current.svid.not_before, current.svid.not_after);
            // Counted from the issue, as for the renewal: leaves begin before it.
            let from = Duration::from_secs(from.as_secs()) + LEAF_BACKDATE;
            Duration::from_secs(to.as_secs()).saturating_sub(from)
        });
        let most = (life / 20).clamp(RETRY.0, RETRY.1);
        Backoff::new(RETRY.0.min(most), most)
    }

    /// Not having a new certificate yet is no reason for not being ready; having none at all is.
    fn lack(&self, why: &str) {
        if self.shared.identity.load().is_none()
            && self.shared.readiness.worst() != Some(Unready::TlsExpired)
        {
            self.shared.readiness.lack(
                Unready::NoIdentity,
                format!("there is no certificate: {why}"),
            );
        }
    }
}
