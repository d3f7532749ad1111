use std::time::Duration;

/// Time-outs and intervals of the calls to Vault or OpenBao.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaultTimes {
    /// The time-out of a new connection. Default: 1 second.
    pub connect: Duration,
    /// The time-out of one call. Default: 3 seconds.
    pub request: Duration,
    /// The longest interval between renewals of the token, because it may be replaced at any time by one with a shorter
    /// lifetime. Default: 1 hour.
    pub renewal: Duration,
    /// The delay after a failed renewal of the token. Default: 10 seconds.
    pub renewal_retry: Duration,
    /// How long the roots are used before they are read again. Default: 60 seconds.
    pub roots: Duration,
    /// How often the set-up is checked. Default: 1 hour.
    pub check: Duration,
}

impl Default for VaultTimes {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            request: Duration::from_secs(3),
            renewal: Duration::from_secs(3_600),
            renewal_retry: Duration::from_secs(10),
            roots: Duration::from_secs(60),
            check: Duration::from_secs(3_600),
        }
    }
}
