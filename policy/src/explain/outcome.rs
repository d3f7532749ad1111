//! Whether a policy holds, and why not.

use serde::{Deserialize, Serialize};

use crate::matcher::Verdict;

/// Whether a policy holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum PolicyOutcome {
    /// It holds.
    Holds,
    /// Its scope does not match the request.
    OutOfScope {
        /// `principal`, `action` or `resource`.
        part: String,
        /// The constraint, as written in the policy.
        wants: String,
        /// The value in the request.
        saw: String,
    },
    /// A condition is false.
    ConditionFalse {
        /// The first part of the condition that is false, as Cedar prints it.
        condition: String,
        /// The values it was evaluated on, where they are simple.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        saw: Option<String>,
    },
    /// It could not be evaluated: such a permit is ignored, such a forbid denies.
    #[serde(rename = "errs")]
    Error {
        /// What went wrong.
        error: String,
    },
}

impl From<(Verdict, Option<String>)> for PolicyOutcome {
    /// The outcome without the reason why a policy does not hold.
    fn from((verdict, error): (Verdict, Option<String>)) -> Self {
        match verdict {
            Verdict::Holds => Self::Holds,
            Verdict::Error => Self::Error {
                error: error.unwrap_or_else(|| "the policy cannot be evaluated".to_owned()),
            },
            Verdict::DoesNotHold => Self::ConditionFalse {
                condition: "the condition of the policy".to_owned(),
                saw: None,
            },
        }
    }
}
