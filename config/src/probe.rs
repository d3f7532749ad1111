//! The kubelet's probes of a program, which the proxy sends in the kubelet's place.
//!
//! The kubelet's own probe would reach the proxy instead of the program: a TCP probe would succeed although the program is
//! dead, and an HTTP probe carries no mesh identity. So the injector redirects each probe to the proxy's probe listener,
//! and these types describe the probe that the proxy sends to the program.

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// All probes and lifecycle hooks of a pod, by their path at the probe listener. `MERLON_PROBES` holds them as JSON.
pub type Probes = BTreeMap<String, Probe>;

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// The request to send.
    pub handler: Handler,
    /// Time-out of the probe, in seconds. From 1; default: 1, as in Kubernetes.
    #[serde(default = "one")]
    pub timeout_seconds: u32,
}

/// The request that is sent to the program, on its own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Handler {
    /// An HTTP request. It succeeds with a status of 200 to 399.
    HttpGet(HttpGet),
    /// A TCP connection. It succeeds if the connection opens.
    TcpSocket(TcpSocket),
    /// A call of `grpc.health.v1.Health/Check`. It succeeds with `SERVING`.
    Grpc(Grpc),
}

/// An HTTP request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpGet {
    /// The program's port.
    pub port: u16,
    /// Path and query.
    #[serde(default = "root")]
    pub path: String,
    /// `http` or `https`. The certificate is not verified; the kubelet does not verify it either.
    #[serde(default)]
    pub scheme: Scheme,
    /// Header fields in order. A name may occur more than once. `Host` sets the request's host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// The scheme of an HTTP probe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Scheme {
    /// Plain text.
    #[default]
    Http,
    /// TLS without verification of the certificate.
    Https,
}

/// A TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpSocket {
    /// The program's port.
    pub port: u16,
}

/// A call of the gRPC health service, without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grpc {
    /// The program's port.
    pub port: u16,
    /// The service to check. Empty: the whole program.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
}

/// The probe or lifecycle hook of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// Whether the program is alive.
    Liveness,
    /// Whether the program accepts requests.
    Readiness,
    /// Whether the program has started.
    Startup,
    /// The hook right after a container starts.
    PostStart,
    /// The hook right before a container is terminated.
    PreStop,
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
            Self::PostStart => "postStart",
            Self::PreStop => "preStop",
        })
    }
}

impl ProbeKind {
    /// Whether it is a lifecycle hook, which has an effect, and not a probe.
    pub fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }
}

/// The path of a container's probe at the probe listener: `/probe/web/readiness`.
pub fn path(container: &str, occasion: ProbeKind) -> String {
    format!("/probe/{container}/{occasion}")
}

/// The path of a container's hook: `/probe/web/preStop/5d1c…`. Any client that reaches the pod can reach the listener, so
/// the last segment is a key that only the pod's spec contains.
pub fn hook_path(container: &str, occasion: ProbeKind, key: &HookKey) -> String {
    format!("{}/{key}", path(container, occasion))
}

/// A key that cannot be guessed without read access to the pod: 128 bits, as 32 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct HookKey(String);

impl HookKey {
    /// Makes a key of `random`, which must be random.
    pub fn new(random: u128) -> Self {
        Self(format!("{random:032x}"))
    }

    /// The key at the end of a [`hook_path`].
    pub fn from_path(path: &str) -> Option<Self> {
        let (_, key) = path.rsplit_once('/')?;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (key.len() == 32 && key.bytes().all(hex)).then(|| Self(key.to_owned()))
    }
}

impl fmt::Display for HookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookKey(..)")
    }
}

impl Probe {
    /// The time-out of the probe.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.timeout_seconds.max(1)))
    }
}

fn one() -> u32 {
    1
}

fn root() -> String {
    "/".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read_back_as_they_were_written() {
        let handlers = [
            Handler::HttpGet(HttpGet {
                port: 8080,
                path: "/healthz?full".to_owned(),
                scheme: Scheme::Https,
                headers: vec![("Host".to_owned(), "web".to_owned())],
            }),
            Handler::TcpSocket(TcpSocket { port: 5432 }),
            Handler::Grpc(Grpc {
                port: 9090,
                service: "shop.Orders".to_owned(),
            }),
        ];
        let occasions = [
            ProbeKind::Liveness,
            ProbeKind::Readiness,
            ProbeKind::PreStop,
        ];
        let probes: Probes = handlers
            .into_iter()
            .zip(occasions)
            .map(|(handler, occasion)| {
                let probe = Probe {
                    handler,
                    timeout_seconds: 5,
                };
                (path("web", occasion), probe)
            })
            .collect();
        let text = serde_json::to_string(&probes).unwrap();
        assert_eq!(serde_json::from_str::<Probes>(&text).unwrap(), probes);
    }

    #[test]
    fn a_hook_path_ends_in_a_key_of_32_digits() {
        let key = HookKey::new(0xfeed);
        let path = hook_path("web", ProbeKind::PreStop, &key);
        let wanted = format!("/probe/web/preStop/{}feed", "0".repeat(28));
        assert_eq!(path, wanted);
        assert_eq!(HookKey::from_path(&path), Some(key));
        for none in [
            "",
            "/probe/web/preStop",
            "/probe/web/preStop/7",
            &path.to_uppercase(),
            &format!("{path}0"),
            &format!("{path}/"),
        ] {
            assert_eq!(HookKey::from_path(none), None, "{none}");
        }
    }

    #[test]
    fn omitted_fields_have_the_defaults_of_kubernetes() {
        let text = r#"{ "/probe/web/liveness": { "handler": { "httpGet": { "port": 80 } } } }"#;
        let probes: Probes = serde_json::from_str(text).unwrap();
        let probe = &probes["/probe/web/liveness"];
        assert_eq!(probe.timeout(), Duration::from_secs(1));
        let Handler::HttpGet(get) = &probe.handler else {
            panic!("{probe:?}");
        };
        assert_eq!((get.path.as_str(), get.scheme), ("/", Scheme::Http));
    }
}
