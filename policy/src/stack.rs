//! The stacks on which policies compile and are evaluated.

/// Bytes of the stack of a thread that calls [`crate::service::ServicePolicy::decide`]. The deepest policy within the
/// bounds of [`crate::text`] needs less, in debug builds, too. On a smaller stack Cedar's evaluator ends with an error: a
/// `permit` does not hold then, and a `forbid` denies.
pub const EVALUATION: usize = 16 << 20;

/// Bytes of the stack on which policies compile. The deepest policy within the bounds of [`crate::text`] needs less than half of it, in debug
/// builds, too.
const SIZE: usize = 64 << 20;

/// Runs `f` on a stack of which at least half is free: the caller's, or a new one. Only the pages that `f` touches cost
/// memory.
pub(crate) fn with<R>(f: impl FnOnce() -> R) -> R {
    merlon_config::stack::with(SIZE, f)
}

/// Runs `f` on half of the stack on which policies compile.
#[cfg(test)]
pub(crate) fn half<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    of(SIZE / 2, f)
}

/// Runs `f` on a stack of this many bytes.
#[cfg(test)]
pub(crate) fn of<R: Send>(bytes: usize, f: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(bytes);
        let run = thread.spawn_scoped(scope, f).unwrap();
        run.join().unwrap()
    })
}
