//! Everything open when the snapshot changes is evaluated again: every request until its response has passed, every
//! stream, upgraded connection and tunnel. It ends when it is no longer permitted, and when its token expires.

use std::{cell::Cell, net::IpAddr, pin::Pin, rc::Rc, sync::Arc};

use http::{HeaderMap, HeaderName, Method, Uri, uri::Authority};
use jiff::Timestamp;
use merlon_config::clock;
use merlon_policy::{
    authn::User,
    decision::Decision,
    facts::{GrpcFacts, HttpFacts, RequestFacts, RequestKind, TcpFacts},
};

use super::target::{PolicyHeaders, Target};
use crate::{
    protocol::{denial::Denial, revocation::Revocation, tls_session::TlsSession},
    state::snapshot::Snapshot,
    upstream::body::Permission,
};

/// A permit, and everything open under it. Created before the decision, so that no snapshot change is missed in
/// between.
#[derive(Debug)]
pub(crate) struct OpenPermit {
    pub(crate) revocation: Revocation,
    query: AuthzQuery,
    /// When the request's token is no longer accepted.
    until: Option<Timestamp>,
    ended: Cell<Option<EndReason>>,
}

/// The inputs to evaluate the policies again.
#[derive(Debug)]
pub(crate) struct AuthzQuery {
    pub(crate) target: Rc<Target>,
    pub(crate) kind: QueryKind,
    pub(crate) address: IpAddr,
    pub(crate) user: Option<Rc<User>>,
    pub(crate) session: Option<Rc<TlsSession>>,
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
enum EndReason {
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
    pub(crate) fn new(query: AuthzQuery) -> Self {
        let rules = query.target.service.policy.tokens();
        let until = query.user.as_deref().map(|user| rules.accepted_until(user));
        Self {
            revocation: Revocation::default(),
            query,
            until,
            ended: Cell::new(None),
        }
    }

    /// Evaluates the policies of `snapshot`, and ends what is open when they no longer permit it.
    pub(crate) fn recheck(&self, snapshot: Option<&Snapshot>) {
        if !snapshot.is_some_and(|snapshot| self.query.is_permitted(snapshot)) {
            self.end(EndReason::Revoked);
        }
    }

    /// Ends what is open when its token has expired.
    pub(crate) fn expire(&self, now: Timestamp) {
        if self.until.is_some_and(|until| now >= until) {
            self.end(EndReason::Expired);
        }
    }

    fn end(&self, end: EndReason) {
        if self.ended.get().is_none() {
            self.ended.set(Some(end));
            self.revocation.revoke();
        }
    }

    /// The denial, if the permit has ended.
    pub(crate) fn denial(&self) -> Option<Denial> {
        Some(match self.ended.get()? {
            EndReason::Revoked => Denial::Revoked,
            EndReason::Expired => {
                let user = self.query.user.as_deref();
                let at = user.map_or(Timestamp::UNIX_EPOCH, |user| user.expires_at);
                Denial::TokenExpired(at)
            }
        })
    }

    /// Awaits `response`, unless the permit ends first. The caller pins it in place, because a moved future would be
    /// stored twice in the future of every request.
    pub(crate) async fn until_revoked<T>(
        &self,
        response: Pin<&mut impl Future<Output = Result<T, Denial>>>,
    ) -> Result<T, Denial> {
        if let Some(denial) = self.denial() {
            return Err(denial);
        }
        tokio::select! {
            biased;
            response = response => response,
            () = self.revocation.revoked() => Err(self.denial().unwrap_or(Denial::Revoked)),
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
        if is_unchanged(then, &now) {
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
        let kind = match &self.kind {
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
            now: clock::now(),
            user: self.user.as_deref(),
            tls: self.session.as_deref().map(TlsSession::facts),
        })
    }
}

/// Splits `/service/method`; other paths return `None`.
pub(crate) fn grpc_name(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!method.contains('/')).then_some((service, method))
}

/// Whether all policies that decide are unchanged: unchanged services share one compiled instance.
fn is_unchanged(then: &Target, now: &Target) -> bool {
    Arc::ptr_eq(&then.service, &now.service)
        && then.others.len() == now.others.len()
        && then
            .others
            .iter()
            .zip(&now.others)
            .all(|(then, now)| Arc::ptr_eq(&then.service, &now.service))
}

/// The headers that the policies of `target` read.
pub(crate) fn headers_read_by(target: &Target, headers: &HeaderMap) -> HeaderMap {
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
