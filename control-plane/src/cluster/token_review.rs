//! Authenticates a pod by its service account token.

use std::{
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
use merlon_config::name::WorkloadId;

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
    ) -> Self {
        Self {
            client,
            pods,
            contact,
            limits,
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

    /// The service account of a token whose pod exists.
    pub(crate) async fn authenticate(&self, token: &str) -> Result<WorkloadId, TokenProblem> {
        if !is_token(token) {
            return Err(TokenProblem::Malformed);
        }
        let user = self.review(token).await?;
        let pod = bound(&user)?;
        let present = async {
            loop {
                if self.present(&pod).is_some() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let name = format!("{}/{}", pod.account.namespace, pod.name);
        tokio::time::timeout(self.limits.pod, present)
            .await
            .map_err(|_| TokenProblem::NoPod(name))?;
        Ok(pod.account)
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

    /// `Some` if the pod exists with this uid and runs as the service account of the token.
    fn present(&self, bound: &Bound) -> Option<()> {
        let reference = kube::runtime::reflector::ObjectRef::new(&bound.name)
            .within(bound.account.namespace.as_str());
        let pod = self.pods.get(&reference)?;
        let same = pod.metadata.uid.as_deref() == Some(&bound.uid);
        let account = pod.spec.as_ref()?.service_account_name.as_deref();
        let account = account.unwrap_or("default");
        (same && account == bound.account.service_account.as_str()).then_some(())
    }
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
    use super::*;

    fn reviewer(contact: &Contact) -> Reviewer {
        let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(config).unwrap();
        let (pods, _) = kube::runtime::reflector::store();
        Reviewer::new(client, pods, contact.clone(), TokenReviewLimits::default())
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
            let problem = reviewer.authenticate(token).await.unwrap_err();
            assert_eq!(problem, TokenProblem::Malformed, "{token}");
        }
        // Nothing listens at the address of the API server.
        let called = reviewer.authenticate("a.b.c").await.unwrap_err();
        assert_eq!(called, TokenProblem::Unreachable);
    }
}
