//! A pod's own token as evidence of who it is.

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

/// A pod's token has about 900 bytes.
const MOST_BYTES: usize = 16 << 10;
/// What `/ready` calls it when it is refused.
const QUESTION: &str = "tokenreviews";
/// For the question.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a cluster is away before certificates renew themselves. They have half of their life for it.
const AWAY: Duration = Duration::from_secs(30);
/// Between questions after one that was refused.
const AGAIN: Duration = Duration::from_secs(10);
/// A pod may ask before we have been told of it.
const APPEARS: Duration = Duration::from_secs(5);

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenProblem {
    #[error("this is no service account token")]
    Malformed,
    #[error("the cluster does not take this token: {0}")]
    Refused(String),
    #[error("the token is not for the audience `{}`", names::AUDIENCE)]
    Audience,
    #[error("the token is `{0}`'s, and that is no service account")]
    NoAccount(String),
    #[error("the token is bound to no pod: a projected service account token is")]
    Unbound,
    #[error("the pod `{0}` that the token is bound to is not there, or has no proxy in it")]
    NoPod(String),
    #[error("the cluster cannot be asked at the moment: try again")]
    Away,
}

impl TokenProblem {
    /// Whether it may pass.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Away)
    }

    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Away => "cluster",
            Self::Audience => "token_audience",
            Self::Unbound | Self::NoPod(_) => "token_pod",
            Self::Malformed | Self::Refused(_) | Self::NoAccount(_) => "token_refused",
        }
    }
}

/// Asks the cluster whose token it is.
#[derive(Clone)]
pub(crate) struct Reviewer {
    client: Client,
    pods: Store<Pod>,
    contact: Contact,
    /// Whether it is being asked again.
    asking: Arc<AtomicBool>,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").finish_non_exhaustive()
    }
}

impl Reviewer {
    pub(crate) fn new(client: Client, pods: Store<Pod>, contact: Contact) -> Self {
        Self {
            client,
            pods,
            contact,
            asking: Arc::default(),
        }
    }

    /// Whether the cluster has not answered for a while. A watch that breaks, or one question that gets no answer, is no
    /// reason to do without it.
    pub(crate) fn is_away(&self) -> bool {
        self.contact.away_for().is_some_and(|away| away >= AWAY)
    }

    /// Whom a token is for: the service account of a pod that is there.
    pub(crate) async fn look(&self, token: &str) -> Result<WorkloadId, TokenProblem> {
        // Three parts of base64url, before a stranger's bytes go on to the cluster.
        let right = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if token.len() > MOST_BYTES || !token.bytes().all(right) || token.split('.').count() != 3 {
            return Err(TokenProblem::Malformed);
        }
        let user = self.review(token).await?;
        let pod = bound(&user)?;
        let present = async {
            loop {
                if self.account_of(&pod).is_some() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let name = format!("{}/{}", pod.account.namespace, pod.name);
        tokio::time::timeout(APPEARS, present)
            .await
            .map_err(|_| TokenProblem::NoPod(name))?;
        Ok(pod.account)
    }

    async fn review(&self, token: &str) -> Result<UserInfo, TokenProblem> {
        let asked = tokio::time::timeout(PATIENCE, self.ask(token)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "token_review.failed");
                if matches!(error, kube::Error::Api(_)) {
                    self.ask_again();
                }
                return Err(TokenProblem::Away);
            }
            Err(_) => return Err(TokenProblem::Away),
        };
        if answer.authenticated != Some(true) {
            let why: String = answer.error.unwrap_or_default().chars().take(300).collect();
            return Err(TokenProblem::Refused(why));
        }
        // A cluster that knows no audiences says yes to any.
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
                self.contact.clear_problem(QUESTION);
                Ok(answer.status.unwrap_or_default())
            }
            Err(error) => {
                if let kube::Error::Api(status) = &error
                    && is_refusal(status)
                {
                    self.contact.set_problem_of(QUESTION, "asked", status);
                }
                Err(error)
            }
        }
    }

    /// Asks about nobody's token until that is answered, for pods may not ask for hours, and what was refused for lack of a
    /// right must not be told for longer than it is so.
    fn ask_again(&self) {
        if self.asking.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(AGAIN).await;
                let asked = tokio::time::timeout(PATIENCE, this.ask("nobody's"));
                if let Ok(Ok(_)) = asked.await {
                    break;
                }
            }
            this.asking.store(false, Ordering::Relaxed);
        });
    }

    /// The account of a pod that is there, has this very uid and runs as the token says.
    fn account_of(&self, bound: &Bound) -> Option<()> {
        let reference = kube::runtime::reflector::ObjectRef::new(&bound.name)
            .within(bound.account.namespace.as_str());
        let pod = self.pods.get(&reference)?;
        let same = pod.metadata.uid.as_deref() == Some(&bound.uid);
        let account = pod.spec.as_ref()?.service_account_name.as_deref();
        let account = account.unwrap_or("default");
        (same && account == bound.account.service_account.as_str()).then_some(())
    }
}

/// What a token is bound to.
struct Bound {
    account: WorkloadId,
    name: String,
    uid: String,
}

fn bound(user: &UserInfo) -> Result<Bound, TokenProblem> {
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
