//! A Kubernetes node's probes of a program, as its proxy makes them in the node's place.
//!
//! The node's own request would end at the proxy: one by TCP would pass with the program dead, and one by HTTP carries
//! no mesh identity. So the injector turns each to the proxy's probe listener, and tells the proxy here what to ask.

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// All probes of a pod and the hooks of its containers' lives, by their path at the probe listener: what `MERLON_PROBES`
/// holds as JSON.
pub type Probes = BTreeMap<String, Probe>;

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// What is asked.
    pub handler: Handler,
    /// How long the program may take, in seconds. From 1; default: 1, as Kubernetes has it.
    #[serde(default = "one")]
    pub timeout_seconds: u32,
}

/// What is asked of the program, on its own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Handler {
    /// An HTTP request; right are 200 to 399.
    HttpGet(HttpGet),
    /// A TCP connection; right is one that opens.
    TcpSocket(TcpSocket),
    /// A call of `grpc.health.v1.Health/Check`; right is `SERVING`.
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
    /// `https` is not verified, as the node does not either.
    #[serde(default)]
    pub scheme: Scheme,
    /// Header fields in their order; one name may occur more than once. `Host` is meant as such.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
}

/// How a probe by HTTP is carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Scheme {
    /// Plainly.
    #[default]
    Http,
    /// In TLS whose certificate is not verified.
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
    /// Whose health is asked; empty: the whole program's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
}

/// When a node asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Whether the program lives.
    Liveness,
    /// Whether it may be sent requests.
    Readiness,
    /// Whether it has begun.
    Startup,
    /// Right after a container has begun.
    PostStart,
    /// Right before a container ends.
    PreStop,
}

impl fmt::Display for Occasion {
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

impl Occasion {
    /// Whether it is a hook of a container's life, which does something, and not a question.
    pub fn is_hook(self) -> bool {
        matches!(self, Self::PostStart | Self::PreStop)
    }
}

/// Where a probe of a container is asked for at the probe listener: `/probe/web/readiness`.
pub fn path(container: &str, occasion: Occasion) -> String {
    format!("/probe/{container}/{occasion}")
}

/// Where a hook of a container is asked for: `/probe/web/preStop/5d1c…`. Whoever reaches the pod reaches the listener, so
/// the last part is what only the pod's own description tells.
pub fn hook_path(container: &str, occasion: Occasion, key: &HookKey) -> String {
    format!("{}/{key}", path(container, occasion))
}

/// What nobody guesses who cannot read the pod: 128 bits, as 32 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct HookKey(String);

impl HookKey {
    /// Of bits that must be random.
    pub fn new(random: u128) -> Self {
        Self(format!("{random:032x}"))
    }

    /// The one that a [`hook_path`] ends in.
    pub fn of_path(path: &str) -> Option<Self> {
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
    /// How long the program may take.
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
        let occasions = [Occasion::Liveness, Occasion::Readiness, Occasion::PreStop];
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
    fn a_hook_is_asked_for_by_a_key_of_32_digits() {
        let key = HookKey::new(0xfeed);
        let path = hook_path("web", Occasion::PreStop, &key);
        let wanted = format!("/probe/web/preStop/{}feed", "0".repeat(28));
        assert_eq!(path, wanted);
        assert_eq!(HookKey::of_path(&path), Some(key));
        for none in [
            "",
            "/probe/web/preStop",
            "/probe/web/preStop/7",
            &path.to_uppercase(),
            &format!("{path}0"),
            &format!("{path}/"),
        ] {
            assert_eq!(HookKey::of_path(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_not_said_is_as_kubernetes_has_it() {
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
