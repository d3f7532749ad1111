//! What a step leaves for the next ones.

/// State that steps share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Alice's token.
    pub(super) token: String,
    /// The decision id from the step `forbidden`.
    pub(super) decision: String,
    /// Whether the current step is sabotaged.
    pub(super) sabotaged: bool,
}
