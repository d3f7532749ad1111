//! Destinations outside the mesh that the local program called, for operators who plan to deny them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use serde_json::{Value, json};

/// Maximum number of listed destinations; of further ones only the calls are counted. A program that scans addresses must
/// not exhaust the proxy's memory.
const LISTED: usize = 512;

/// Destinations outside the mesh since the start. Costs little without any.
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
    /// Counts a call to a destination: an address or a host with its port.
    pub(crate) fn called(&self, destination: &str, passed: bool, now: Timestamp) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.destinations.contains_key(destination) && seen.destinations.len() >= LISTED {
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

    /// Each destination, and the number of calls to destinations that are not listed.
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
    fn destinations_are_listed_with_the_results_of_their_calls_and_up_to_a_limit() {
        let log = EgressLog::default();
        let now = Timestamp::UNIX_EPOCH;
        log.called("api.example.org:443", true, now);
        log.called("api.example.org:443", false, now);
        for number in 0..2 * LISTED {
            log.called(&format!("192.0.2.1:{number}"), true, now);
        }
        log.called("api.example.org:443", true, now);
        let list = log.list();
        let destinations = list["destinations"].as_array().unwrap();
        assert_eq!(destinations.len(), LISTED);
        assert_eq!(list["otherCalls"], LISTED + 1);
        let api = destinations
            .iter()
            .find(|one| one["destination"] == "api.example.org:443")
            .unwrap();
        assert_eq!((&api["passed"], &api["refused"]), (&json!(2), &json!(1)));
    }
}
