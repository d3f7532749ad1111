//! What the own program called outside the mesh: for who wants to know it before they refuse it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use serde_json::{Value, json};

/// So many destinations are remembered; of more only their calls are counted. A program that scans addresses must not fill
/// our memory.
const REMEMBERED: usize = 512;

/// Destinations outside the mesh since the start. Cheap where there are none.
#[derive(Debug, Default)]
pub struct EgressLog {
    seen: Mutex<EgressEntry>,
}

#[derive(Debug, Default)]
struct EgressEntry {
    destinations: BTreeMap<String, Calls>,
    others: u64,
}

#[derive(Debug, Clone, Copy)]
struct Calls {
    passed: u64,
    refused: u64,
    last: Timestamp,
}

impl EgressLog {
    /// Remembers a call to a destination, an address or a name with its port.
    pub(crate) fn called(&self, destination: &str, passed: bool, now: Timestamp) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.destinations.contains_key(destination) && seen.destinations.len() >= REMEMBERED {
            seen.others += 1;
            return;
        }
        let none = Calls {
            passed: 0,
            refused: 0,
            last: now,
        };
        let calls = seen
            .destinations
            .entry(destination.to_owned())
            .or_insert(none);
        match passed {
            true => calls.passed += 1,
            false => calls.refused += 1,
        }
        calls.last = now;
    }

    /// For people: each destination, and how many calls went to those that are not remembered.
    pub(crate) fn list(&self) -> Value {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let destinations = seen.destinations.iter().map(|(destination, calls)| {
            json!({
                "destination": destination,
                "passed": calls.passed,
                "refused": calls.refused,
                "last": calls.last,
            })
        });
        json!({ "destinations": destinations.collect::<Vec<_>>(), "otherCalls": seen.others })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_listed_with_what_became_of_the_calls_and_never_without_end() {
        let outside = EgressLog::default();
        let now = Timestamp::UNIX_EPOCH;
        outside.called("api.example.org:443", true, now);
        outside.called("api.example.org:443", false, now);
        for number in 0..2 * REMEMBERED {
            outside.called(&format!("192.0.2.1:{number}"), true, now);
        }
        outside.called("api.example.org:443", true, now);
        let list = outside.list();
        let destinations = list["destinations"].as_array().unwrap();
        assert_eq!(destinations.len(), REMEMBERED);
        assert_eq!(list["otherCalls"], REMEMBERED + 1);
        let api = destinations
            .iter()
            .find(|one| one["destination"] == "api.example.org:443")
            .unwrap();
        assert_eq!((&api["passed"], &api["refused"]), (&json!(2), &json!(1)));
    }
}
