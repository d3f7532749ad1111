//! `Issue`: signs a certificate for a proxy's key, on evidence of its identity.

use std::{net::IpAddr, sync::Arc, time::Instant};

use jiff::Timestamp;
use merlon_api::{
    JoinToken, MAX_NAME,
    identity::{Evidence, IssueRequest, IssueResponse, identity_server::Identity},
};
use merlon_certs::{CertificateDer, LeafFacts};
use merlon_config::{clock, name::SpiffeId};
use merlon_issuer::{Fault, IssueError};
use tonic::{Request, Response, Status};

use crate::{
    cluster::token_review::{PodOfToken, Reviewer},
    issuance::{
        authority::{Authority, Certified},
        csr::Csr,
        join_token::{JoinTokens, TokenRefusal},
        ledger::{Issued, Ledger},
    },
    limits::IssuanceLimits,
    push::Registry,
    state::{snapshot::Snapshots, store::StoreError},
    telemetry::{
        metrics::{EvidenceLabel, Metrics, RefusalLabel},
        spans,
    },
    transport::{
        peer::{ConnectionPeer, timestamp},
        rate::Rate,
    },
};

/// The maximum size of a CSR in bytes. A proxy's CSR has about 300.
const MAX_CSR_BYTES: usize = 4 << 10;

/// The gRPC service that issues certificates.
#[derive(Debug, Clone)]
pub(crate) struct Issue {
    pub(crate) snapshots: Snapshots,
    pub(crate) authority: Authority,
    pub(crate) tokens: JoinTokens,
    /// In a cluster: reviews the service account tokens of pods.
    pub(crate) reviewer: Option<Reviewer>,
    pub(crate) ledger: Ledger,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) limits: IssuanceLimits,
    /// Limits attempts per address. Many machines behind one NAT address are allowed.
    pub(crate) by_address: Rate<IpAddr>,
    /// Limits renewals per identity.
    pub(crate) by_identity: Rate<SpiffeId>,
}

/// Why no certificate is issued. The status goes to the client, the reason to metrics and the log.
struct Refusal {
    reason: &'static str,
    status: Status,
}

fn refuse(reason: &'static str, status: Status) -> Refusal {
    Refusal { reason, status }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = %error, "store.failed");
        refuse(
            "store",
            Status::unavailable("the control plane's database does not answer: try again"),
        )
    }
}

/// The evidence that a certificate is issued on.
enum Grounds {
    Token(JoinToken),
    ServiceAccount(PodOfToken),
    Certificate,
}

impl Grounds {
    const fn evidence(&self) -> &'static str {
        match self {
            Self::Token(_) => "join-token",
            Self::ServiceAccount(_) => "service-account",
            Self::Certificate => "certificate",
        }
    }
}

#[tonic::async_trait]
impl Identity for Issue {
    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssueResponse>, Status> {
        let mut span = spans::span("merlon.identity.issue");
        let peer = ConnectionPeer::of(&request)?;
        if let Some(svid) = &peer.svid {
            span.note("merlon.peer", svid.id.to_string());
        }
        let request = request.into_inner();
        let node_id = request.node_id.clone();
        let refused = match self.decide(&peer, request).await {
            Ok(response) => return Ok(Response::new(response)),
            Err(refused) => refused,
        };
        let label = RefusalLabel {
            reason: refused.reason,
        };
        self.metrics.issue_refused.get_or_create(&label).inc();
        tracing::warn!(
            address = %peer.address,
            identity = peer.svid.as_ref().map(|svid| svid.id.to_string()),
            node = %node_id.chars().take(MAX_NAME).collect::<String>().escape_debug(),
            reason = refused.reason,
            error = refused.status.message(),
            "certificate.refused"
        );
        span.failed(refused.status.message());
        Err(refused.status)
    }
}

impl Issue {
    async fn decide(
        &self,
        peer: &ConnectionPeer,
        request: IssueRequest,
    ) -> Result<IssueResponse, Refusal> {
        self.limit(peer)?;
        let malformed = |message: String| refuse("malformed", Status::invalid_argument(message));
        let node = &request.node_id;
        if node.len() > MAX_NAME || !node.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(malformed(format!(
                "`node_id` must be at most {MAX_NAME} visible ASCII characters"
            )));
        }
        if request.csr.is_empty() || request.csr.len() > MAX_CSR_BYTES {
            return Err(malformed(format!(
                "`csr` must have 1 to {MAX_CSR_BYTES} bytes"
            )));
        }
        let now = clock::now();
        let (identity, grounds) = self.grounds(peer, request.evidence, now).await?;
        // The token is consumed only after every other check of the request.
        let csr = Csr::check(&request.csr, &identity)
            .map_err(|error| refuse("csr", Status::invalid_argument(error.to_string())))?;
        if let Some(svid) = &peer.svid
            && svid.public_key_info == csr.public_key_info()
        {
            let message = "renewal needs a new key: this key is in the current certificate";
            return Err(refuse("old_key", Status::invalid_argument(message)));
        }
        if !self.snapshots.mesh().knows(&identity) {
            let message = format!("no Workload or Gateway of the mesh runs as `{identity}`");
            return Err(refuse(
                "unknown_identity",
                Status::permission_denied(message),
            ));
        }
        let certified = self.authority.certified().ok_or_else(|| {
            refuse(
                "not_ready",
                Status::unavailable("the control plane has no certificate issuer yet"),
            )
        })?;
        if let Grounds::Token(token) = &grounds
            && !self.tokens.consume(token, node, now).await?
        {
            // The token was valid just now: another request consumed it, or it has expired.
            self.identity_of(token, now).await?;
            return Err(refuse(
                "token_used",
                Status::permission_denied("the join token was just used"),
            ));
        }
        let chain = match self.sign(&certified, &request.csr, &identity).await {
            Ok(chain) => chain,
            Err(refusal) => {
                if let Grounds::Token(token) = &grounds {
                    self.tokens.restore(token).await?;
                }
                return Err(refusal);
            }
        };
        self.record(peer, node, &identity, &grounds, &chain, now)
            .await?;
        Ok(IssueResponse {
            chain: chain
                .iter()
                .map(|certificate| certificate.to_vec())
                .collect(),
            trust_bundle: certified.bundle_json(),
            retry_after_seconds: 0,
        })
    }

    fn limit(&self, peer: &ConnectionPeer) -> Result<(), Refusal> {
        let now = Instant::now();
        let taken = match &peer.svid {
            Some(svid) => self.by_identity.take(svid.id.clone(), now),
            None => self.by_address.take(peer.address.ip(), now),
        };
        taken.map_err(|wait| {
            let seconds = wait.as_secs_f64().ceil();
            let message = format!("too many certificate requests: try again in {seconds} s");
            refuse("rate", Status::resource_exhausted(message))
        })
    }

    async fn grounds(
        &self,
        peer: &ConnectionPeer,
        evidence: Option<Evidence>,
        now: Timestamp,
    ) -> Result<(SpiffeId, Grounds), Refusal> {
        match evidence {
            Some(Evidence::JoinToken(text)) => {
                let token: JoinToken = text.parse().map_err(|error| {
                    refuse("malformed", Status::invalid_argument(format!("{error}")))
                })?;
                let identity = self.identity_of(&token, now).await?;
                Ok((identity, Grounds::Token(token)))
            }
            Some(Evidence::Token(token)) => {
                let (identity, pod) = self.service_account(&token, peer.address.ip()).await?;
                Ok((identity, Grounds::ServiceAccount(pod)))
            }
            None => {
                let unproved = |status| refuse("no_evidence", status);
                if peer.svid.is_none() {
                    return Err(unproved(Status::unauthenticated(
                        "no evidence: send a join token, or renew over a connection with your certificate",
                    )));
                }
                let svid = peer.proved().map_err(unproved)?;
                // A certificate outlives its pod; the token of the pod does not.
                if let Some(reviewer) = &self.reviewer
                    && !reviewer.is_unreachable()
                {
                    let after = reviewer.limits().renewal_after.as_secs_f64();
                    return Err(unproved(Status::permission_denied(format!(
                        "in a cluster a certificate is renewed with the token of its pod, unless the cluster has been unreachable for {after} seconds: a join token is good for one certificate there"
                    ))));
                }
                Ok((svid.id.clone(), Grounds::Certificate))
            }
        }
    }

    /// The identity of a pod's token, and the pod.
    async fn service_account(
        &self,
        token: &str,
        from: IpAddr,
    ) -> Result<(SpiffeId, PodOfToken), Refusal> {
        let reviewer = self.reviewer.as_ref().ok_or_else(|| {
            refuse(
                "evidence",
                Status::unimplemented(
                    "service account tokens are not accepted here: use a join token",
                ),
            )
        })?;
        let proved = reviewer
            .authenticate(token, from)
            .await
            .map_err(|problem| {
                let (reason, message) = (problem.reason(), problem.to_string());
                if problem.is_transient() {
                    refuse(reason, Status::unavailable(message))
                } else {
                    refuse(reason, Status::permission_denied(message))
                }
            })?;
        if proved.elsewhere {
            self.metrics.pod_addresses_differed.inc();
        }
        let mut snapshots = self.snapshots.watch();
        let domain = self.snapshots.mesh().state().trust_domain.clone();
        let identity = domain.spiffe_id(&proved.account);
        // The pod was just seen, and becomes a Workload with the next compilation.
        let known = snapshots.wait_for(|snapshot| snapshot.mesh.knows(&identity));
        let _ = tokio::time::timeout(self.limits.compile, known).await;
        Ok((identity, proved.pod))
    }

    /// The identity of a join token. A second use is logged as an error: the secret has leaked.
    async fn identity_of(&self, token: &JoinToken, now: Timestamp) -> Result<SpiffeId, Refusal> {
        let identity = match self.tokens.lookup(token, now).await? {
            Ok(identity) => identity,
            Err(refused) => {
                let reason = match &refused {
                    TokenRefusal::Unknown => "token_unknown",
                    TokenRefusal::Expired(_) => "token_expired",
                    TokenRefusal::Used { at, by, identity } => {
                        self.metrics.tokens_reused.inc();
                        tracing::error!(identity, first_used_at = %at, first_used_by = by, "join_token.reused");
                        "token_used"
                    }
                };
                return Err(refuse(
                    reason,
                    Status::permission_denied(refused.to_string()),
                ));
            }
        };
        identity.parse().map_err(|_| {
            refuse(
                "store",
                Status::internal("the identity of the join token cannot be parsed"),
            )
        })
    }

    async fn sign(
        &self,
        certified: &Arc<Certified>,
        csr: &[u8],
        identity: &SpiffeId,
    ) -> Result<Vec<CertificateDer<'static>>, Refusal> {
        let lifetime = self.snapshots.mesh().config().certificates.lifetime.0;
        let signing = certified.issuer().sign(csr, identity, lifetime);
        let signed = tokio::time::timeout(self.limits.sign, signing).await;
        let signed = signed.unwrap_or_else(|_| {
            let seconds = self.limits.sign.as_secs_f64();
            Err(IssueError::Unavailable(format!(
                "no answer within {seconds} seconds"
            )))
        });
        signed.map_err(|error| match error.fault() {
            Fault::Request => refuse("csr", Status::invalid_argument(error.to_string())),
            Fault::Unavailable | Fault::Issuer => {
                self.metrics.issuer_failures.inc();
                tracing::error!(identity = %identity, error = %error, "certificate.sign_failed");
                // The client learns that a retry may help, but not what is wrong with the issuer.
                let message = "the certificate issuer cannot sign at the moment: try again";
                refuse("issuer", Status::unavailable(message))
            }
        })
    }

    async fn record(
        &self,
        peer: &ConnectionPeer,
        node: &str,
        identity: &SpiffeId,
        grounds: &Grounds,
        chain: &[CertificateDer<'static>],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let facts = chain
            .first()
            .and_then(|leaf| LeafFacts::parse(leaf).ok())
            .ok_or_else(|| {
                refuse(
                    "issuer",
                    Status::internal("the certificate issuer returned an unexpected certificate"),
                )
            })?;
        let not_after = timestamp(facts.not_after);
        let pod = match grounds {
            Grounds::ServiceAccount(pod) => Some(pod),
            Grounds::Token(_) | Grounds::Certificate => None,
        };
        let entry = Issued {
            pod: pod.cloned(),
            at: now,
            identity: identity.to_string(),
            serial: facts.serial.clone(),
            evidence: grounds.evidence().to_owned(),
            node_id: node.to_owned(),
            address: peer.address.to_string(),
            not_after,
        };
        self.ledger.append_or_log(entry, &self.metrics).await;
        let label = EvidenceLabel {
            evidence: grounds.evidence(),
        };
        self.metrics.issued.get_or_create(&label).inc();
        self.registry
            .certified(identity, node, &facts.serial, not_after);
        tracing::info!(
            identity = %identity,
            serial = facts.serial,
            evidence = grounds.evidence(),
            node,
            address = %peer.address,
            pod = pod.map(|pod| &*pod.name),
            pod_uid = pod.map(|pod| &*pod.uid),
            pod_node = pod.map(|pod| &*pod.node),
            not_after = %not_after,
            "certificate.issued"
        );
        Ok(())
    }
}

/// The rate limits of `Issue`, by address and by identity.
pub(crate) fn rates(limits: &IssuanceLimits) -> (Rate<IpAddr>, Rate<SpiffeId>) {
    (
        Rate::new(limits.address_burst, limits.address_rate),
        Rate::new(limits.identity_burst, limits.identity_rate),
    )
}
