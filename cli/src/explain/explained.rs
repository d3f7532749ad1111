//! An explained decision, as data.

use merlon_policy::explain::Explanation;

use crate::control_plane::RecordedDecision;

/// A decision, explained.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(super) id: String,
    pub(super) record: RecordedDecision,
    pub(super) verdict: Verdict,
    /// The result of the policies; absent if the service was not known.
    pub(super) policies: Option<PolicyResults>,
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The policies permitted it, and no other check refused it.
    Allowed,
    /// The policies denied it.
    Denied,
    /// A check refused it before the policies were evaluated.
    RefusedBefore,
    /// The policies permitted it, and a later check refused it.
    RefusedAfter,
    /// Nothing refused it; the upstream failed.
    Failed,
}

impl Verdict {
    pub(super) fn of(record: &RecordedDecision) -> Self {
        let decided = record
            .facts
            .as_ref()
            .and_then(|facts| facts.decided.as_ref());
        match (&record.decision.outcome.reason, decided) {
            (_, Some(decided)) if !decided.allowed => Self::Denied,
            (None, _) => Self::Allowed,
            (Some(reason), _) if reason.starts_with("upstream.") => Self::Failed,
            (Some(_), Some(_)) => Self::RefusedAfter,
            (Some(_), None) => Self::RefusedBefore,
        }
    }

    pub(super) const fn decider(self) -> &'static str {
        match self {
            Self::Allowed | Self::Denied => "policies",
            Self::RefusedBefore | Self::RefusedAfter => "check",
            Self::Failed => "upstream",
        }
    }

    /// Whether the policies were evaluated.
    pub(super) const fn reached_policies(self) -> bool {
        !matches!(self, Self::RefusedBefore)
    }
}

/// The results of the recorded facts under the policies of then and of today.
#[derive(Debug)]
pub(super) struct PolicyResults {
    pub(super) then: Explanation,
    pub(super) today: Today,
}

/// The result of the same request under the policies of today.
#[derive(Debug)]
pub(super) enum Today {
    /// The policies have not changed.
    Same,
    Other(Explanation),
    /// The service is no longer in the mesh.
    Gone,
    Unknown(String),
}

impl Explained {
    /// The result of the policies at the time; `None` if they were not evaluated.
    pub(crate) fn then(&self) -> Option<&Explanation> {
        let policies = self
            .policies
            .as_ref()
            .filter(|_| self.verdict.reached_policies());
        policies.map(|policies| &policies.then)
    }
}
