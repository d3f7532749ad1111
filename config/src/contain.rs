//! Turns a panic into an error, so that no document can end a process.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::report::Problem;

/// Runs `f`. What it borrows mutably must stay usable after a panic.
///
/// # Errors
/// The message of the panic. The panic hook has logged it with its position.
pub fn contain<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| message(&*panic))
}

/// What a user can do about a panic.
pub const HINT: &str = "this is a defect of Merlon: report it with this resource, and change the resource until it is fixed";

/// The problem of a file or of a whole place that a panic prevents from being used. `doing` is what panicked: `reading it`.
pub fn problem(place: impl Into<String>, doing: &str, panic: &str) -> Problem {
    Problem::error(place, format!("{doing} panicked: {panic}")).hint(HINT)
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let number = std::hint::black_box(7);
        assert_eq!(contain(|| 1), Ok(1));
        assert_eq!(contain(|| assert_eq!(number, 7)), Ok(()));
        assert_eq!(
            contain(|| -> u8 { panic!("fixed") }),
            Err("fixed".to_owned())
        );
        let formatted = contain(|| -> u8 { panic!("the number {number}") });
        assert_eq!(formatted, Err("the number 7".to_owned()));
        let other = contain(|| -> u8 { std::panic::panic_any(7_u8) });
        assert_eq!(other, Err("no message".to_owned()));
    }
}
