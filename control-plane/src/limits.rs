//! The times and limits of the control plane, as one value that is passed to every part. The defaults are what production
//! uses; the README and `docs/` state those that users notice.

use std::time::Duration;

use merlon_issuer::VaultTimes;
use merlon_net::{handshakes, http};

/// Defines a group of limits: its fields, their documentation and their defaults.
macro_rules! limits {
    ($(#[$about:meta])* $group:ident { $($(#[$doc:meta])* $field:ident: $kind:ty = $default:expr,)* }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[cfg_attr(debug_assertions, derive(serde::Deserialize))]
        #[cfg_attr(debug_assertions, serde(rename_all = "camelCase", deny_unknown_fields, default))]
        pub struct $group {
            $(
                $(#[$doc])*
                #[cfg_attr(debug_assertions, serde(deserialize_with = "file::value"))]
                pub $field: $kind,
            )*
        }

        impl Default for $group {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// All times and limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(debug_assertions, derive(serde::Deserialize))]
#[cfg_attr(
    debug_assertions,
    serde(rename_all = "camelCase", deny_unknown_fields, default)
)]
pub struct Limits {
    /// The listener for proxies.
    pub proxies: ProxyListenerLimits,
    /// The listener of `/live`, `/ready` and `/metrics`.
    pub admin: AdminLimits,
    /// Discovery streams.
    pub push: PushLimits,
    /// Inspection streams.
    pub inspection: InspectionLimits,
    /// The list of proxies.
    pub registry: RegistryLimits,
    /// `Issue`, and the control plane's own certificate.
    pub issuance: IssuanceLimits,
    /// The database.
    pub store: StoreLimits,
    /// Calls to Vault or OpenBao.
    pub vault: VaultLimits,
    /// Granted secrets.
    pub secrets: SecretLimits,
    /// Watches of the API server.
    pub cluster: ClusterLimits,
    /// The Lease of the leader.
    pub lease: LeaseLimits,
    /// Reviews of pods' tokens.
    pub token_review: TokenReviewLimits,
    /// What the control plane writes to the cluster.
    pub status: StatusLimits,
    /// The admission webhooks.
    pub webhook: WebhookLimits,
}

limits! {
    /// The listener for proxies.
    ProxyListenerLimits {
        /// TLS handshakes at the same time.
        handshakes: usize = 512,
        /// The longest that one handshake may take.
        handshake: Duration = seconds(10),
        /// How often a connection is pinged.
        keepalive: Duration = seconds(20),
        /// How long a pong may take before the connection is closed.
        keepalive_timeout: Duration = seconds(10),
        /// Calls and streams of one connection at the same time: one stream each for discovery and inspection, and a few calls.
        streams: u32 = 16,
        /// The maximum size of an `Issue` request in bytes: a CSR and a token are small.
        issue_bytes: usize = 64 << 10,
        /// The maximum size of an inspection reply in bytes: a configuration dump is larger than any discovery request.
        inspect_bytes: usize = 8 << 20,
    }
}

limits! {
    /// The listener of `/live`, `/ready` and `/metrics`.
    AdminLimits {
        /// Open connections. A new one beyond the limit closes the oldest.
        connections: usize = 128,
        /// How long a request head may take, and how long a connection may be idle.
        head: Duration = seconds(30),
        /// How long a client may take to read a response.
        answer: Duration = seconds(30),
    }
}

limits! {
    /// Discovery streams.
    PushLimits {
        /// Responses that are queued for one proxy, at least 1. Changes in the meantime are sent together afterwards, so a slow
        /// proxy uses bounded memory and delays no other proxy.
        queue: usize = 4,
        /// How often the clock, which may jump, is read for the expiry of the proxy's certificate.
        clock_check: Duration = seconds(60),
        /// How long a manifest waits for a returning proxy to name its destinations.
        hold: Duration = millis(250),
        /// Changes within this time (a directory written file by file, a bundle with a mesh) are sent together.
        coalesce: Duration = millis(10),
        /// How long the status that ends a stream may wait for a place in the queue.
        last_status: Duration = seconds(1),
    }
}

limits! {
    /// Inspection streams.
    InspectionLimits {
        /// Requests that are queued for one proxy, at least 1.
        queue: usize = 16,
        /// How often the clock, which may jump, is read for the expiry of the proxy's certificate.
        clock_check: Duration = seconds(60),
        /// Requests that one proxy has not answered yet. Beyond it, the oldest is dropped.
        pending: usize = 64,
        /// The time-out of a request to a proxy. It is shorter than the time-out of the CLI.
        timeout: Duration = seconds(4),
    }
}

limits! {
    /// The list of proxies.
    RegistryLimits {
        /// How long a disconnected proxy stays in the list.
        retention: Duration = seconds(3_600),
        /// Maximum number of disconnected proxies.
        disconnected: usize = 1_000,
    }
}

limits! {
    /// `Issue`, and the control plane's own certificate. The bursts allow for a deployment or a test of rotation.
    IssuanceLimits {
        /// Attempts that one address without a certificate has at once. Many machines behind one NAT address are allowed.
        address_burst: u32 = 500,
        /// Attempts per second that such an address gets back.
        address_rate: u32 = 50,
        /// Renewals that one identity has at once.
        identity_burst: u32 = 100,
        /// Renewals per second that an identity gets back.
        identity_rate: u32 = 5,
        /// The time-out of one signature.
        sign: Duration = seconds(20),
        /// How long a new pod may take to become a Workload.
        compile: Duration = seconds(5),
        /// The first delay before the control plane requests its own certificate again.
        retry: Duration = seconds(1),
        /// The longest delay before that.
        max_retry: Duration = seconds(300),
        /// How often the clock, which may jump, is read while the control plane waits for the renewal of its certificate.
        clock_check: Duration = seconds(60),
    }
}

limits! {
    /// The database.
    StoreLimits {
        /// How long a call waits while another process has locked the database.
        busy: Duration = seconds(5),
        /// How many certificates the ledger keeps, the newest ones. A row has at most about 1 KiB.
        ledger_rows: u32 = 40_000,
    }
}

limits! {
    /// Calls to Vault or OpenBao.
    VaultLimits {
        /// The time-out of a new connection.
        connect: Duration = VaultTimes::default().connect,
        /// The time-out of one call.
        request: Duration = VaultTimes::default().request,
        /// The longest interval between renewals of the token.
        renewal: Duration = VaultTimes::default().renewal,
        /// The delay after a failed renewal of the token.
        renewal_retry: Duration = VaultTimes::default().renewal_retry,
        /// How long the roots are used before they are read again.
        roots: Duration = VaultTimes::default().roots,
        /// How often the set-up is checked.
        check: Duration = VaultTimes::default().check,
    }
}

limits! {
    /// Granted secrets.
    SecretLimits {
        /// How often each secret is read. Not every Vault server has events to wait for.
        interval: Duration = seconds(5),
        /// The time-out of one read.
        timeout: Duration = seconds(5),
        /// Maximum number of concurrent reads of one namespace, at least 1.
        reads: usize = 4,
        /// Maximum number of concurrent reads of all namespaces, at least 1.
        total_reads: usize = 128,
        /// The same for paths that timed out the last time, which have a limit of their own.
        timed_out_reads: usize = 64,
        /// The delay before a reader that failed is restarted.
        restart: Duration = seconds(30),
    }
}

limits! {
    /// Watches of the API server.
    ClusterLimits {
        /// The time-out of a new connection.
        connect: Duration = seconds(3),
        /// Changes within this time (a `kubectl apply` of a folder, a rolling update) are evaluated together.
        gather: Duration = millis(50),
    }
}

limits! {
    /// The Lease of the leader.
    LeaseLimits {
        /// How long a lease lasts without renewal. At least a second: the Lease states it in seconds.
        duration: Duration = seconds(10),
        /// How often the leader renews, and how often the others try.
        retry: Duration = seconds(2),
        /// A leader that could not renew for this long steps down. It is shorter than `duration`, so the leader steps down
        /// before another replica can take over.
        renew_deadline: Duration = seconds(7),
        /// The time-out of one call.
        timeout: Duration = seconds(3),
    }
}

limits! {
    /// Reviews of pods' tokens.
    TokenReviewLimits {
        /// The time-out of one review.
        timeout: Duration = seconds(5),
        /// How long the cluster must be unreachable before a certificate can be renewed with itself. Half of its lifetime is
        /// left then.
        renewal_after: Duration = seconds(30),
        /// The interval of retries after a review was refused.
        retry: Duration = seconds(10),
        /// How long to wait for the pod: its request may arrive before its watch event.
        pod: Duration = seconds(5),
    }
}

limits! {
    /// What the control plane writes to the cluster.
    StatusLimits {
        /// Events within this time (a change, and the acknowledgements of all proxies) are reported together.
        gather: Duration = millis(150),
        /// Time-out of one call.
        timeout: Duration = seconds(5),
        /// Maximum number of calls at the same time, at least 1.
        calls: usize = 8,
        /// How often a replica publishes its counts without a change.
        counts_renewal: Duration = seconds(15),
        /// The counts of a replica are ignored if they were not renewed for this long.
        counts_max_age: Duration = seconds(45),
        /// How often a failed write of a trust bundle is retried.
        bundle_retry: Duration = seconds(15),
        /// Changes within this time are written to the trust bundles together.
        bundle_gather: Duration = millis(100),
    }
}

limits! {
    /// The admission webhooks.
    WebhookLimits {
        /// TLS handshakes at the same time.
        handshakes: usize = 64,
        /// The longest that one handshake may take.
        handshake: Duration = seconds(5),
        /// Open connections. A new one beyond the limit closes the oldest. An API server handles up to 200 changes at a time
        /// (`--max-mutating-requests-inflight`), each with a connection of its own, and only few of them call a webhook.
        connections: usize = 512,
        /// How long a request head may take, and how long a connection may be idle. Longer than the API server keeps an idle
        /// connection, so the webhook never closes one that is about to be used.
        head: Duration = seconds(120),
        /// How long a client may take to read a response.
        answer: Duration = seconds(10),
        /// Requests of one webhook at a time, at least 1, because any client can connect. A validation compiles the mesh.
        /// Injections have their own limit, so they do not wait for validations.
        requests: usize = 2,
        /// How long a request may take after its body was read. Together with the time-out of the body it is less than the
        /// time-out in the webhook configuration, so the client gets this webhook's message.
        request: Duration = seconds(6),
        /// How long a client may take to send a body. The API server's own time-out is in the webhook configurations.
        body: Duration = seconds(3),
        /// Maximum size of a body in bytes. The cluster stores objects of up to 1.5 MiB, and a request contains one before and
        /// after a change.
        body_bytes: usize = 4 << 20,
        /// Maximum number of JSON values in a body. A parsed value takes about 100 bytes, and the object is copied several
        /// times while it is validated.
        body_values: usize = 400_000,
        /// The size up to which a body is small, in bytes. Nearly all bodies are small.
        small_body_bytes: usize = 256 << 10,
        /// The number of values up to which a body is small.
        small_body_values: usize = 50_000,
        /// Memory for all bodies that are announced as small, in bytes. All others share as much, so large bodies do not delay
        /// small ones.
        bodies_bytes: usize = 32 << 20,
        /// How often the renewal of the certificate is checked.
        check: Duration = seconds(600),
        /// How often the clock, which may jump, is read in between.
        clock_check: Duration = seconds(60),
        /// The delay after a failed request for a certificate.
        retry: Duration = seconds(2),
        /// How long a new root is published before it signs, so that every API server has reloaded the configurations.
        publish: Duration = seconds(60),
        /// The time-out of a call that reads or writes a webhook configuration.
        bundle_timeout: Duration = seconds(5),
        /// The delay after a failed write of a webhook configuration.
        bundle_retry: Duration = seconds(5),
        /// Changes of the cluster within this time are considered together for the endpoint of this replica.
        endpoint_gather: Duration = millis(200),
        /// The delay after a failed write of that endpoint.
        endpoint_retry: Duration = seconds(5),
        /// How often a replica that shuts down reads whether Kubernetes still lists it.
        endpoint_poll: Duration = millis(500),
        /// How long it serves requests after that: nodes learn of it a moment later, and send requests in the meantime.
        linger: Duration = seconds(5),
        /// The longest time from the start of the shutdown until then.
        max_linger: Duration = seconds(15),
    }
}

impl ProxyListenerLimits {
    pub(crate) fn handshakes(&self) -> handshakes::Limits {
        handshakes::Limits {
            at_once: self.handshakes,
            timeout: self.handshake,
        }
    }
}

impl AdminLimits {
    pub(crate) fn connections(&self) -> http::Limits {
        http::Limits {
            connections: self.connections,
            head: self.head,
            answer: self.answer,
        }
    }
}

impl WebhookLimits {
    pub(crate) fn handshakes(&self) -> handshakes::Limits {
        handshakes::Limits {
            at_once: self.handshakes,
            timeout: self.handshake,
        }
    }

    pub(crate) fn connections(&self) -> http::Limits {
        http::Limits {
            connections: self.connections,
            head: self.head,
            answer: self.answer,
        }
    }
}

impl From<VaultLimits> for VaultTimes {
    fn from(limits: VaultLimits) -> Self {
        Self {
            connect: limits.connect,
            request: limits.request,
            renewal: limits.renewal,
            renewal_retry: limits.renewal_retry,
            roots: limits.roots,
            check: limits.check,
        }
    }
}

/// Reads limits from the file of `--test-limits`, which only debug builds have.
#[cfg(debug_assertions)]
mod file {
    use std::{path::Path, time::Duration};

    use merlon_config::{
        report::{Problem, Report},
        unit::HumanDuration,
    };
    use serde::{Deserialize, Deserializer};

    use super::Limits;

    impl Limits {
        /// Reads a JSON file that has some of the limits; the others keep their defaults. Durations are texts like `250ms`.
        ///
        /// # Errors
        /// The file cannot be read, or has an unknown field or an invalid value.
        pub fn load(file: &Path) -> Result<Self, Report> {
            let wrong = |error: String| {
                let file = file.display().to_string();
                Report::from_iter([Problem::error(file, error)])
            };
            let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
        }
    }

    /// A limit, as the file writes it.
    pub(super) trait Limit<'de>: Sized {
        type Written: Deserialize<'de> + Into<Self>;
    }

    impl Limit<'_> for Duration {
        type Written = HumanDuration;
    }

    impl Limit<'_> for usize {
        type Written = Self;
    }

    impl Limit<'_> for u32 {
        type Written = Self;
    }

    pub(super) fn value<'de, D: Deserializer<'de>, L: Limit<'de>>(file: D) -> Result<L, D::Error> {
        L::Written::deserialize(file).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Limits, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("limits.json");
        std::fs::write(&file, text).unwrap();
        Limits::load(&file).map_err(|report| report.to_string())
    }

    #[test]
    fn a_file_changes_the_limits_that_it_names_and_no_other() {
        let text =
            r#"{ "lease": { "renewDeadline": "700ms" }, "issuance": { "addressBurst": 3 } }"#;
        let mut expected = Limits::default();
        expected.lease.renew_deadline = Duration::from_millis(700);
        expected.issuance.address_burst = 3;
        assert_eq!(load(text), Ok(expected));
        assert_eq!(load("{}"), Ok(Limits::default()));
    }

    #[test]
    fn an_unknown_limit_is_rejected_with_the_name_of_the_file() {
        for text in [
            r#"{ "leases": {} }"#,
            r#"{ "lease": { "renew_deadline": "1s" } }"#,
            r#"{ "lease": { "duration": 10 } }"#,
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains("limits.json"), "{error}");
        }
    }

    #[test]
    fn a_certificate_may_renew_itself_after_the_outage_that_security_md_names() {
        let security = include_str!("../../SECURITY.md");
        assert!(security.contains("once the API server has been unreachable for half a minute"));
        let Limits { token_review, .. } = Limits::default();
        assert_eq!(token_review.renewal_after, Duration::from_secs(30));
    }

    #[test]
    fn the_readme_states_the_defaults_of_the_listeners_for_unauthenticated_clients() {
        let Limits { admin, webhook, .. } = Limits::default();
        let readme = include_str!("../README.md");
        for stated in [
            format!(
                "at most {} connections, a request head within {} s",
                admin.connections,
                admin.head.as_secs()
            ),
            format!(
                "Limits: {} handshakes and {} connections",
                webhook.handshakes, webhook.connections
            ),
            format!("a head of 16 KiB within {} s", webhook.head.as_secs()),
            format!(
                "a body of {} MiB and {},000 values within {} s",
                webhook.body_bytes >> 20,
                webhook.body_values / 1_000,
                webhook.body.as_secs()
            ),
            format!("a response read within {} s", webhook.answer.as_secs()),
            format!(
                "{total} MiB for bodies over {} KiB and {total} MiB for all others",
                webhook.small_body_bytes >> 10,
                total = webhook.bodies_bytes >> 20
            ),
        ] {
            assert!(readme.contains(&stated), "{stated}");
        }
    }

    /// A leader must step down before another replica takes over, and a replica must renew its counts before they expire.
    #[test]
    fn the_defaults_are_in_the_order_that_their_comments_require() {
        let Limits {
            lease,
            status,
            secrets,
            ..
        } = Limits::default();
        assert!(lease.retry + lease.timeout < lease.renew_deadline);
        assert!(lease.renew_deadline + lease.timeout <= lease.duration);
        assert!(status.counts_renewal + status.timeout < status.counts_max_age);
        assert!(secrets.reads < secrets.timed_out_reads);
    }
}
