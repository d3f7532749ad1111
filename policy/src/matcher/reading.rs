//! One reading of a request, in which every fact has at most one value.

use std::{borrow::Cow, net::IpAddr};

use super::{
    expr::Fact,
    value::{EvalError, Value},
};
use crate::{
    authn::{ClaimValue, User},
    facts::{Action, RequestFacts, RequestKind, TlsFacts},
    principal::{EntityKind, PeerFacts},
    validate::{RouteMatch, Router},
};

/// The facts that conditions are evaluated on.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) action: Action,
    pub(crate) peer: &'a PeerFacts,
    pub(crate) facts: &'a RequestFacts<'a>,
    /// The router that [`Reading::route`] comes from.
    pub(crate) router: &'a Router,
    pub(crate) route: &'a RouteMatch,
    pub(crate) headers: &'a Slots<'a>,
    pub(crate) query: &'a Slots<'a>,
}

type FactResult<'a> = Result<Option<Value<'a>>, EvalError>;

impl<'a> Reading<'a> {
    /// The value of a fact: `None` if it is absent, an error if the record that contains it is absent.
    pub(crate) fn get(&self, fact: &'a Fact) -> FactResult<'a> {
        match fact {
            Fact::User => Ok(self
                .context_user()
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
            Fact::Port => present(Value::Long(i64::from(self.facts.port))),
            Fact::SourceIp => present(address(self.facts.source_ip)),
            Fact::ClientIp => Ok(match self.facts.kind {
                RequestKind::Tcp(_) => None,
                _ => Some(address(self.facts.client_ip)),
            }),
            Fact::Sni => Ok(match self.facts.kind {
                RequestKind::Tcp(tcp) => tcp.sni.map(Value::Str),
                _ => None,
            }),
            // The country of an address is not known yet.
            Fact::Country => Ok(None),
            Fact::Circumstances => present(Value::Record),
            Fact::Now => present(Value::Datetime(self.facts.now.as_millisecond())),
            Fact::Schedules | Fact::BreakGlass => present(Value::Strs(&[])),
            Fact::Tls => Ok(self.facts.tls.map(|_| Value::Record)),
            Fact::TlsVersion | Fact::TlsCipher | Fact::TlsSpiffeId | Fact::TlsDnsNames => {
                self.tls(fact, self.facts.tls.ok_or(EvalError)?)
            }
            Fact::PeerNamespace | Fact::PeerServiceAccount | Fact::PeerTrustDomain => {
                Ok(self.peer(fact))
            }
            _ => Self::user(fact, self.context_user().ok_or(EvalError)?),
        }
    }

    /// The user, which only HTTP and gRPC contexts contain.
    fn context_user(&self) -> Option<&'a User> {
        match self.facts.kind {
            RequestKind::Tcp(_) => None,
            _ => self.facts.user,
        }
    }

    /// Whether the user is in a group, as `issuer/group`.
    pub(crate) fn in_group(&self, group: &str) -> bool {
        self.context_user()
            .is_some_and(|user| user.groups.iter().any(|own| own == group))
    }

    fn http(&self, fact: &'a Fact) -> FactResult<'a> {
        let RequestKind::Http(http) = &self.facts.kind else {
            return match fact {
                Fact::Param(_) | Fact::QueryParam(_) => Err(EvalError),
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

    fn head(&self, fact: &'a Fact) -> FactResult<'a> {
        let (host, method, service) = match &self.facts.kind {
            RequestKind::Http(http) => (http.host, http.method, None),
            RequestKind::Grpc(grpc) => (grpc.host, grpc.method, Some(grpc.service)),
            RequestKind::Tcp(_) => {
                return if matches!(fact, Fact::Header(_)) {
                    Err(EvalError)
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

    fn tls(&self, fact: &'a Fact, tls: TlsFacts<'a>) -> FactResult<'a> {
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

    fn user(fact: &'a Fact, user: &'a User) -> FactResult<'a> {
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
            _ => return Err(EvalError),
        })
    }
}

fn present(value: Value<'_>) -> FactResult<'_> {
    Ok(Some(value))
}

/// An IPv4 address received on an IPv6 socket is an IPv4 address.
fn address(ip: IpAddr) -> Value<'static> {
    let ip = ip.to_canonical();
    Value::Ip(ip, if ip.is_ipv4() { 32 } else { 128 })
}

/// The values of the headers or query parameters that policies read, by slot. The first eight do not allocate.
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
