//! The stages of a request. Each check takes the previous stage and returns the next; only checks can construct them
//! (the constructors are visible only in `checks`), and `forward` takes only the last. A missing check, or one out
//! of order, does not compile.

use std::rc::Rc;

use merlon_policy::{authn::User, decision::Permit};

use crate::{
    request::{call::Call, open_permit::OpenPermit, target::Target},
    upstream::body::RequestBody,
};

macro_rules! stage {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name<'c> {
            pub(crate) call: &'c mut Call,
            pub(crate) target: Rc<Target>,
            _private: (),
        }
    };
}

stage!(
/// The service is known.
    Routed
);
stage!(
/// Within the rate limits of its address.
    Screened
);
stage!(
/// The user, if any, is authenticated.
    Authenticated
);
stage!(
/// Within the rate limits of its caller and user.
    WithinQuota
);

/// A policy permits it.
#[derive(Debug)]
pub(crate) struct Permitted<'c> {
    pub(crate) call: &'c mut Call,
    pub(crate) target: Rc<Target>,
    pub(super) permit: Permit,
    /// Evaluated again when the snapshot changes.
    pub(super) open_permit: Rc<OpenPermit>,
}

/// Every check has passed.
#[derive(Debug)]
pub(crate) struct Admitted<'c> {
    pub(crate) call: &'c mut Call,
    pub(crate) target: Rc<Target>,
    pub(crate) body: RequestBody,
    pub(crate) open_permit: Rc<OpenPermit>,
    _permit: Permit,
}

impl<'c> Routed<'c> {
    pub(super) fn to(call: &'c mut Call, target: Rc<Target>) -> Self {
        Self {
            call,
            target,
            _private: (),
        }
    }

    pub(super) fn screened(self) -> Screened<'c> {
        Screened {
            call: self.call,
            target: self.target,
            _private: (),
        }
    }
}

impl<'c> Screened<'c> {
    pub(super) fn authenticated(self, user: Option<Rc<User>>) -> Authenticated<'c> {
        self.call.exchange.user.clone_from(&user);
        self.call.user = user;
        Authenticated {
            call: self.call,
            target: self.target,
            _private: (),
        }
    }
}

impl<'c> Authenticated<'c> {
    pub(super) fn within_quota(self) -> WithinQuota<'c> {
        WithinQuota {
            call: self.call,
            target: self.target,
            _private: (),
        }
    }
}

impl<'c> WithinQuota<'c> {
    pub(super) fn permitted(self, permit: Permit, open_permit: Rc<OpenPermit>) -> Permitted<'c> {
        self.call.exchange.permit = Some(permit.clone());
        Permitted {
            call: self.call,
            target: self.target,
            permit,
            open_permit,
        }
    }
}

impl<'c> Permitted<'c> {
    pub(super) fn admitted(self, body: RequestBody) -> Admitted<'c> {
        let Self {
            call,
            target,
            permit,
            open_permit,
        } = self;
        Admitted {
            call,
            target,
            body,
            open_permit,
            _permit: permit,
        }
    }
}
