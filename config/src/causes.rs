//! Formats an error together with its causes.

use std::{error::Error, iter};

/// An error and its causes in one line, for errors whose own message does not include them: `cannot read: no such file`.
pub fn chain(error: &dyn Error) -> String {
    let causes = iter::successors(error.source(), |cause| (**cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Caused(&'static str, #[source] Option<Box<Self>>);

    #[test]
    fn causes_are_listed_in_order() {
        let root = Caused("no route", None);
        let middle = Caused("cannot connect", Some(Box::new(root)));
        let outer = Caused("request failed", Some(Box::new(middle)));
        assert_eq!(chain(&outer), "request failed: cannot connect: no route");
    }
}
