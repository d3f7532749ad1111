//! The metrics of the control plane. Every name ends in its unit; every label has a closed set of values.

use std::sync::atomic::AtomicU64;

use merlon_config::snapshot::ResourceKind;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Why a certificate request is rejected.
const ISSUE_REFUSALS: [&str; 18] = [
    "cluster",
    "csr",
    "evidence",
    "issuer",
    "malformed",
    "no_evidence",
    "not_ready",
    "old_key",
    "rate",
    "store",
    "token_address",
    "token_audience",
    "token_expired",
    "token_pod",
    "token_refused",
    "token_unknown",
    "token_used",
    "unknown_identity",
];

/// All metrics; handles are cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub(crate) resources_sent: Family<KindLabel, Counter>,
    pub(crate) responses_sent: Family<KindLabel, Counter>,
    pub(crate) acknowledged: Counter,
    pub(crate) refused: Counter,
    pub(crate) requests_refused: Family<ServiceLabel, Counter>,
    pub(crate) proxies: Gauge,
    pub(crate) issued: Family<EvidenceLabel, Counter>,
    pub(crate) issue_refused: Family<RefusalLabel, Counter>,
    pub(crate) tokens_reused: Counter,
    pub(crate) ledger_failures: Counter,
    pub(crate) pod_addresses_differed: Counter,
    pub(crate) config_loads: Family<LoadLabel, Counter>,
    pub(crate) config_problems: Gauge,
    pub(crate) handshakes_failed: Counter,
    pub(crate) own_expiry: Gauge<f64, AtomicU64>,
    pub(crate) issuer_failures: Counter,
    pub(crate) webhook_requests: Family<WebhookLabel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Kind(pub(crate) ResourceKind);

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = match self.0 {
            ResourceKind::Manifest => "manifest",
            ResourceKind::Mesh => "mesh",
            ResourceKind::TrustBundle => "trust_bundle",
            ResourceKind::Workload => "workload",
            ResourceKind::Service => "service",
            ResourceKind::Destination => "destination",
            ResourceKind::Address => "address",
            ResourceKind::Certificate => "certificate",
            ResourceKind::Secret => "secret",
        };
        name.encode(encoder)
    }
}

macro_rules! label {
    ($name:ident, $field:ident) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(crate) struct $name {
            pub(crate) $field: &'static str,
        }
    };
}

label!(EvidenceLabel, evidence);
label!(RefusalLabel, reason);
label!(LoadLabel, result);
label!(ServiceLabel, service);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct WebhookLabel {
    pub(crate) webhook: &'static str,
    pub(crate) result: &'static str,
}

impl Metrics {
    /// Creates every series with the value 0, because an absent series cannot be distinguished from a missing scrape.
    pub(crate) fn new() -> Self {
        let this = Self::default();
        for kind in ResourceKind::ALL {
            let label = KindLabel { kind: Kind(kind) };
            drop(this.resources_sent.get_or_create(&label));
            drop(this.responses_sent.get_or_create(&label));
        }
        for service in ["push", "inspection"] {
            drop(
                this.requests_refused
                    .get_or_create(&ServiceLabel { service }),
            );
        }
        for reason in ISSUE_REFUSALS {
            drop(this.issue_refused.get_or_create(&RefusalLabel { reason }));
        }
        for webhook in ["inject", "validate"] {
            for result in ["allowed", "changed", "refused"] {
                let label = WebhookLabel { webhook, result };
                drop(this.webhook_requests.get_or_create(&label));
            }
        }
        for result in ["accepted", "refused"] {
            drop(this.config_loads.get_or_create(&LoadLabel { result }));
        }
        for evidence in ["join-token", "service-account", "certificate", "self"] {
            drop(this.issued.get_or_create(&EvidenceLabel { evidence }));
        }
        this
    }

    /// Counts the resources of one response.
    pub(crate) fn sent(&self, kind: ResourceKind, resources: usize) {
        let label = KindLabel { kind: Kind(kind) };
        self.responses_sent.get_or_create(&label).inc();
        let resources = u64::try_from(resources).unwrap_or(u64::MAX);
        self.resources_sent.get_or_create(&label).inc_by(resources);
    }

    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("merlon");
        macro_rules! register {
            ($($name:literal, $help:literal, $metric:ident;)*) => {
                $(registry.register($name, $help, self.$metric.clone());)*
            };
        }
        register! {
            "push_resources_sent", "Resources sent to proxies", resources_sent;
            "push_responses_sent", "Responses sent to proxies", responses_sent;
            "push_acknowledged", "Snapshots that proxies acknowledged", acknowledged;
            "push_refused", "Responses that proxies rejected", refused;
            "requests_refused", "Messages from proxies that were rejected", requests_refused;
            "proxies_connected", "Proxies with an open stream", proxies;
            "certificates_issued", "Certificates signed", issued;
            "certificates_refused", "Certificate requests that were rejected", issue_refused;
            "join_tokens_reused", "Join tokens used a second time", tokens_reused;
            "ledger_failures", "Certificates that could not be recorded in the ledger", ledger_failures;
            "pod_addresses_differed", "Certificates issued for a pod's token from another address than the pod's", pod_addresses_differed;
            "config_loads", "Configuration loads", config_loads;
            "config_problems", "Problems that keep the configuration from being applied", config_problems;
            "tls_handshakes_failed", "TLS handshakes that failed", handshakes_failed;
            "certificate_expiry_timestamp_seconds", "Expiry of the control plane's own certificate", own_expiry;
            "issuer_failures", "Calls to the certificate issuer that failed", issuer_failures;
            "webhook_requests", "Admission requests from the API server", webhook_requests;
        }
        registry
    }

    /// Encodes the metrics in the OpenMetrics text format.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry());
        out
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_describes_every_metric_of_the_readme_from_the_start() {
        let page = Metrics::new().text();
        let described = page.lines().filter_map(|line| {
            let (name, kind) = line.strip_prefix("# TYPE merlon_")?.split_once(' ')?;
            let suffix = if kind == "counter" { "_total" } else { "" };
            Some(format!("{name}{suffix}"))
        });
        let readme = include_str!("../../README.md");
        let (_, section) = readme.split_once("\n## Metrics\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let listed = section.split('`').skip(1).step_by(2).filter_map(|code| {
            let name = code.split('{').next()?;
            (name != "merlon_").then(|| name.to_owned())
        });
        assert_eq!(
            described.collect::<BTreeSet<_>>(),
            listed.collect::<BTreeSet<_>>()
        );
    }
}
