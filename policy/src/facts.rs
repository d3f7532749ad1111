//! The facts of one request that policies can read, borrowed from it.

use std::net::IpAddr;

use jiff::Timestamp;

use crate::{authn::User, validate::RouteMatch};

/// The headers of a request, independent of any library's header map.
pub trait Headers {
    /// Calls `each` with every value of the header `name` (lower case), in the order received.
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8]));
}

/// No headers at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn each<'a>(&'a self, _: &str, _: &mut dyn FnMut(&'a [u8])) {}
}

impl<N: AsRef<str>, V: AsRef<[u8]>> Headers for Vec<(N, V)> {
    fn each<'a>(&'a self, name: &str, each: &mut dyn FnMut(&'a [u8])) {
        for (own, value) in self {
            if own.as_ref().eq_ignore_ascii_case(name) {
                each(value.as_ref());
            }
        }
    }
}

/// The facts of one request, connection or call.
#[derive(Clone, Copy)]
pub struct RequestFacts<'a> {
    /// The request by protocol.
    pub kind: RequestKind<'a>,
    /// The peer address of the socket.
    pub source_ip: IpAddr,
    /// The client's address as reported by trusted proxies; otherwise the same as `source_ip`.
    pub client_ip: IpAddr,
    /// The Service's port.
    pub port: u16,
    /// The time of the decision.
    pub now: Timestamp,
    /// The user of the verified token, if the request has one.
    pub user: Option<&'a User>,
    /// Absent on a connection without TLS.
    pub tls: Option<TlsFacts<'a>>,
}

/// A request by protocol.
#[derive(Debug, Clone, Copy)]
pub enum RequestKind<'a> {
    /// An HTTP request that is not gRPC.
    Http(HttpFacts<'a>),
    /// A gRPC call.
    Grpc(GrpcFacts<'a>),
    /// An opaque TCP connection.
    Tcp(TcpFacts<'a>),
}

/// An HTTP request.
#[derive(Clone, Copy)]
pub struct HttpFacts<'a> {
    /// `Host` or `:authority`, as received.
    pub host: &'a str,
    /// The method's exact bytes.
    pub method: &'a str,
    /// The path as normalised by [`crate::path::normalize`], which is also the one forwarded.
    pub path: &'a str,
    /// The query without `?`, undecoded.
    pub query: Option<&'a str>,
    /// The result of [`crate::service::ServicePolicy::route`] for the service that decides.
    pub route: &'a RouteMatch,
    /// Its headers.
    pub headers: &'a dyn Headers,
}

/// A gRPC call.
#[derive(Clone, Copy)]
pub struct GrpcFacts<'a> {
    /// `:authority`, as received.
    pub host: &'a str,
    /// The service, such as `ledger.v1.Ledger`.
    pub service: &'a str,
    /// The method, such as `Post`.
    pub method: &'a str,
    /// Its headers.
    pub headers: &'a dyn Headers,
}

/// An opaque TCP connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpFacts<'a> {
    /// The server name (SNI), if the connection has one.
    pub sni: Option<&'a str>,
}

/// The TLS facts of a connection. The peer's SPIFFE ID comes from [`crate::principal::PeerFacts`].
#[derive(Debug, Clone, Copy, Default)]
pub struct TlsFacts<'a> {
    /// Such as `TLSv1.3`.
    pub version: &'a str,
    /// Such as `TLS13_AES_256_GCM_SHA384`.
    pub cipher: &'a str,
    /// DNS names of the peer's certificate.
    pub dns_names: &'a [String],
}

impl RequestFacts<'_> {
    /// The action's name in the schema.
    pub(crate) fn action(&self) -> Action {
        match &self.kind {
            RequestKind::Http(http) => Action::of_method(http.method),
            RequestKind::Grpc(_) => Action::Grpc,
            RequestKind::Tcp(_) => Action::Tcp,
        }
    }
}

impl std::fmt::Debug for HttpFacts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Header values and queries may contain secrets, so neither is printed.
        f.debug_struct("HttpFacts")
            .field("host", &self.host)
            .field("method", &self.method)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for GrpcFacts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcFacts")
            .field("host", &self.host)
            .field("service", &self.service)
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RequestFacts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestFacts")
            .field("kind", &self.kind)
            .field("source_ip", &self.source_ip)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// The schema's actions for requests. Each has a bit in a policy's action mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Get,
    Head,
    Options,
    Trace,
    Post,
    Put,
    Patch,
    Delete,
    Connect,
    OtherMethod,
    Grpc,
    Tcp,
}

impl Action {
    pub(crate) const ALL: [Self; 12] = [
        Self::Get,
        Self::Head,
        Self::Options,
        Self::Trace,
        Self::Post,
        Self::Put,
        Self::Patch,
        Self::Delete,
        Self::Connect,
        Self::OtherMethod,
        Self::Grpc,
        Self::Tcp,
    ];

    /// Methods are compared octet for octet: `get` is not `GET` (RFC 9110 §9.1).
    pub(crate) fn of_method(method: &str) -> Self {
        match method {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            "CONNECT" => Self::Connect,
            _ => Self::OtherMethod,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::OtherMethod => "otherMethod",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }

    /// Its action groups in the schema, transitively.
    pub(crate) const fn groups(self) -> &'static [&'static str] {
        match self {
            Self::Get | Self::Head | Self::Options | Self::Trace => &["read", "http", "any"],
            Self::Post | Self::Put | Self::Patch | Self::Delete => &["write", "http", "any"],
            Self::Connect | Self::OtherMethod => &["http", "any"],
            Self::Grpc | Self::Tcp => &["any"],
        }
    }

    /// Its bit in a mask of actions.
    pub(crate) const fn bit(self) -> u16 {
        1 << self as u16
    }
}
