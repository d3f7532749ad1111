//! Metrics of a sidecar, asserted by how much they grow.

use std::fmt;

use super::{admin::assert_described, sidecar::Sidecar};
use crate::wait;

/// A metric of a sidecar, and its value when the test took hold of it.
#[derive(Debug)]
pub struct Metric<'m> {
    sidecar: &'m Sidecar,
    name: String,
    labels: Vec<(String, String)>,
    before: f64,
}

impl<'m> Metric<'m> {
    /// The sum of `name` over all series that have these labels. A metric without such series counts as 0, an unknown
    /// metric panics.
    pub(super) async fn of(sidecar: &'m Sidecar, name: &str, labels: &[(&str, &str)]) -> Self {
        let labels = labels
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect();
        let mut metric = Self {
            sidecar,
            name: name.to_owned(),
            labels,
            before: 0.0,
        };
        metric.before = metric.value().await;
        metric
    }

    /// Its value now.
    ///
    /// # Panics
    /// If the sidecar has no such metric.
    pub async fn value(&self) -> f64 {
        let page = self.sidecar.page("/metrics").await;
        assert_described(&page, &self.name);
        sum(&page, &self.name, &self.labels)
    }

    /// Waits until it has grown by `amount` since the test took hold of it. It must not grow by more.
    ///
    /// # Panics
    /// If it does not, or grows further.
    pub async fn grew_by(&self, amount: u32) {
        let wanted = self.before + f64::from(amount);
        let what = format!("{self} is {wanted}, after {}", self.before);
        // Only whole numbers, and only upwards: more than wanted stays more than wanted.
        let value =
            wait::until_value(what, async || self.value().await, |now| *now >= wanted).await;
        assert!(
            value <= wanted,
            "{self} is {value}, wanted {wanted}, after {}",
            self.before
        );
    }
}

impl fmt::Display for Metric<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.name, self.labels)
    }
}

/// The sum of a metric over all series of a page that have these labels.
fn sum(page: &str, name: &str, labels: &[(String, String)]) -> f64 {
    page.lines()
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let rest = series.strip_prefix(name)?;
            let own = match rest.strip_prefix('{') {
                Some(labels) => labels.strip_suffix('}')?,
                None if rest.is_empty() => "",
                None => return None,
            };
            let has = |(label, value): &(String, String)| {
                let wanted = format!("{label}=\"{value}\"");
                own.split(',').any(|one| one == wanted)
            };
            labels.iter().all(has).then(|| value.parse::<f64>().ok())?
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE a_total counter\n\
        a_total{reason=\"overload\",direction=\"inbound\"} 2\n\
        a_total{reason=\"overload\",direction=\"outbound\"} 3\n\
        a_total{reason=\"over\"} 5\n\
        a_total_other 7\n\
        b 11\n";

    fn summed(name: &str, labels: &[(&str, &str)]) -> f64 {
        let owned = |(label, value): &(&str, &str)| ((*label).to_owned(), (*value).to_owned());
        let labels: Vec<_> = labels.iter().map(owned).collect();
        sum(PAGE, name, &labels)
    }

    #[test]
    fn the_value_is_the_sum_of_the_series_that_have_all_labels() {
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 0.1, "{value}");
        near(summed("a_total", &[("reason", "overload")]), 5.0);
        let both = [("direction", "inbound"), ("reason", "overload")];
        near(summed("a_total", &both), 2.0);
        near(summed("a_total", &[]), 10.0);
        near(summed("b", &[]), 11.0);
        near(summed("a_total", &[("reason", "other")]), 0.0);
    }
}
