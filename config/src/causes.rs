//! What went wrong, with everything that caused it.

use std::{error::Error, iter};

/// An error and its causes in one line, for those whose own words leave the causes out: `cannot read: no such file`.
pub fn chain(error: &dyn Error) -> String {
    let causes = iter::successors(error.source(), |cause| (**cause).source());
    causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Caused(&'static str, #[source] Option<Box<Self>>);

    #[test]
    fn causes_are_told_in_their_order() {
        let root = Caused("no route", None);
        let middle = Caused("cannot connect", Some(Box::new(root)));
        let whole = Caused("cannot ask", Some(Box::new(middle)));
        assert_eq!(chain(&whole), "cannot ask: cannot connect: no route");
    }
}
