//! The identity: a local key, certified by the control plane, renewed at half of its lifetime, saved for a restart.

pub(crate) mod files;
pub(crate) mod issue;
pub(crate) mod publish;
pub(crate) mod saved;

use std::{sync::Arc, time::Duration};

use merlon_certs::{LEAF_BACKDATE, MeshTls, TrustRoots, X509Svid, unix_now};
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

/// Requests an immediate renewal. The result contains the old and the new serial number.
pub(crate) type Renew = mpsc::Sender<oneshot::Sender<Result<(String, String), String>>>;

/// Requests, renews, saves and publishes the identity.
#[derive(Debug)]
pub(crate) struct IdentityManager {
    deps: IdentityDeps,
    state_dir: Option<Arc<StateDir>>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    requests: mpsc::Receiver<oneshot::Sender<Result<(String, String), String>>>,
    current: Option<CurrentIdentity>,
    used_token: Option<[u8; 32]>,
}

/// The identity in force.
#[derive(Debug, Clone)]
struct CurrentIdentity {
    svid: Arc<X509Svid>,
    bundle: TrustBundle,
    renew_at: UnixTime,
}

/// Maximum delay between attempts; at most a 20th of the certificate's lifetime.
const MAX_RETRY: Duration = Duration::from_secs(300);

impl IdentityManager {
    pub(crate) fn new(
        deps: IdentityDeps,
        state_dir: Option<Arc<StateDir>>,
        shared: Arc<Shared>,
        metrics: Arc<Metrics>,
    ) -> (Self, Renew) {
        let (renew, requests) = mpsc::channel(4);
        let this = Self {
            deps,
            state_dir,
            shared,
            metrics,
            requests,
            current: None,
            used_token: None,
        };
        (this, renew)
    }

    /// Runs until the process ends.
    pub(crate) async fn run(mut self) {
        self.restore();
        let mut backoff = self.backoff();
        let mut snapshots = self.shared.snapshot.watch();
        let mut retry_at = Instant::now();
        let mut requested: Option<oneshot::Sender<Result<(String, String), String>>> = None;
        loop {
            // The clock may jump in between.
            let check = Instant::now() + self.shared.limits.clock_check;
            let due = Instant::now() + self.until_due();
            tokio::select! {
                () = time::sleep_until(due.max(retry_at).min(check)) => {}
                Some(reply) = self.requests.recv() => requested = Some(reply),
                Ok(()) = snapshots.changed() => {
                    self.follow_roots();
                    continue;
                }
            }
            if self.shared.identity.load().is_none() {
                // The clock was ahead and is corrected: the certificate that was withdrawn is valid.
                self.publish();
            }
            let due = self.until_due().is_zero() && Instant::now() >= retry_at;
            if requested.is_none() && !due {
                continue;
            }
            let before = self
                .current
                .as_ref()
                .map(|current| current.svid.serial.clone());
            let tried = self.renew().await;
            let wait = match &tried {
                // By this clock the next certificate is due at once: the clocks of this machine and of the control plane
                // differ by about half of the lifetime, or certificates live for a few seconds only.
                Ok(Issued::Svid { svid, .. }) if self.until_due().is_zero() => {
                    tracing::warn!(
                        serial = svid.serial,
                        not_before = svid.not_before.as_secs(),
                        not_after = svid.not_after.as_secs(),
                        now = unix_now().as_secs(),
                        "certificate.due_at_once"
                    );
                    backoff.next_wait()
                }
                Ok(Issued::Svid { .. }) => {
                    backoff = self.backoff();
                    Duration::ZERO
                }
                Ok(Issued::Later(wait)) => *wait,
                Err(error) => {
                    let message = chain(error);
                    let hint = error.hint(&self.deps.workload);
                    let hint = hint.as_deref();
                    // A pod may send its first request before the control plane knows the pod.
                    if error.is_final() && self.deps.pod_token.is_none() {
                        tracing::error!(
                            address = %self.deps.address,
                            error = message,
                            hint,
                            "certificate.request_failed"
                        );
                    } else {
                        tracing::warn!(
                            address = %self.deps.address,
                            error = message,
                            "certificate.request_failed"
                        );
                    }
                    self.report_missing(&match hint {
                        Some(hint) => format!("{message}; {hint}"),
                        None => message,
                    });
                    // A pod may send its first request before the control plane knows the pod.
                    if error.is_final() && self.deps.pod_token.is_none() {
                        MAX_RETRY
                    } else {
                        backoff.next_wait()
                    }
                }
            };
            retry_at = Instant::now() + wait;
            if let Some(reply) = requested.take() {
                let after = self
                    .current
                    .as_ref()
                    .map(|current| current.svid.serial.clone());
                let answer = match tried {
                    Ok(Issued::Svid { .. }) => {
                        Ok((before.unwrap_or_default(), after.unwrap_or_default()))
                    }
                    Ok(Issued::Later(wait)) => {
                        Err(format!("the control plane asks to retry in {wait:?}"))
                    }
                    Err(error) => Err(chain(&error)),
                };
                // Fails if the inspection stream has ended.
                let _ = reply.send(answer);
            }
        }
    }

    /// Restores the identity of an earlier process.
    fn restore(&mut self) {
        let Some(state_dir) = &self.state_dir else {
            return;
        };
        let saved = match SavedIdentity::read(state_dir) {
            Ok(Some(saved)) => saved,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(error = chain(&error), "identity.not_restored");
                return;
            }
        };
        self.used_token = saved.used_token();
        let (own, token) = (&self.deps.workload, self.deps.join_token.as_ref());
        let now = unix_now();
        let restored = saved.restore(own, token, now).or_else(|error| {
            tracing::warn!(error = chain(&error), "identity.not_restored");
            // With a wrong clock, a certificate seems to have expired or not to be valid yet. It is kept, and is in force once
            // the clock is right.
            let valid = saved.closest_valid_time(now).filter(|valid| *valid != now);
            valid
                .and_then(|valid| saved.restore(own, token, valid).ok())
                .ok_or(())
        });
        if let Ok((svid, bundle)) = restored {
            self.put_in_force(svid, bundle);
        }
    }

    /// Requests a certificate. The evidence is the pod's token, in a cluster; the certificate in force, outside of a cluster
    /// and if the token is not accepted; or the join token, if there is no valid certificate.
    async fn renew(&mut self) -> Result<Issued, IssueError> {
        let identity = self.shared.identity.load_full();
        let used = self.used_token;
        let unused = self
            .deps
            .join_token
            .as_ref()
            .filter(|token| Some(token.secret_sha256()) != used);
        let live = Option::as_ref(&identity);
        let early = live.is_some_and(|tls| publish::is_early(tls.svid(), unix_now()));
        let by_certificate = live.map(|tls| Evidence::Certificate(Arc::clone(tls)));
        let (evidence, otherwise) = match (&self.deps.pod_token, by_certificate, unused) {
            (Some(token), by_certificate, _) => (Evidence::PodToken(token), by_certificate),
            // A control plane with the same clock does not accept the certificate.
            (None, Some(by_certificate), Some(token)) if early => {
                (Evidence::JoinToken(token), Some(by_certificate))
            }
            (None, Some(by_certificate), _) => (by_certificate, None),
            (None, None, Some(token)) => (Evidence::JoinToken(token), None),
            (None, None, None) => return Err(IssueError::NoEvidence),
        };
        let token = match &evidence {
            Evidence::JoinToken(token) => Some(token.secret_sha256()),
            Evidence::Certificate(_) | Evidence::PodToken(_) => None,
        };
        let mut issued = issue::issue(&self.deps, evidence).await;
        if issued.is_err()
            && let Some(evidence) = otherwise
        {
            // If both fail, report the failure of the preferred evidence.
            issued = issue::issue(&self.deps, evidence).await.or(issued);
        }
        self.metrics.issues.inc(if issued.is_ok() {
            FetchResult::Ok
        } else {
            FetchResult::Failed
        });
        let issued = issued?;
        if let Issued::Svid { svid, bundle } = &issued {
            self.used_token = token.or(self.used_token);
            self.put_in_force(Arc::clone(svid), bundle.clone());
            self.save();
        }
        Ok(issued)
    }

    /// Puts an identity in force.
    fn put_in_force(&mut self, svid: Arc<X509Svid>, bundle: TrustBundle) {
        let renew_at = svid.renewal_at(unit());
        self.current = Some(CurrentIdentity {
            svid,
            bundle,
            renew_at,
        });
        self.publish();
        self.follow_roots();
    }

    /// Takes roots from the snapshot: it contains those of all trust domains, and newer ones than the issued certificate.
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
            self.save();
        }
        self.publish();
    }

    fn publish(&self) {
        let Some(current) = &self.current else { return };
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
            Ok(tls) => publish::publish(&self.shared, &self.metrics, tls, unix_now()),
            Err(error) => tracing::error!(error, "identity.rejected"),
        }
    }

    fn save(&self) {
        let (Some(state_dir), Some(current)) = (&self.state_dir, &self.current) else {
            return;
        };
        let saved = SavedIdentity::new(&current.svid, &current.bundle, self.used_token);
        let written = saved
            .map_err(|error| chain(&error))
            .and_then(|saved| saved.write(state_dir).map_err(|error| error.to_string()));
        self.metrics.persists.inc(if written.is_ok() {
            FetchResult::Ok
        } else {
            FetchResult::Failed
        });
        if let Err(error) = written {
            tracing::error!(error, "identity.not_saved");
        }
    }

    /// Time until the renewal is due; zero if it is due now, as without a certificate that is valid already.
    fn until_due(&self) -> Duration {
        let now = unix_now();
        let valid = self
            .current
            .as_ref()
            .filter(|current| !publish::is_early(&current.svid, now));
        let due = valid.map_or(0, |current| current.renew_at.as_secs());
        Duration::from_secs(due.saturating_sub(now.as_secs()))
    }

    fn backoff(&self) -> Backoff {
        let life = self.current.as_ref().map_or(MAX_RETRY * 20, |current| {
            let (from, to) = (current.svid.not_before, current.svid.not_after);
            // Counted from the issuance, like the renewal, since certificates are valid from before it.
            let from = Duration::from_secs(from.as_secs()) + LEAF_BACKDATE;
            Duration::from_secs(to.as_secs()).saturating_sub(from)
        });
        let first = self.shared.limits.certificate_retry;
        Backoff::new(first, (life / 20).min(MAX_RETRY).max(first))
    }

    /// A failed renewal does not make the proxy unready; a missing certificate does.
    fn report_missing(&self, why: &str) {
        if self.shared.identity.load().is_none()
            && self.shared.readiness.most_severe() != Some(Unready::TlsExpired)
        {
            self.shared
                .readiness
                .add_reason(Unready::NoIdentity, format!("no certificate: {why}"));
        }
    }
}
