//! The last decisions with their facts, so that people can ask why.

use std::{
    cell::Cell,
    fmt,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use merlon_config::snapshot::{InboundService, MeshState, PolicyName, Version};
use merlon_policy::record::RecordedFacts;
use serde::Serialize;

use crate::protocol::denial::Denial;

/// How many decisions a process remembers.
pub const CAPACITY: usize = 4_096;

/// A bounded ring of decisions, shared by all workers. Nobody waits: a number is taken, a slot is overwritten.
#[derive(Debug)]
pub struct DecisionLog {
    process: u32,
    next: AtomicU64,
    slots: Box<[ArcSwapOption<RecordedDecision>]>,
}

/// What leads from an answer to its decision: `1a2b3c4d-0g5`.
///
/// Eight hexadecimal digits name the process (first digits of the SHA-256 of its node id), the rest counts its decisions
/// in Crockford's base 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecisionId {
    process: u32,
    sequence: u64,
}

/// What is remembered of one decision.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDecision {
    /// Its name.
    pub id: DecisionId,
    /// With what policies decided, or would have; absent where nobody got as far as knowing which service is meant.
    #[serde(flatten)]
    pub evidence: Option<DecisionFacts>,
    /// What the request was, as the access log has it; of a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<RequestSummary>,
    /// What became of it.
    pub outcome: Outcome,
}

/// All that is needed to make a decision again.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionFacts {
    /// What policies could have asked.
    pub facts: RecordedFacts,
    /// The service as it was then.
    pub service: Arc<InboundService>,
    /// The mesh as it was then.
    pub mesh: Arc<MeshState>,
    /// The snapshot that decided.
    pub snapshot: Version,
}

/// A refused request, in the names of the access log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub struct RequestSummary {
    /// When the head was read.
    pub ts: Timestamp,
    /// `inbound`, `outbound` or `gateway`.
    pub direction: &'static str,
    /// SPIFFE ID of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<String>,
    /// The socket's other end.
    pub src_address: SocketAddr,
    /// Service and port, or host and port outside the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<String>,
    /// `http/1.1`, `h2` or `tcp`.
    pub protocol: &'static str,
    /// The method; none where the head could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// `Host` or `:authority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Without query; the first 1,024 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// What became of a request, in the names of the access log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub struct Outcome {
    /// HTTP status of a refusal; 0 when it was let through.
    pub status: u16,
    /// Stable reason code of a refusal, as `authz.denied`; none when it was let through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The policy that decided, as `shop/orders#read-own`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What the caller was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What the operator should know beyond it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Where in the request; for a check of its form.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

impl Outcome {
    /// It was let through, by this policy.
    pub(crate) fn permitted(policy: &PolicyName) -> Self {
        Self {
            policy: Some(policy.to_string()),
            ..Self::default()
        }
    }
}

impl From<&Denial> for Outcome {
    fn from(denial: &Denial) -> Self {
        let refusal = denial.refusal();
        Self {
            status: refusal.status.as_u16(),
            reason: Some(refusal.reason),
            policy: refusal.policy.map(ToString::to_string),
            detail: Some(refusal.detail.to_string()),
            cause: refusal.cause.map(|cause| cause.to_string()),
            place: refusal.place.map(str::to_owned),
        }
    }
}

impl DecisionLog {
    /// An empty ring for the process with this node id.
    pub fn new(node_id: &str) -> Self {
        let prefix = merlon_api::decision_prefix(node_id);
        Self {
            process: u32::from_str_radix(&prefix, 16).unwrap_or_default(),
            next: AtomicU64::new(0),
            slots: (0..CAPACITY).map(|_| ArcSwapOption::empty()).collect(),
        }
    }

    /// The next decision's name: every request has one, also when its facts are not kept.
    pub fn next_id(&self) -> DecisionId {
        DecisionId {
            process: self.process,
            sequence: self.next.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Keeps a decision under the id that [`DecisionLog::next_id`] gave; the one 4,096 ids older is forgotten.
    pub fn record(&self, decision: RecordedDecision) {
        if let Some(slot) = self.slot(decision.id.sequence) {
            slot.store(Some(Arc::new(decision)));
        }
    }

    /// Keeps a refusal: with the evidence that was kept under its id before, if any.
    pub(crate) fn refuse(&self, id: DecisionId, asked: RequestSummary, denial: &Denial) {
        let evidence = self.find(id).and_then(|known| known.evidence.clone());
        self.record(RecordedDecision {
            id,
            evidence,
            asked: Some(asked),
            outcome: Outcome::from(denial),
        });
    }

    /// The decision of this name, while it is remembered.
    pub fn find(&self, id: DecisionId) -> Option<Arc<RecordedDecision>> {
        let found = self.slot(id.sequence)?.load_full()?;
        (found.id == id).then_some(found)
    }

    fn slot(&self, sequence: u64) -> Option<&ArcSwapOption<RecordedDecision>> {
        let place = usize::try_from(sequence).ok()? % self.slots.len();
        self.slots.get(place)
    }
}

/// Digits, then letters without `i`, `l`, `o`, `u`.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        write!(f, "{:08x}-", self.process)?;
        let significant = (64 - self.sequence.leading_zeros()).div_ceil(5).max(3);
        (0..significant).rev().try_for_each(|place| {
            let five = (self.sequence >> (place * 5)) & 31;
            let digit = usize::try_from(five).ok().and_then(|five| DIGITS.get(five));
            f.write_char(char::from(*digit.unwrap_or(&b'0')))
        })
    }
}

/// Not a decision id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a decision id is eight hexadecimal digits, a hyphen and three or more letters and digits")]
pub struct DecisionIdError;

impl FromStr for DecisionId {
    type Err = DecisionIdError;

    fn from_str(text: &str) -> Result<Self, DecisionIdError> {
        let (process, sequence) = text.split_once('-').ok_or(DecisionIdError)?;
        if process.len() != 8 || !(3..=13).contains(&sequence.len()) {
            return Err(DecisionIdError);
        }
        let number = sequence.bytes().try_fold(0_u64, |number, byte| {
            let digit = DIGITS.iter().position(|digit| *digit == byte)?;
            let digit = u64::try_from(digit).ok()?;
            number.checked_mul(32)?.checked_add(digit)
        });
        Ok(Self {
            process: u32::from_str_radix(process, 16).map_err(|_| DecisionIdError)?,
            sequence: number.ok_or(DecisionIdError)?,
        })
    }
}

impl Serialize for DecisionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How many permits one worker records in a second.
pub(crate) const KEPT_PER_SECOND: u32 = 50;

/// Counts the permits that were recorded in this second.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    second: Cell<Option<Instant>>,
    kept: Cell<u32>,
}

impl Recorder {
    pub(crate) fn may_keep(&self, now: Instant) -> bool {
        let fresh = self
            .second
            .get()
            .is_some_and(|begun| now.saturating_duration_since(begun) < Duration::from_secs(1));
        if !fresh {
            self.second.set(Some(now));
            self.kept.set(0);
        }
        self.kept.set(self.kept.get() + 1);
        self.kept.get() <= KEPT_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_as_it_was_written() {
        let log = DecisionLog::new("node-1");
        for sequence in [0, 31, 32, 32_767, 32_768, u64::MAX] {
            let id = DecisionId {
                process: log.process,
                sequence,
            };
            assert_eq!(id.to_string().parse(), Ok(id), "{id}");
        }
        assert!(
            log.next_id()
                .to_string()
                .starts_with(&format!("{}-", merlon_api::decision_prefix("node-1")))
        );
    }

    #[test]
    fn what_is_not_an_id_is_refused() {
        for text in [
            "",
            "1a2b3c4d",
            "1a2b3c4d-",
            "1a2b3c4d-0u1",
            "x-000",
            "1a2b3c4d-zzzzzzzzzzzzz",
        ] {
            assert_eq!(text.parse::<DecisionId>(), Err(DecisionIdError), "{text}");
        }
    }
}
