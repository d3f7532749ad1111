use std::time::Duration;

use super::Checker;
use crate::resource::{RateLimitSpec, Resource};

const MOST: u64 = 1_000_000;
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

impl Checker<'_, '_> {
    pub(super) fn rate_limit(&mut self, resource: &Resource, spec: &RateLimitSpec) {
        if spec.limits.is_empty() {
            self.error(resource, "spec.limits", "there is no limit in this list")
                .hint("leave the document out, or add a limit");
        }
        for (index, limit) in spec.limits.iter().enumerate() {
            let field = format!("spec.limits[{index}]");
            let requests = limit.rate.requests.into();
            self.range(
                resource,
                &format!("{field}.rate.requests"),
                requests,
                (1, MOST),
            );
            if !(SHORTEST..=LONGEST).contains(&limit.rate.per.0) {
                let message = format!("`per` must be from 1ms to 24h, not {}", limit.rate.per);
                self.error(resource, &format!("{field}.rate.per"), message);
            }
            if let Some(burst) = limit.burst {
                self.range(resource, &format!("{field}.burst"), burst.into(), (1, MOST));
            }
        }
        let names = spec.limits.iter().enumerate();
        let names = names.map(|(index, limit)| (format!("spec.limits[{index}].name"), &limit.name));
        self.twice(resource, "limits called", names);
    }
}
