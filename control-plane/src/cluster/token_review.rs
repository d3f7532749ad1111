//! Authenticates a pod by its service account token.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams, runtime::reflector::Store};
use merlon_config::{bootstrap::PodAddressCheck, name::WorkloadId};
use serde::Serialize;

use super::{
    names,
    watch::{Contact, is_refusal},
};
use crate::limits::TokenReviewLimits;

/// The maximum size of a token. A pod's token has about 900 bytes.
const MAX_BYTES: usize = 16 << 10;
/// The name of a failure in `/ready`.
const CALL: &str = "tokenreviews";

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenProblem {
    #[error("not a service account token")]
    Malformed,
    #[error("the cluster rejected this token: {0}")]
    Refused(String),
    #[error("the token is not for the audience `{}`", names::AUDIENCE)]
    Audience,
    #[error("the token belongs to `{0}`, which is not a service account")]
    NoAccount(String),
    #[error("the token is not bound to a pod: use a projected service account token")]
    Unbound,
    #[error("the pod `{0}` of the token does not exist, or has no proxy")]
    NoPod(String),
    #[error(
        "the token belongs to the pod `{pod}` with {addresses}, and the request comes from {from}: only the pod itself may use it (where the network translates the addresses of pods, set `controlPlane.podAddressCheck: warn`)"
    )]
    Address {
        pod: String,
        addresses: String,
        from: IpAddr,
    },
    #[error("the cluster cannot be reached at the moment: try again")]
    Unreachable,
}

impl TokenProblem {
    /// Whether a retry may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable)
    }

    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable => "cluster",
            Self::Audience => "token_audience",
            Self::Unbound | Self::NoPod(_) => "token_pod",
            Self::Address { .. } => "token_address",
            Self::Malformed | Self::Refused(_) | Self::NoAccount(_) => "token_refused",
        }
    }
}

/// Reviews tokens with the cluster.
#[derive(Clone)]
pub(crate) struct Reviewer {
    client: Client,
    pods: Store<Pod>,
    contact: Contact,
    limits: TokenReviewLimits,
    addresses: PodAddressCheck,
    /// Whether a retry loop runs.
    retrying: Arc<AtomicBool>,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

impl Reviewer {
    pub(crate) fn new(
        client: Client,
        pods: Store<Pod>,
        contact: Contact,
        limits: TokenReviewLimits,
        addresses: PodAddressCheck,
    ) -> Self {
        Self {
            client,
            pods,
            contact,
            limits,
            addresses,
            retrying: Arc::default(),
        }
    }

    pub(crate) fn limits(&self) -> &TokenReviewLimits {
        &self.limits
    }

    /// Whether the cluster has been unreachable for a while. One broken watch or one unanswered call does not count.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.contact
            .outage_duration()
            .is_some_and(|outage| outage >= self.limits.renewal_after)
    }

    /// The pod of a token, if the request comes from it.
    pub(crate) async fn authenticate(
        &self,
        token: &str,
        from: IpAddr,
    ) -> Result<Authenticated, TokenProblem> {
        if !is_token(token) {
            return Err(TokenProblem::Malformed);
        }
        let user = self.review(token).await?;
        let bound = bound(&user)?;
        let name = format!("{}/{}", bound.account.namespace, bound.name);
        let enforced = self.addresses == PodAddressCheck::Enforce;
        // The request may arrive before the watch events of the pod and of its addresses.
        let present = async {
            loop {
                if let Some(pod) = self.present(&bound)
                    && (!enforced || !addresses(&pod).is_empty())
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let _ = tokio::time::timeout(self.limits.pod, present).await;
        let pod = self.present(&bound);
        let pod = pod.ok_or_else(|| TokenProblem::NoPod(name.clone()))?;
        let addresses = addresses(&pod);
        let elsewhere = !addresses.contains(&from.to_canonical());
        if elsewhere {
            let addresses = match &*addresses {
                [] => "no address yet".to_owned(),
                known => known
                    .iter()
                    .map(IpAddr::to_string)
                    .collect::<Vec<_>>()
                    .join(", "),
            };
            if enforced {
                let pod = name;
                return Err(TokenProblem::Address {
                    pod,
                    addresses,
                    from,
                });
            }
            tracing::warn!(pod = name, addresses, address = %from, "token_review.address_differs");
        }
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        Ok(Authenticated {
            account: bound.account,
            pod: PodOfToken {
                name,
                uid: bound.uid,
                node: node.unwrap_or_default(),
            },
            elsewhere,
        })
    }

    async fn review(&self, token: &str) -> Result<UserInfo, TokenProblem> {
        let asked = tokio::time::timeout(self.limits.timeout, self.ask(token)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "token_review.failed");
                if matches!(error, kube::Error::Api(_)) {
                    self.retry_until_answered();
                }
                return Err(TokenProblem::Unreachable);
            }
            Err(_) => return Err(TokenProblem::Unreachable),
        };
        if answer.authenticated != Some(true) {
            let why: String = answer.error.unwrap_or_default().chars().take(300).collect();
            return Err(TokenProblem::Refused(why));
        }
        // A cluster without support for audiences accepts any token.
        let audiences = answer.audiences.unwrap_or_default();
        if !audiences.iter().any(|audience| audience == names::AUDIENCE) {
            return Err(TokenProblem::Audience);
        }
        Ok(answer.user.unwrap_or_default())
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, kube::Error> {
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let question = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![names::AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        match api.create(&PostParams::default(), &question).await {
            Ok(answer) => {
                self.contact.set_problem(CALL, None);
                Ok(answer.status.unwrap_or_default())
            }
            Err(error) => {
                if let kube::Error::Api(status) = &error
                    && is_refusal(status)
                {
                    self.contact.set_problem_of(CALL, "called", status);
                }
                Err(error)
            }
        }
    }

    /// Reviews a dummy token until the cluster answers. Pods may not request certificates for hours, and a problem that a
    /// missing permission caused must not be reported for longer than it exists.
    fn retry_until_answered(&self) {
        if self.retrying.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(this.limits.retry).await;
                let asked = tokio::time::timeout(this.limits.timeout, this.ask("dummy"));
                if let Ok(Ok(_)) = asked.await {
                    break;
                }
            }
            this.retrying.store(false, Ordering::Relaxed);
        });
    }

    /// The pod, if it exists with this uid, runs as the service account of the token, and has not ended.
    fn present(&self, bound: &Bound) -> Option<Arc<Pod>> {
        let reference = kube::runtime::reflector::ObjectRef::new(&bound.name)
            .within(bound.account.namespace.as_str());
        let pod = self.pods.get(&reference)?;
        let same = pod.metadata.uid.as_deref() == Some(&bound.uid);
        let account = pod.spec.as_ref()?.service_account_name.as_deref();
        let account = account.unwrap_or("default");
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let ended = matches!(phase, Some("Succeeded" | "Failed"));
        let right = same && !ended && account == bound.account.service_account.as_str();
        right.then_some(pod)
    }
}

/// The addresses of a pod that it has so far.
fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let all = status.pod_ips.iter().flatten().map(|one| &one.ip);
    let all = all.chain(&status.pod_ip);
    let mut all: Vec<IpAddr> = all
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .map(|address| address.to_canonical())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A pod whose token was authenticated.
#[derive(Debug)]
pub(crate) struct Authenticated {
    pub(crate) account: WorkloadId,
    pub(crate) pod: PodOfToken,
    /// Whether the request came from an address that is not the pod's.
    pub(crate) elsewhere: bool,
}

/// The pod that a token is bound to, for the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PodOfToken {
    /// Namespace and name.
    pub(crate) name: String,
    pub(crate) uid: String,
    /// The cluster's node that it runs on.
    pub(crate) node: String,
}

/// Three parts of base64url: untrusted bytes are checked before they are sent to the cluster.
pub(crate) fn is_token(text: &str) -> bool {
    let right = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.len() <= MAX_BYTES && text.bytes().all(right) && text.split('.').count() == 3
}

/// The pod and service account that a token is bound to.
pub(crate) struct Bound {
    pub(crate) account: WorkloadId,
    pub(crate) name: String,
    pub(crate) uid: String,
}

pub(crate) fn bound(user: &UserInfo) -> Result<Bound, TokenProblem> {
    let username = user.username.as_deref().unwrap_or_default();
    let account = username
        .strip_prefix("system:serviceaccount:")
        .and_then(|account| account.split_once(':'))
        .and_then(|(namespace, account)| {
            Some(WorkloadId {
                namespace: namespace.parse().ok()?,
                service_account: account.parse().ok()?,
            })
        });
    let account =
        account.ok_or_else(|| TokenProblem::NoAccount(username.chars().take(300).collect()))?;
    let extra = |key: &str| {
        let values = user.extra.as_ref()?.get(key)?;
        match values.as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        }
    };
    let name = extra("authentication.kubernetes.io/pod-name");
    let uid = extra("authentication.kubernetes.io/pod-uid");
    match (name, uid) {
        (Some(name), Some(uid)) => Ok(Bound { account, name, uid }),
        _ => Err(TokenProblem::Unbound),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn reviewer(contact: &Contact) -> Reviewer {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let (pods, _) = kube::runtime::reflector::store();
        let limits = TokenReviewLimits::default();
        Reviewer::new(
            client,
            pods,
            contact.clone(),
            limits,
            PodAddressCheck::Enforce,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_cluster_counts_as_unreachable_after_half_a_minute_without_an_answer() {
        let contact = Contact::default();
        let reviewer = reviewer(&contact);
        assert!(!reviewer.is_unreachable());
        for _ in 0..2 {
            contact.unreachable("no answer");
            assert!(!reviewer.is_unreachable(), "one unanswered call");
            tokio::time::advance(Duration::from_millis(29_999)).await;
            // More failures do not begin the outage again.
            contact.unreachable("no answer");
            assert!(!reviewer.is_unreachable());
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(reviewer.is_unreachable());
            contact.answered();
            assert!(!reviewer.is_unreachable());
        }
    }

    #[tokio::test]
    async fn what_is_not_a_token_is_refused_without_a_call() {
        let reviewer = reviewer(&Contact::default());
        let long = format!("{}.a.a", "a".repeat(MAX_BYTES));
        for token in ["", "a", "a.b", "a.b.c.d", "a.b.c\n", "a.b.é", &long] {
            let problem = reviewer.authenticate(token, LOCAL).await.unwrap_err();
            assert_eq!(problem, TokenProblem::Malformed, "{token}");
        }
        // Nothing listens at the address of the API server.
        let called = reviewer.authenticate("a.b.c", LOCAL).await.unwrap_err();
        assert_eq!(called, TokenProblem::Unreachable);
    }
}
