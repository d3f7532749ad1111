//! Load balancing: the less busy of two random endpoints (power of two choices), without endpoints that failed recently.

use crate::protocol::trace_context::Random;

/// Selects one of `candidates`; `None` without any.
pub(crate) fn choose<'c, C>(
    candidates: &'c [C],
    failed_recently: impl Fn(&C) -> bool,
    open_streams: impl Fn(&C) -> usize,
    random: &Random,
) -> Option<&'c C> {
    let healthy: Vec<&C> = candidates
        .iter()
        .filter(|one| !failed_recently(one))
        .collect();
    // When all have failed recently, all are candidates again.
    let pool = match healthy.is_empty() {
        true => candidates.iter().collect(),
        false => healthy,
    };
    let pick = || {
        let place = random.next().checked_rem(pool.len() as u64)?;
        pool.get(usize::try_from(place).ok()?).copied()
    };
    let (one, other) = (pick()?, pick()?);
    Some(match open_streams(other) < open_streams(one) {
        true => other,
        false => one,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Endpoint {
        name: char,
        failed: bool,
        streams: usize,
    }

    const BUSY: Endpoint = Endpoint {
        name: 'b',
        failed: false,
        streams: 9,
    };
    const IDLE: Endpoint = Endpoint {
        name: 'i',
        failed: false,
        streams: 0,
    };
    const FAILED: Endpoint = Endpoint {
        name: 'f',
        failed: true,
        streams: 0,
    };

    /// How often each of `candidates` is selected in 1,000 requests.
    fn selected(candidates: &[Endpoint]) -> Vec<usize> {
        let random = Random::seeded();
        let mut counts = vec![0; candidates.len()];
        for _ in 0..1_000 {
            let one = choose(candidates, |one| one.failed, |one| one.streams, &random).unwrap();
            let place = candidates.iter().position(|other| other == one).unwrap();
            counts[place] += 1;
        }
        counts
    }

    #[test]
    fn the_less_busy_of_two_endpoints_is_selected_more_often() {
        let counts = selected(&[BUSY, IDLE]);
        // The busy one is selected only when both picks are the busy one: one in four.
        assert!(counts[0] > 0 && counts[0] < counts[1], "{counts:?}");
    }

    #[test]
    fn an_endpoint_that_failed_recently_is_skipped() {
        assert_eq!(selected(&[FAILED, BUSY]), [0, 1_000]);
    }

    #[test]
    fn when_all_failed_recently_each_is_selected_again() {
        let other = Endpoint {
            name: 'g',
            ..FAILED
        };
        let counts = selected(&[FAILED, other]);
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }

    #[test]
    fn without_endpoints_there_is_none() {
        let none: [Endpoint; 0] = [];
        let found = choose(
            &none,
            |one| one.failed,
            |one| one.streams,
            &Random::seeded(),
        );
        assert_eq!(found, None);
    }
}
