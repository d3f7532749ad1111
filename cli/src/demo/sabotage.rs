//! Sabotage: injects one real fault, so tests can verify that the demo notices it. No result is faked.

use clap::ValueEnum;
/// The step to sabotage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sabotage {
    /// A sidecar gets another workload's join token.
    Start,
    /// A program is killed.
    Allowed,
    /// Tokens are not required.
    NoToken,
    /// The issuer publishes the forger's key.
    ForgedSignature,
    /// The allowed clock skew is larger than the age of the expired token.
    Expired,
    /// Tokens for another audience are accepted.
    WrongAudience,
    /// Tokens are not checked.
    PublicKeyAsSecret,
    /// Tokens are not checked.
    AlgorithmNone,
    /// The policy has `permit` instead of `forbid`.
    Forbidden,
    /// A policy permits too much.
    NotPermitted,
    /// The control plane is killed.
    Explain,
    /// The limit is too high.
    RateLimited,
    /// The schema accepts everything.
    BadBody,
    /// The control plane hangs, so no certificate is signed.
    Rotation,
    /// The edited policy does not compile.
    PolicyEdit,
    /// The broken policy is valid.
    BrokenPolicy,
}

impl Sabotage {
    /// Whether this sabotages `step`.
    pub(crate) fn is_of(self, step: &str) -> bool {
        self.to_possible_value()
            .is_some_and(|value| value.get_name() == step)
    }
}
