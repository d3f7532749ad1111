//! Stacks for what recurses into the text of users.

/// Runs `f` on a stack of which at least half of `bytes` is free: the caller's, or a new one of this size. Only the pages that
/// `f` touches cost memory.
pub fn with<R>(bytes: usize, f: impl FnOnce() -> R) -> R {
    stacker::maybe_grow(bytes / 2, bytes, f)
}
