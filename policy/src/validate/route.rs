/// Which path templates a path fits. Made by [`crate::service::ServicePolicy::route`], for that service only.
#[derive(Debug, Clone, Copy)]
pub struct RouteMatch {
    /// Whose it is: another service's is not trusted but made anew.
    pub(crate) stamp: u64,
}

impl RouteMatch {
    /// For requests that have no path.
    pub const NONE: Self = Self { stamp: 0 };
}
