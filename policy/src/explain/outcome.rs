//! Whether a policy holds, and why not.

use serde::{Deserialize, Serialize};

use crate::matcher::Verdict;

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

impl From<(Verdict, Option<String>)> for PolicyOutcome {
    /// What is known of a verdict alone; why it does not hold is for others to find.
    fn from((verdict, error): (Verdict, Option<String>)) -> Self {
        match verdict {
            Verdict::Holds => Self::Holds,
            Verdict::Errs => Self::Errs {
                error: error.unwrap_or_else(|| "the policy cannot be evaluated".to_owned()),
            },
            Verdict::DoesNot => Self::ConditionFalse {
                condition: "the condition of the policy".to_owned(),
                saw: None,
            },
        }
    }
}
