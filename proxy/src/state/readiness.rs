//! Readiness of the process, with reasons.

use std::sync::Mutex;

use merlon_config::live::Live;
use serde::Serialize;

/// The current reasons for not being ready. Without any, the process is ready.
#[derive(Debug)]
pub struct Readiness {
    reasons: Live<Vec<NotReady>>,
    // Serializes writers; readers use the live value only.
    writer: Mutex<()>,
}

/// One reason for not being ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotReady {
    /// The stable code.
    pub code: Unready,
    /// Text for operators.
    pub message: String,
    /// Distinguishes several instances of one reason, such as the listeners of several workers.
    #[serde(skip)]
    part: String,
}

/// Reasons for not being ready, the most severe first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unready {
    /// The shutdown has started.
    Draining,
    /// The certificate has expired.
    TlsExpired,
    /// The certificate is not valid yet, by this machine's clock.
    TlsNotYetValid,
    /// No certificate yet.
    NoIdentity,
    /// No snapshot yet.
    NoSnapshot,
    /// A secret that the program requires has not been read yet.
    NoSecret,
    /// A listener of the snapshot could not be bound.
    Listener,
}

impl Unready {
    /// The stable code in `/ready`, in refusals and in the log.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Draining => "drain",
            Self::TlsExpired => "tls.expired",
            Self::TlsNotYetValid => "tls.not_yet_valid",
            Self::NoIdentity => "tls.no_identity",
            Self::NoSnapshot => "config.unavailable",
            Self::NoSecret => "secret.unavailable",
            Self::Listener => "listener.failed",
        }
    }
}

impl Serialize for Unready {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            reasons: Live::new(Vec::new()),
            writer: Mutex::new(()),
        }
    }
}

impl Readiness {
    /// Whether there is no reason.
    pub fn is_ready(&self) -> bool {
        self.reasons.load().is_empty()
    }

    /// All reasons, the most severe first.
    pub fn reasons(&self) -> Vec<NotReady> {
        let mut all = self.reasons.load().as_ref().clone();
        // Workers report the same reason with the same message.
        all.dedup_by(|one, other| (one.code, &one.message) == (other.code, &other.message));
        all
    }

    /// The most severe reason.
    pub fn most_severe(&self) -> Option<Unready> {
        self.reasons.load().first().map(|reason| reason.code)
    }

    /// Adds a reason.
    pub fn add_reason(&self, code: Unready, message: impl Into<String>) {
        self.add_part_reason(code, "", message.into());
    }

    /// Adds a reason for one of several parts. True if no other part has the same reason and message.
    pub(crate) fn add_part_reason(&self, code: Unready, part: &str, message: String) -> bool {
        let mut new = false;
        self.change(|reasons| {
            new = !reasons
                .iter()
                .any(|reason| reason.code == code && reason.message == message);
            reasons.retain(|reason| reason.code != code || reason.part != part);
            let part = part.to_owned();
            reasons.push(NotReady {
                code,
                message,
                part,
            });
            reasons
                .sort_by(|one, other| (one.code, &one.message).cmp(&(other.code, &other.message)));
        });
        new
    }

    /// Removes a reason.
    pub fn remove_reason(&self, code: Unready) {
        self.remove_part_reason(code, "");
    }

    /// Removes a reason of one part. True if no other part has the same reason and message.
    pub(crate) fn remove_part_reason(&self, code: Unready, part: &str) -> bool {
        let mut last = false;
        self.change(|reasons| {
            let of = |reason: &NotReady| reason.code == code && reason.part == part;
            let gone = reasons.iter().position(of).map(|at| reasons.remove(at));
            last = gone.is_some_and(|gone| {
                !reasons
                    .iter()
                    .any(|reason| reason.code == code && reason.message == gone.message)
            });
        });
        last
    }

    /// Resolves on every change.
    pub fn watch(&self) -> tokio::sync::watch::Receiver<u64> {
        self.reasons.watch()
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<NotReady>)) {
        // A writer that panicked left no partial change: the value is published as a whole.
        let _writer = self
            .writer
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let old = self.reasons.load_full();
        let mut new = old.as_ref().clone();
        edit(&mut new);
        if new != *old {
            self.reasons.publish(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_severe_reason_comes_first_and_without_reasons_it_is_ready() {
        let health = Readiness::default();
        health.add_reason(Unready::NoSnapshot, "none yet");
        health.add_reason(Unready::TlsExpired, "at noon");
        assert_eq!(health.most_severe(), Some(Unready::TlsExpired));
        health.remove_reason(Unready::TlsExpired);
        assert_eq!(health.most_severe(), Some(Unready::NoSnapshot));
        health.remove_reason(Unready::NoSnapshot);
        assert!(health.is_ready());
    }

    #[test]
    fn a_part_that_recovers_leaves_the_reasons_of_the_others() {
        let health = Readiness::default();
        let lack = |part| health.add_part_reason(Unready::Listener, part, "port 80".to_owned());
        assert!(lack("worker 0"));
        assert!(!lack("worker 1"), "it was reported already");
        assert_eq!(health.reasons().len(), 1);
        assert!(!health.remove_part_reason(Unready::Listener, "worker 0"));
        assert!(!health.is_ready());
        assert!(health.remove_part_reason(Unready::Listener, "worker 1"));
        assert!(health.is_ready());
    }
}
