//! Sabotage: one thing made wrong, so that tests see the demo notice it. Nothing here fakes a result.

use clap::ValueEnum;
/// The step to sabotage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sabotage {
    /// A sidecar is given another workload's join token.
    Start,
    /// A program is dead.
    Allowed,
    /// Tokens are not required.
    NoToken,
    /// The issuer publishes the forger's key.
    ForgedSignature,
    /// Clocks may differ by more than the token is late.
    Expired,
    /// Tokens for others are accepted.
    WrongAudience,
    /// Nobody looks at tokens.
    PublicKeyAsSecret,
    /// Nobody looks at tokens.
    AlgorithmNone,
    /// The policy says `permit` where it must say `forbid`.
    Forbidden,
    /// A policy permits too much.
    NotPermitted,
    /// The control plane is killed.
    Explain,
    /// The limit is far too high.
    RateLimited,
    /// The schema accepts everything.
    BadBody,
    /// The control plane hangs, so that nobody signs.
    Rotation,
    /// The edited policy does not compile.
    PolicyEdit,
    /// The broken policy is a good one.
    BrokenPolicy,
}

impl Sabotage {
    /// As the step is called.
    pub(crate) fn is_of(self, step: &str) -> bool {
        self.to_possible_value()
            .is_some_and(|value| value.get_name() == step)
    }
}
