//! The certificate issuer, and the control plane's own certificate: requested, renewed, and swapped under running connections.

use std::{
    fmt,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use merlon_api::control_plane_id;
use merlon_certs::{
    CertificateDer, H2, MeshTls, PrivateKey, SpiffeVerifier, TrustRoots, Usage, X509Svid,
    renewal_at, unix_now,
};
use merlon_compile::{Mesh, StateResource};
use merlon_config::{clock, resource::CertificateIssuer, snapshot::TrustBundle};
use merlon_issuer::{CertIssuer, VaultTimes};
use merlon_net::backoff;
use rustls::ServerConfig;
use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    issuance::{
        ledger::{Issued, Ledger},
        shared_ca::{CaError, SharedCa},
    },
    limits::IssuanceLimits,
    state::snapshot::Snapshots,
    telemetry::metrics::{EvidenceLabel, Metrics},
    transport::peer::timestamp,
};

/// An issuer that has signed, and the certificate that it issued to the control plane.
pub(crate) struct Certified {
    issuer: Arc<CertIssuer>,
    bundle: TrustBundle,
    /// The root of the control plane's own certificate, which join tokens pin.
    root: CertificateDer<'static>,
    /// The TLS configuration of the listener for proxies.
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) serial: String,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

impl Certified {
    pub(crate) fn issuer(&self) -> &CertIssuer {
        &self.issuer
    }

    pub(crate) fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The trust bundle in an `Issue` response.
    pub(crate) fn bundle_json(&self) -> String {
        let resource = StateResource::trust_bundle(&self.bundle);
        String::from_utf8_lossy(resource.json()).into_owned()
    }
}

impl fmt::Debug for Certified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Certified");
        out.field("serial", &self.serial).finish_non_exhaustive()
    }
}

/// Why the control plane has no (new) certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    #[error("{0}")]
    Open(#[from] merlon_issuer::OpenError),
    #[error("{0}")]
    Issuer(#[from] merlon_issuer::IssueError),
    #[error("the certificate issuer did not answer within {} seconds", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("the control plane's own key: {0}")]
    Key(#[from] merlon_certs::KeyError),
    #[error("the trust bundle: {0}")]
    Roots(#[from] merlon_certs::RootsError),
    #[error("the issued certificate: {0}")]
    Svid(#[from] merlon_certs::SvidError),
    #[error("the issued certificate does not chain to a root of the trust bundle")]
    NoRoot,
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Shared(#[from] CaError),
}

/// The current certificate, and the problem of the last attempt to request or renew it.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    certified: Arc<watch::Sender<Option<Arc<Certified>>>>,
    problem: Arc<Mutex<Option<String>>>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self {
            certified: Arc::new(watch::Sender::new(None)),
            problem: Arc::default(),
        }
    }

    /// Waits for the first certificate.
    pub(crate) async fn ready(&self) {
        // The sender lives as long as `self`.
        let _ = self.certified.subscribe().wait_for(Option::is_some).await;
    }

    /// A receiver of new certificates.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<Certified>>> {
        self.certified.subscribe()
    }

    pub(crate) fn certified(&self) -> Option<Arc<Certified>> {
        self.certified.borrow().clone()
    }

    /// The failure of the last attempt.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// Requests and renews the certificate of an [`Authority`].
#[derive(Debug)]
pub(crate) struct CertificateManager {
    pub(crate) authority: Authority,
    pub(crate) snapshots: Snapshots,
    pub(crate) ledger: Ledger,
    pub(crate) metrics: Metrics,
    pub(crate) limits: IssuanceLimits,
    /// Time-outs of a Vault issuer.
    pub(crate) vault: VaultTimes,
    pub(crate) state_dir: PathBuf,
    /// The issuer that was opened at the start, with its configuration.
    pub(crate) issuer: Option<(CertificateIssuer, Arc<CertIssuer>)>,
    /// The embedded CA that several replicas share.
    pub(crate) shared: Option<SharedCa>,
}

impl CertificateManager {
    /// Requests a certificate, renews it after half of its lifetime, and starts again when the resources name another issuer.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut snapshots = self.snapshots.watch();
        let mut issuer = self.issuer.take();
        let mut failures = 0_u32;
        loop {
            let mesh = Arc::clone(&snapshots.borrow_and_update().mesh);
            let spec = mesh.config().certificates.issuer.clone();
            issuer.take_if(|(of, _)| *of != spec);
            let tried = tokio::select! {
                tried = tokio::time::timeout(self.limits.sign, self.certify(&mesh, &mut issuer)) => tried,
                () = shutdown.cancelled() => return,
            };
            let (pause, good) =
                match tried.unwrap_or(Err(AuthorityError::TimedOut(self.limits.sign))) {
                    Ok(certified) => {
                        failures = 0;
                        // A certificate that is due at once does not keep the issuer busy.
                        (Duration::from_secs(1), self.publish(certified))
                    }
                    Err(error) => {
                        failures = failures.saturating_add(1);
                        (
                            self.failed(&error, failures),
                            Timestamp::MIN..Timestamp::MIN,
                        )
                    }
                };
            let due = async {
                tokio::time::sleep(pause).await;
                clock::outside(good, self.limits.clock_check).await;
            };
            tokio::select! {
                () = due => {}
                () = keep_alive(issuer.as_ref()) => {}
                () = other_issuer(&mut snapshots, &spec) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn certify(
        &self,
        mesh: &Mesh,
        known: &mut Option<(CertificateIssuer, Arc<CertIssuer>)>,
    ) -> Result<Certified, AuthorityError> {
        let domain = &mesh.config().trust_domain;
        let certificates = &mesh.config().certificates;
        let issuer = match known {
            Some((_, issuer)) => Arc::clone(issuer),
            None => {
                if let (Some(shared), CertificateIssuer::Embedded(_)) =
                    (&self.shared, &certificates.issuer)
                {
                    shared.fetch(&self.state_dir, domain).await?;
                }
                let issuer =
                    CertIssuer::open(&certificates.issuer, &self.state_dir, domain, self.vault)
                        .await?;
                log_issuer(&issuer);
                let issuer = Arc::new(issuer);
                *known = Some((certificates.issuer.clone(), Arc::clone(&issuer)));
                issuer
            }
        };
        let bundle = issuer.bundle().await?;
        let roots = Arc::new(TrustRoots::from_bundle(&bundle)?);
        let id = control_plane_id(domain, &mesh.config().root_namespace);
        let key = PrivateKey::generate()?;
        let csr = key.csr(&id)?;
        let chain = issuer.sign(&csr, &id, certificates.lifetime.0).await?;
        let svid = X509Svid::parse(chain, key, &roots, unix_now())?;
        let root = root_over(&svid, &bundle).ok_or(AuthorityError::NoRoot)?;
        let (serial, not_before, not_after) =
            (svid.serial.clone(), svid.not_before, svid.not_after);
        let entry = Issued {
            at: clock::now(),
            identity: id.to_string(),
            serial: serial.clone(),
            evidence: "self".to_owned(),
            node_id: String::new(),
            address: String::new(),
            pod: None,
            not_after: timestamp(not_after),
        };
        self.ledger.append_or_log(entry, &self.metrics).await;
        // A proxy with a join token knows only the hash of this root.
        let tls = MeshTls::new(Arc::new(svid.with_root(root.clone())), roots)?;
        Ok(Certified {
            issuer,
            bundle,
            root,
            server: tls.server_config_with_optional_client_cert(&[H2])?,
            serial,
            not_before,
            not_after,
        })
    }

    /// Puts a certificate in force. Returns how long it needs no renewal: until half of its lifetime, and
    /// while it is valid: if the clock was ahead and is corrected, it is not valid yet.
    fn publish(&self, certified: Certified) -> Range<Timestamp> {
        let not_before = certified.not_before;
        let renewal = renewal_at(not_before, certified.not_after, backoff::unit());
        tracing::info!(
            serial = certified.serial,
            not_after = %timestamp(certified.not_after),
            "authority.certified"
        );
        let label = EvidenceLabel { evidence: "self" };
        self.metrics.issued.get_or_create(&label).inc();
        #[expect(
            clippy::cast_precision_loss,
            reason = "seconds since 1970 are far below 2^52"
        )]
        self.metrics
            .own_expiry
            .set(certified.not_after.as_secs() as f64);
        self.snapshots
            .publish_bundle(StateResource::trust_bundle(&certified.bundle));
        self.authority.set_problem(None);
        self.authority
            .certified
            .send_replace(Some(Arc::new(certified)));
        timestamp(not_before)..timestamp(renewal)
    }

    fn failed(&self, error: &AuthorityError, failures: u32) -> Duration {
        // Full jitter, so that replicas that lost the issuer together do not retry together.
        let IssuanceLimits {
            retry, max_retry, ..
        } = self.limits;
        let longest = retry.saturating_mul(1 << failures.min(16)).min(max_retry);
        let pause = longest
            .mul_f64(backoff::unit())
            .max(Duration::from_millis(100));
        self.metrics.issuer_failures.inc();
        tracing::error!(error = %error, failures, retry_seconds = pause.as_secs_f64(), "authority.failed");
        self.authority.set_problem(Some(error.to_string()));
        pause
    }
}

/// Warns about an issuer that is only fit for development.
pub(crate) fn log_issuer(issuer: &CertIssuer) {
    if issuer.for_development() {
        tracing::warn!(issuer = issuer.describe(), "issuer.opened");
    } else {
        tracing::info!(issuer = issuer.describe(), "issuer.opened");
    }
}

/// Renews the issuer's login, if it has one; never returns.
async fn keep_alive(issuer: Option<&(CertificateIssuer, Arc<CertIssuer>)>) {
    if let Some((_, issuer)) = issuer {
        issuer.keep_alive().await;
    }
    std::future::pending().await
}

/// Returns when the resources name another issuer than `spec`.
async fn other_issuer(
    snapshots: &mut watch::Receiver<crate::state::snapshot::Snapshot>,
    spec: &CertificateIssuer,
) {
    let other = snapshots.wait_for(|snapshot| snapshot.mesh.config().certificates.issuer != *spec);
    if other.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The root of the bundle that the certificate chains to.
fn root_over(svid: &X509Svid, bundle: &TrustBundle) -> Option<CertificateDer<'static>> {
    let (leaf, others) = svid.chain.split_first()?;
    bundle.roots.iter().find_map(|pem| {
        let alone = TrustBundle {
            trust_domain: bundle.trust_domain.clone(),
            roots: vec![pem.clone()],
        };
        let roots = TrustRoots::from_bundle(&alone).ok()?;
        let root = roots.certificates().first()?.clone();
        let verifier = SpiffeVerifier::any_of(Arc::new(roots));
        verifier
            .check(leaf, others, unix_now(), Usage::Server)
            .ok()?;
        Some(root)
    })
}
