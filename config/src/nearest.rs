//! Suggests the nearest known name for a misspelled one.

/// A hint for the unknown name `wrong`: the nearest of `known`, and all of them if they are few.
pub fn hint<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    suggestion(nearest(wrong, known.iter().copied()), known)
}

/// Like [`hint`], with the nearest name, if there is one.
pub(crate) fn suggestion(nearest: Option<&str>, mut known: Vec<&str>) -> Option<String> {
    known.sort_unstable();
    known.dedup();
    let all = || {
        let quoted: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
        quoted.join(", ")
    };
    match (nearest, known.len()) {
        (_, 0) => None,
        (Some(name), 2..=12) => Some(format!("did you mean `{name}`? Available: {}", all())),
        (Some(name), _) => Some(format!("did you mean `{name}`?")),
        (None, 1..=12) => Some(format!("available: {}", all())),
        (None, _) => None,
    }
}

/// The nearest known name whose distance is at most one more than a third of its length.
pub(crate) fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Untrusted input may have any length; no known name is longer.
    if wrong.len() > 256 {
        return None;
    }
    known
        .into_iter()
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.chars().count() / 3)
        .min()
        .map(|(_, name)| name)
}

/// Number of edits from one to the other: insert, remove, replace, or swap neighbours. Case is ignored, so that `Post` is
/// nearest to `POST` and not to `PUT`.
fn distance(from: &str, to: &str) -> usize {
    if from.eq_ignore_ascii_case(to) {
        return 0;
    }
    let from: Vec<char> = from.chars().map(|c| c.to_ascii_lowercase()).collect();
    let to: Vec<char> = to.chars().map(|c| c.to_ascii_lowercase()).collect();
    // Optimal string alignment, three rows at a time.
    let mut before_last = vec![0; to.len() + 1];
    let mut last: Vec<usize> = (0..=to.len()).collect();
    let mut previous = None;
    for (i, &a) in from.iter().enumerate() {
        let mut row = Vec::with_capacity(to.len() + 1);
        row.push(i + 1);
        let mut left_letter = None;
        for (j, &b) in to.iter().enumerate() {
            let at =
                |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best = (at(&last, j + 1) + 1)
                .min(at(&row, j) + 1)
                .min(at(&last, j) + usize::from(a != b));
            if j > 0 && previous == Some(b) && left_letter == Some(a) {
                best = best.min(at(&before_last, j - 1) + 1);
            }
            row.push(best);
            left_letter = Some(b);
        }
        before_last = std::mem::replace(&mut last, row);
        previous = Some(a);
    }
    last.last().copied().unwrap_or(from.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_a_missing_and_a_wrong_letter_are_one_edit_each() {
        assert_eq!(distance("requetss", "requests"), 1);
        assert_eq!(distance("reqests", "requests"), 1);
        assert_eq!(distance("requasts", "requests"), 1);
        assert_eq!(distance("Requests", "requests"), 0);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
    }

    #[test]
    fn a_name_that_is_far_from_all_known_names_has_no_nearest() {
        assert_eq!(nearest("zebra", ["requests", "per"]), None);
        assert_eq!(nearest("ordres", ["orders", "payments"]), Some("orders"));
        assert_eq!(nearest(&"a".repeat(100_000), ["orders"]), None);
    }
}
