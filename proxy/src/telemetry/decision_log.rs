//! The last decisions with their facts, for `merlon explain`.

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

use crate::{limits::Limits, protocol::denial::Denial};

/// A bounded ring of decisions, shared by all workers. Writers do not wait: each takes a number and overwrites a slot.
#[derive(Debug)]
pub struct DecisionLog {
    process: u32,
    next: AtomicU64,
    slots: Box<[ArcSwapOption<RecordedDecision>]>,
}

/// The id of a decision, which the response contains: `1a2b3c4d-0g5`.
///
/// Eight hexadecimal digits identify the process (first digits of the SHA-256 of its node id); the rest counts its decisions
/// in Crockford's base 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DecisionId {
    process: u32,
    sequence: u64,
}

/// The record of one decision.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDecision {
    /// The id.
    pub id: DecisionId,
    /// The input of the policies; absent if the request was refused before its service was known.
    #[serde(flatten)]
    pub evidence: Option<DecisionFacts>,
    /// The request in the fields of the access log; for refusals only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<RequestSummary>,
    /// The result.
    pub outcome: Outcome,
}

/// Everything that is needed to reproduce a decision.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionFacts {
    /// The facts that policies can read.
    pub facts: RecordedFacts,
    /// The service at that time.
    pub service: Arc<InboundService>,
    /// The mesh settings at that time.
    pub mesh: Arc<MeshState>,
    /// The version of the snapshot that was used.
    pub snapshot: Version,
}

/// A refused request, in the fields of the access log.
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
    /// The remote address of the socket.
    pub src_address: SocketAddr,
    /// Service and port, or host and port outside the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<String>,
    /// `http/1.1`, `h2` or `tcp`.
    pub protocol: &'static str,
    /// The method; none if the head could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// `Host` or `:authority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The path without the query; at most 1,024 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// The result of a request, in the fields of the access log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub struct Outcome {
    /// HTTP status of a refusal; 0 if the request was permitted.
    pub status: u16,
    /// Stable reason code of a refusal, such as `authz.denied`; none if the request was permitted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The policy that decided, such as `shop/orders#read-own`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The message in the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Details for operators that are not in the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The position in the request, for a validation error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

impl Outcome {
    /// Permitted by this policy.
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
    pub fn new(node_id: &str, limits: &Limits) -> Self {
        let prefix = merlon_api::decision_prefix(node_id);
        Self {
            process: u32::from_str_radix(&prefix, 16).unwrap_or_default(),
            next: AtomicU64::new(0),
            slots: (0..limits.decisions)
                .map(|_| ArcSwapOption::empty())
                .collect(),
        }
    }

    /// The id of the next decision. Every request has one, also if its facts are not kept.
    pub fn next_id(&self) -> DecisionId {
        DecisionId {
            process: self.process,
            sequence: self.next.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Stores a decision under an id from [`DecisionLog::next_id`]; it replaces the one that is [`Limits::decisions`] ids
    /// older.
    pub fn record(&self, decision: RecordedDecision) {
        if let Some(slot) = self.slot(decision.id.sequence) {
            slot.store(Some(Arc::new(decision)));
        }
    }

    /// Stores a refusal, with the evidence that was stored under its id before, if any.
    pub(crate) fn refuse(&self, id: DecisionId, asked: RequestSummary, denial: &Denial) {
        let evidence = self.find(id).and_then(|known| known.evidence.clone());
        self.record(RecordedDecision {
            id,
            evidence,
            asked: Some(asked),
            outcome: Outcome::from(denial),
        });
    }

    /// The decision with this id, if it is still stored.
    pub fn find(&self, id: DecisionId) -> Option<Arc<RecordedDecision>> {
        let found = self.slot(id.sequence)?.load_full()?;
        (found.id == id).then_some(found)
    }

    fn slot(&self, sequence: u64) -> Option<&ArcSwapOption<RecordedDecision>> {
        let place = usize::try_from(sequence)
            .ok()?
            .checked_rem(self.slots.len())?;
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
#[error("a decision id is eight hexadecimal digits, a hyphen and at least three letters or digits")]
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

/// Counts the permits that were recorded in the current second.
#[derive(Debug)]
pub(crate) struct Recorder {
    per_second: u32,
    second: Cell<Option<Instant>>,
    kept: Cell<u32>,
}

impl Recorder {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            per_second: limits.recorded_permits,
            second: Cell::default(),
            kept: Cell::default(),
        }
    }

    pub(crate) fn may_keep(&self, now: Instant) -> bool {
        let same_second = self
            .second
            .get()
            .is_some_and(|start| now.saturating_duration_since(start) < Duration::from_secs(1));
        if !same_second {
            self.second.set(Some(now));
            self.kept.set(0);
        }
        self.kept.set(self.kept.get() + 1);
        self.kept.get() <= self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_a_round_trip() {
        let log = DecisionLog::new("node-1", &Limits::default());
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
    fn an_invalid_id_is_rejected() {
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
