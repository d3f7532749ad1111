//! How far a request has come. Each check takes the stage before it and gives the next; only a check can make one
//! (the makers are visible in `layers` alone), and `forward` takes only the last. So a check that is left out, or out
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
            _made_by_a_check: (),
        }
    };
}

stage!(
    /// It is known which service it is for.
    Routed
);
stage!(
    /// Its address has not spent its share.
    Screened
);
stage!(
    /// The user, if there is one, is proved.
    Authenticated
);
stage!(
    /// Nobody's share is spent by it.
    WithinQuota
);

/// A policy permits it.
#[derive(Debug)]
pub(crate) struct Permitted<'c> {
    pub(crate) call: &'c mut Call,
    pub(crate) target: Rc<Target>,
    pub(super) permit: Permit,
    /// Asked again when the snapshot changes.
    pub(super) open_permit: Rc<OpenPermit>,
}

/// It may go on: every check has passed.
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
            _made_by_a_check: (),
        }
    }

    pub(super) fn screened(self) -> Screened<'c> {
        Screened {
            call: self.call,
            target: self.target,
            _made_by_a_check: (),
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
            _made_by_a_check: (),
        }
    }
}

impl<'c> Authenticated<'c> {
    pub(super) fn counted(self) -> WithinQuota<'c> {
        WithinQuota {
            call: self.call,
            target: self.target,
            _made_by_a_check: (),
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
