//! Whether the process is ready, and if not, why.

use std::sync::Mutex;

use merlon_config::live::Live;
use serde::Serialize;

/// Reasons for not being ready, as they come and go. Ready when there is none.
#[derive(Debug)]
pub struct Readiness {
    reasons: Live<Vec<NotReady>>,
    // Several tasks write; readers take the live value and never this.
    writer: Mutex<()>,
}

/// One reason for not being ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotReady {
    /// Which of the closed set.
    pub code: Unready,
    /// A sentence for people.
    pub message: String,
    /// Which of several that can lack the same: a worker's listener.
    #[serde(skip)]
    part: String,
}

/// What can be missing, the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unready {
    /// The end has begun.
    Draining,
    /// The certificate is past its time.
    TlsExpired,
    /// No certificate yet.
    NoIdentity,
    /// No snapshot yet.
    NoSnapshot,
    /// A secret that the program waits for was not read yet.
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
    /// Whether nothing is missing.
    pub fn is_ready(&self) -> bool {
        self.reasons.load().is_empty()
    }

    /// All that is missing, the gravest first.
    pub fn reasons(&self) -> Vec<NotReady> {
        let mut all = self.reasons.load().as_ref().clone();
        // Workers lack the same in the same words.
        all.dedup_by(|one, other| (one.code, &one.message) == (other.code, &other.message));
        all
    }

    /// The gravest thing that is missing.
    pub fn worst(&self) -> Option<Unready> {
        self.reasons.load().first().map(|reason| reason.code)
    }

    /// Says that something is missing.
    pub fn lack(&self, code: Unready, message: impl Into<String>) {
        self.lack_part(code, "", message.into());
    }

    /// Says that something is missing in one of several parts. True when no part said the same before.
    pub(crate) fn lack_part(&self, code: Unready, part: &str, message: String) -> bool {
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

    /// Says that it is there now.
    pub fn have(&self, code: Unready) {
        self.have_part(code, "");
    }

    /// Says that it is there now in this part. True when no other part said the same.
    pub(crate) fn have_part(&self, code: Unready, part: &str) -> bool {
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
        // A writer that panicked left nothing half done: the value is published whole.
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
    fn the_gravest_reason_comes_first_and_the_last_one_gone_is_ready() {
        let health = Readiness::default();
        health.lack(Unready::NoSnapshot, "none yet");
        health.lack(Unready::TlsExpired, "at noon");
        assert_eq!(health.worst(), Some(Unready::TlsExpired));
        health.have(Unready::TlsExpired);
        assert_eq!(health.worst(), Some(Unready::NoSnapshot));
        health.have(Unready::NoSnapshot);
        assert!(health.is_ready());
    }

    #[test]
    fn a_part_that_is_there_says_nothing_of_the_others() {
        let health = Readiness::default();
        let lack = |part| health.lack_part(Unready::Listener, part, "port 80".to_owned());
        assert!(lack("worker 0"));
        assert!(!lack("worker 1"), "it was said already");
        assert_eq!(health.reasons().len(), 1);
        assert!(!health.have_part(Unready::Listener, "worker 0"));
        assert!(!health.is_ready());
        assert!(health.have_part(Unready::Listener, "worker 1"));
        assert!(health.is_ready());
    }
}
