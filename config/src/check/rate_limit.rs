use std::time::Duration;

use super::checker::Checker;
use crate::resource::{RateLimitSpec, Resource};

const MAX_REQUESTS: u64 = 1_000_000;
const MIN_PERIOD: Duration = Duration::from_millis(1);
const MAX_PERIOD: Duration = Duration::from_secs(24 * 3_600);

impl Checker<'_, '_> {
    pub(super) fn rate_limit(&mut self, resource: &Resource, spec: &RateLimitSpec) {
        if spec.limits.is_empty() {
            self.error(resource, "spec.limits", "`limits` is empty")
                .hint("add a limit, or remove the document");
        }
        for (index, limit) in spec.limits.iter().enumerate() {
            let field = format!("spec.limits[{index}]");
            let requests = limit.rate.requests.into();
            self.range(
                resource,
                &format!("{field}.rate.requests"),
                requests,
                (1, MAX_REQUESTS),
            );
            if !(MIN_PERIOD..=MAX_PERIOD).contains(&limit.rate.per.0) {
                let message = format!("`per` must be from 1ms to 24h, not {}", limit.rate.per);
                self.error(resource, &format!("{field}.rate.per"), message);
            }
            if let Some(burst) = limit.burst {
                let field = format!("{field}.burst");
                self.range(resource, &field, burst.into(), (1, MAX_REQUESTS));
            }
        }
        let names = spec.limits.iter().enumerate();
        let names = names.map(|(index, limit)| (format!("spec.limits[{index}].name"), &limit.name));
        self.duplicates(resource, "limit name", names);
    }
}
