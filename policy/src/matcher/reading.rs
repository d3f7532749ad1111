//! One reading of a request: every fact has exactly one value in it.

use std::{borrow::Cow, net::IpAddr};

use super::{
    expr::Fact,
    value::{Errs, Value},
};
use crate::{
    authn::{ClaimValue, User},
    facts::{Action, RequestFacts, RequestKind, TlsFacts},
    principal::{EntityKind, PeerFacts},
    validate::{RouteMatch, Router},
};

/// What conditions are evaluated on.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) action: Action,
    pub(crate) peer: &'a PeerFacts,
    pub(crate) facts: &'a RequestFacts<'a>,
    /// Whose templates [`Reading::route`] is about.
    pub(crate) router: &'a Router,
    pub(crate) route: &'a RouteMatch,
    pub(crate) headers: &'a Slots<'a>,
    pub(crate) query: &'a Slots<'a>,
}

type Found<'a> = Result<Option<Value<'a>>, Errs>;

impl<'a> Reading<'a> {
    /// The value of a fact: `None` where it is absent, an error where what it belongs to is absent.
    pub(crate) fn get(&self, fact: &'a Fact) -> Found<'a> {
        match fact {
            Fact::User => Ok(self
                .who()
                .map(|user| Value::Entity(EntityKind::User, &user.id))),
            Fact::Path
            | Fact::Route
            | Fact::Params
            | Fact::Param(_)
            | Fact::Query
            | Fact::QueryParam(_) => self.http(fact),
            Fact::Host | Fact::Method | Fact::GrpcService | Fact::Headers | Fact::Header(_) => {
                self.head(fact)
            }
            Fact::Port => some(Value::Long(i64::from(self.facts.port))),
            Fact::SourceIp => some(address(self.facts.source_ip)),
            Fact::ClientIp => Ok(match self.facts.kind {
                RequestKind::Tcp(_) => None,
                _ => Some(address(self.facts.client_ip)),
            }),
            Fact::Sni => Ok(match self.facts.kind {
                RequestKind::Tcp(tcp) => tcp.sni.map(Value::Str),
                _ => None,
            }),
            // Nothing says yet from which country an address is.
            Fact::Country => Ok(None),
            Fact::Circumstances => some(Value::Record),
            Fact::Now => some(Value::Datetime(self.facts.now.as_millisecond())),
            Fact::Schedules | Fact::BreakGlass => some(Value::Strs(&[])),
            Fact::Tls => Ok(self.facts.tls.map(|_| Value::Record)),
            Fact::TlsVersion | Fact::TlsCipher | Fact::TlsSpiffeId | Fact::TlsDnsNames => {
                self.tls(fact, self.facts.tls.ok_or(Errs)?)
            }
            Fact::PeerNamespace | Fact::PeerServiceAccount | Fact::PeerTrustDomain => {
                Ok(self.peer(fact))
            }
            _ => Self::user(fact, self.who().ok_or(Errs)?),
        }
    }

    /// The user, who is part of HTTP and gRPC contexts only.
    fn who(&self) -> Option<&'a User> {
        match self.facts.kind {
            RequestKind::Tcp(_) => None,
            _ => self.facts.user,
        }
    }

    /// Whether the user is in a group, as `issuer/group`.
    pub(crate) fn in_group(&self, group: &str) -> bool {
        self.who()
            .is_some_and(|user| user.groups.iter().any(|own| own == group))
    }

    fn http(&self, fact: &'a Fact) -> Found<'a> {
        let RequestKind::Http(http) = &self.facts.kind else {
            return match fact {
                Fact::Param(_) | Fact::QueryParam(_) => Err(Errs),
                _ => Ok(None),
            };
        };
        Ok(match fact {
            Fact::Path => Some(Value::Str(http.path)),
            Fact::Route => self.router.template(self.route).map(Value::Str),
            Fact::Param(name) => self
                .router
                .param(self.route, name, http.path)
                .map(Value::Str),
            Fact::QueryParam(slot) => self.query.get(*slot).map(Value::Str),
            _ => Some(Value::Record),
        })
    }

    fn head(&self, fact: &'a Fact) -> Found<'a> {
        let (host, method, service) = match &self.facts.kind {
            RequestKind::Http(http) => (http.host, http.method, None),
            RequestKind::Grpc(grpc) => (grpc.host, grpc.method, Some(grpc.service)),
            RequestKind::Tcp(_) => {
                return if matches!(fact, Fact::Header(_)) {
                    Err(Errs)
                } else {
                    Ok(None)
                };
            }
        };
        Ok(match fact {
            Fact::Host => Some(Value::Str(host)),
            Fact::Method => Some(Value::Str(method)),
            Fact::GrpcService => service.map(Value::Str),
            Fact::Header(slot) => self.headers.get(*slot).map(Value::Str),
            _ => Some(Value::Record),
        })
    }

    fn tls(&self, fact: &'a Fact, tls: TlsFacts<'a>) -> Found<'a> {
        Ok(match fact {
            Fact::TlsVersion => Some(Value::Str(tls.version)),
            Fact::TlsCipher => Some(Value::Str(tls.cipher)),
            Fact::TlsSpiffeId => self.peer.spiffe_id.as_deref().map(Value::Str),
            _ => Some(Value::Strs(tls.dns_names)),
        })
    }

    fn peer(&self, fact: &'a Fact) -> Option<Value<'a>> {
        let workload = self.peer.workload.as_ref()?;
        Some(match fact {
            Fact::PeerNamespace => Value::Entity(EntityKind::Namespace, &workload.namespace.id),
            Fact::PeerTrustDomain => {
                Value::Entity(EntityKind::TrustDomain, &workload.trust_domain.id)
            }
            _ => Value::Str(&workload.service_account),
        })
    }

    fn user(fact: &'a Fact, user: &'a User) -> Found<'a> {
        Ok(match fact {
            Fact::UserIssuer => Some(Value::Entity(EntityKind::Issuer, &user.issuer_name)),
            Fact::UserSubject => Some(Value::Str(&user.subject)),
            Fact::UserAudience => Some(Value::Strs(&user.audience)),
            Fact::UserScopes => Some(Value::Strs(&user.scopes)),
            Fact::UserClientId => user.client_id.as_deref().map(Value::Str),
            Fact::UserAcr => user.acr.as_deref().map(Value::Str),
            Fact::UserAmr => Some(Value::Strs(&user.amr)),
            Fact::UserAuthTime => user
                .auth_time
                .map(|at| Value::Datetime(at.as_millisecond())),
            Fact::Claims => Some(Value::Record),
            Fact::Claim(name) => user.claims.get(&**name).map(|claim| match claim {
                ClaimValue::String(text) => Value::Str(text),
                ClaimValue::Long(number) => Value::Long(*number),
                ClaimValue::Boolean(value) => Value::Bool(*value),
                ClaimValue::StringSet(texts) => Value::Strs(texts),
            }),
            Fact::Tag(name) => user.tags.get(&**name).map(|texts| Value::Strs(texts)),
            _ => return Err(Errs),
        })
    }
}

fn some(value: Value<'_>) -> Found<'_> {
    Ok(Some(value))
}

/// An IPv4 address that came in through an IPv6 socket is an IPv4 address.
fn address(ip: IpAddr) -> Value<'static> {
    let ip = ip.to_canonical();
    Value::Ip(ip, if ip.is_ipv4() { 32 } else { 128 })
}

/// The values of the headers or query parameters that policies read, by slot: eight without allocating.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slots<'a> {
    first: [Option<Cow<'a, str>>; 8],
    more: Vec<Option<Cow<'a, str>>>,
}

impl<'a> Slots<'a> {
    pub(crate) fn get(&self, slot: usize) -> Option<&str> {
        match self.first.get(slot) {
            Some(value) => value.as_deref(),
            None => self
                .more
                .get(slot.checked_sub(self.first.len())?)?
                .as_deref(),
        }
    }

    pub(crate) fn set(&mut self, slot: usize, value: Option<Cow<'a, str>>) {
        if let Some(place) = self.first.get_mut(slot) {
            *place = value;
        } else if let Some(slot) = slot.checked_sub(self.first.len()) {
            if self.more.len() <= slot {
                self.more.resize(slot.saturating_add(1), None);
            }
            if let Some(place) = self.more.get_mut(slot) {
                *place = value;
            }
        }
    }
}
