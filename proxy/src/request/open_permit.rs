//! Everything open when the snapshot changes is evaluated again: every request until its response has passed, every
//! stream, upgraded connection and tunnel. It ends when it is no longer permitted, and when its token expires.

use std::{cell::Cell, net::IpAddr, pin::Pin, rc::Rc, sync::Arc};

use http::{HeaderMap, HeaderName, Method, Uri, uri::Authority};
use jiff::Timestamp;
use merlon_policy::{
    authn::User,
    decision::Decision,
    facts::{GrpcFacts, HttpFacts, RequestFacts, RequestKind, TcpFacts},
};

use super::target::{PolicyHeaders, Target};
use crate::{
    protocol::{denial::Denial, revocation::Revocation, tls_session::Session},
    state::snapshot::Snapshot,
    upstream::body::Permission,
};

/// A permit, and everything open under it. Created before the decision, so that no snapshot change is missed in
/// between.
#[derive(Debug)]
pub(crate) struct OpenPermit {
    pub(crate) revocation: Revocation,
    asked: AuthzQuery,
    /// When the request's token is no longer accepted.
    until: Option<Timestamp>,
    ended: Cell<Option<End>>,
}

/// The inputs to evaluate the policies again.
#[derive(Debug)]
pub(crate) struct AuthzQuery {
    pub(crate) target: Rc<Target>,
    pub(crate) what: QueryKind,
    pub(crate) address: IpAddr,
    pub(crate) user: Option<Rc<User>>,
    pub(crate) session: Option<Rc<Session>>,
}

/// The kind of request. Cheap to keep: everything but the few headers is reference-counted.
#[derive(Debug)]
pub(crate) enum QueryKind {
    Http {
        method: Method,
        host: Authority,
        uri: Uri,
        headers: HeaderMap,
    },
    Grpc {
        host: Authority,
        uri: Uri,
        headers: HeaderMap,
    },
    Tcp,
}

#[derive(Debug, Clone, Copy)]
enum End {
    /// Policy no longer permits it.
    Revoked,
    /// The token has expired.
    Expired,
}

impl Permission for OpenPermit {
    fn revocation(&self) -> &Revocation {
        &self.revocation
    }
}

impl OpenPermit {
    pub(crate) fn new(asked: AuthzQuery) -> Self {
        let rules = asked.target.service.policy.tokens();
        let until = asked.user.as_deref().map(|user| rules.accepted_until(user));
        Self {
            revocation: Revocation::default(),
            asked,
            until,
            ended: Cell::new(None),
        }
    }

    /// Evaluates the policies of `snapshot`, and ends what is open when they no longer permit it.
    pub(crate) fn recheck(&self, snapshot: Option<&Snapshot>) {
        if !snapshot.is_some_and(|snapshot| self.asked.is_permitted(snapshot)) {
            self.end(End::Revoked);
        }
    }

    /// Ends what is open when its token has expired.
    pub(crate) fn expire(&self, now: Timestamp) {
        if self.until.is_some_and(|until| now >= until) {
            self.end(End::Expired);
        }
    }

    fn end(&self, end: End) {
        if self.ended.get().is_none() {
            self.ended.set(Some(end));
            self.revocation.pull();
        }
    }

    /// The denial, if the permit has ended.
    pub(crate) fn over(&self) -> Option<Denial> {
        Some(match self.ended.get()? {
            End::Revoked => Denial::Revoked,
            End::Expired => {
                let user = self.asked.user.as_deref();
                let at = user.map_or(Timestamp::UNIX_EPOCH, |user| user.expires_at);
                Denial::Lapsed(at)
            }
        })
    }

    /// Awaits `answer`, unless the permit ends first. The caller pins it in place, because a moved future would be
    /// stored twice in the future of every request.
    pub(crate) async fn hold<T>(
        &self,
        answer: Pin<&mut impl Future<Output = Result<T, Denial>>>,
    ) -> Result<T, Denial> {
        if let Some(denial) = self.over() {
            return Err(denial);
        }
        tokio::select! {
            biased;
            answer = answer => answer,
            () = self.revocation.pulled() => Err(self.over().unwrap_or(Denial::Revoked)),
        }
    }
}

impl AuthzQuery {
    fn is_permitted(&self, snapshot: &Snapshot) -> bool {
        let then = &*self.target;
        let principal = then.peer.principal();
        let now = if then.port == 0 {
            Target::gateway(snapshot, principal)
        } else {
            Target::claimed(snapshot, then.service.policy.name(), then.port, principal)
        };
        let Some(now) = now else { return false };
        if same(then, &now) {
            return true;
        }
        // A policy that reads a header which was not kept cannot be evaluated, so the request is not permitted.
        if !now.header_names().all(|name| then.reads(name)) {
            return false;
        }
        matches!(self.decide(&now), Decision::Permit(_))
    }

    fn decide(&self, target: &Target) -> Decision {
        let (route, fields);
        let kind = match &self.what {
            QueryKind::Http {
                method,
                host,
                uri,
                headers,
            } => {
                route = target.service.policy.route(method.as_str(), uri.path());
                fields = PolicyHeaders(headers);
                RequestKind::Http(HttpFacts {
                    host: host.as_str(),
                    method: method.as_str(),
                    path: uri.path(),
                    query: uri.query(),
                    route: &route,
                    headers: &fields,
                })
            }
            QueryKind::Grpc { host, uri, headers } => {
                fields = PolicyHeaders(headers);
                // INVARIANT: the kind is gRPC only if the path has these two parts.
                let (service, method) = grpc_name(uri.path()).unwrap_or_default();
                RequestKind::Grpc(GrpcFacts {
                    host: host.as_str(),
                    service,
                    method,
                    headers: &fields,
                })
            }
            QueryKind::Tcp => RequestKind::Tcp(TcpFacts::default()),
        };
        target.decide(&RequestFacts {
            kind,
            source_ip: self.address,
            client_ip: self.address,
            port: target.port,
            now: Timestamp::now(),
            user: self.user.as_deref(),
            tls: self.session.as_deref().map(Session::facts),
        })
    }
}

/// Splits `/service/method`; other paths return `None`.
pub(crate) fn grpc_name(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!method.contains('/')).then_some((service, method))
}

/// Whether all policies that decide are unchanged: unchanged services share one compiled instance.
fn same(then: &Target, now: &Target) -> bool {
    Arc::ptr_eq(&then.service, &now.service)
        && then.others.len() == now.others.len()
        && then
            .others
            .iter()
            .zip(&now.others)
            .all(|(then, now)| Arc::ptr_eq(&then.service, &now.service))
}

/// The headers that the policies of `target` read.
pub(crate) fn kept(target: &Target, headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in target.header_names() {
        if kept.contains_key(name) {
            continue;
        }
        for value in headers.get_all(name) {
            // A name that is not a valid header name has no values.
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                kept.append(name, value.clone());
            }
        }
    }
    kept
}
