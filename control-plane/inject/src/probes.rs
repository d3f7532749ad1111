//! Redirects the kubelet's probes and hooks to the proxy, which makes the same request to the program.

use merlon_config::probe::{
    self, Grpc, Handler, HookKey, HttpGet, Probe, ProbeKind, Probes, Scheme, TcpSocket,
};
use serde_json::{Map, Value, json};

use crate::{
    admission::PROXY_PORTS,
    error::InjectError,
    pod::{self, Pod},
};

/// The proxy's port for probes.
const PORT: u16 = 7563;
/// Time-out of a lifecycle hook in seconds. Hooks have no time-out of their own.
const HOOK_TIMEOUT: u32 = 30;

const PROBES: [(&str, ProbeKind); 3] = [
    ("livenessProbe", ProbeKind::Liveness),
    ("readinessProbe", ProbeKind::Readiness),
    ("startupProbe", ProbeKind::Startup),
];
const HOOKS: [(&str, ProbeKind); 2] = [
    ("postStart", ProbeKind::PostStart),
    ("preStop", ProbeKind::PreStop),
];

/// Redirects every HTTP, gRPC and TCP probe and hook to the proxy, and returns the originals. `exec` stays as it is.
///
/// A probe only shows an unauthenticated client whether the program is healthy, but a hook may end the program. So the
/// path of a hook contains `key`.
pub(crate) fn redirect(pod: &mut Pod, key: &HookKey) -> Result<Probes, InjectError> {
    let mut found = Probes::new();
    for container in pod.programs_mut() {
        for_each_handler(container, |container, occasion, holder| {
            let Some(handler) = handler(container, occasion, holder)? else {
                return Ok(());
            };
            let name = pod::name(container);
            let (path, timeout) = match occasion.is_hook() {
                true => (probe::hook_path(name, occasion, key), HOOK_TIMEOUT),
                false => (
                    probe::path(name, occasion),
                    seconds(holder.get("timeoutSeconds")),
                ),
            };
            for kind in ["httpGet", "tcpSocket", "grpc"] {
                holder.remove(kind);
            }
            holder.insert("httpGet".to_owned(), json!({ "path": path, "port": PORT }));
            let probe = Probe {
                handler,
                timeout_seconds: timeout,
            };
            found.insert(path, probe);
            Ok(())
        })?;
    }
    Ok(found)
}

/// Restores what an earlier injection redirected.
pub(crate) fn restore(container: &mut Map<String, Value>, known: &Probes) {
    let done = for_each_handler(container, |container, occasion, holder| {
        let get = holder
            .get("httpGet")
            .filter(|get| get.get("port").is_some_and(|port| *port == PORT));
        let path = get.and_then(|get| get.get("path")?.as_str());
        // Earlier versions used the path without a key for hooks, too.
        let own = probe::path(pod::name(container), occasion);
        let is_own = |path: &str| {
            let rest = path.strip_prefix(&own);
            rest.is_some_and(|rest| {
                rest.is_empty() || occasion.is_hook() && HookKey::from_path(rest).is_some()
            })
        };
        let Some(probe) = path
            .filter(|path| is_own(path))
            .and_then(|path| known.get(path))
        else {
            return Ok(());
        };
        holder.remove("httpGet");
        let (kind, value) = match &probe.handler {
            Handler::HttpGet(get) => ("httpGet", http_get(get)),
            Handler::TcpSocket(tcp) => ("tcpSocket", json!({ "port": tcp.port })),
            Handler::Grpc(grpc) => (
                "grpc",
                json!({ "port": grpc.port, "service": grpc.service }),
            ),
        };
        holder.insert(kind.to_owned(), value);
        Ok(())
    });
    // The closure never fails.
    let _: Result<(), InjectError> = done;
}

fn http_get(get: &HttpGet) -> Value {
    let mut value = Map::new();
    value.insert("path".to_owned(), json!(get.path));
    value.insert("port".to_owned(), json!(get.port));
    if get.scheme == Scheme::Https {
        value.insert("scheme".to_owned(), json!("HTTPS"));
    }
    if !get.headers.is_empty() {
        let headers = get.headers.iter();
        let headers = headers.map(|(name, value)| json!({ "name": name, "value": value }));
        value.insert("httpHeaders".to_owned(), headers.collect());
    }
    Value::Object(value)
}

/// Calls `what` for every probe and lifecycle hook of a container. It gets a copy to change, so it can read the
/// container's ports at the same time.
fn for_each_handler(
    container: &mut Map<String, Value>,
    mut what: impl FnMut(
        &Map<String, Value>,
        ProbeKind,
        &mut Map<String, Value>,
    ) -> Result<(), InjectError>,
) -> Result<(), InjectError> {
    for (field, occasion) in PROBES {
        let Some(mut holder) = container.get(field).and_then(Value::as_object).cloned() else {
            continue;
        };
        what(container, occasion, &mut holder)?;
        container.insert(field.to_owned(), Value::Object(holder));
    }
    for (field, occasion) in HOOKS {
        let lifecycle = container.get("lifecycle");
        let hook = lifecycle.and_then(|lifecycle| lifecycle.get(field)?.as_object());
        let Some(mut holder) = hook.cloned() else {
            continue;
        };
        what(container, occasion, &mut holder)?;
        if let Some(Value::Object(lifecycle)) = container.get_mut("lifecycle") {
            lifecycle.insert(field.to_owned(), Value::Object(holder));
        }
    }
    Ok(())
}

/// `None`: the handler makes no network request to the program.
fn handler(
    container: &Map<String, Value>,
    occasion: ProbeKind,
    holder: &Map<String, Value>,
) -> Result<Option<Handler>, InjectError> {
    let port = |of: &Map<String, Value>| port(container, occasion, of.get("port"));
    // The kubelet itself still probes other hosts.
    let elsewhere = |of: &Map<String, Value>| {
        let host = of.get("host").and_then(Value::as_str);
        host.is_some_and(|host| !host.is_empty())
    };
    let part = |name: &str| holder.get(name).and_then(Value::as_object);
    if let Some(get) = part("httpGet") {
        if elsewhere(get) {
            return Ok(None);
        }
        let text = |name: &str| get.get(name).and_then(Value::as_str);
        let scheme = text("scheme").unwrap_or_default();
        let path = match text("path") {
            None | Some("") => "/".to_owned(),
            Some(path) if path.starts_with('/') => path.to_owned(),
            Some(path) => format!("/{path}"),
        };
        return Ok(Some(Handler::HttpGet(HttpGet {
            port: port(get)?,
            path,
            scheme: match scheme.eq_ignore_ascii_case("https") {
                true => Scheme::Https,
                false => Scheme::Http,
            },
            headers: headers(get),
        })));
    }
    if let Some(tcp) = part("tcpSocket") {
        if elsewhere(tcp) {
            return Ok(None);
        }
        return Ok(Some(Handler::TcpSocket(TcpSocket { port: port(tcp)? })));
    }
    if let Some(grpc) = part("grpc") {
        let service = grpc.get("service").and_then(Value::as_str);
        return Ok(Some(Handler::Grpc(Grpc {
            port: port(grpc)?,
            service: service.unwrap_or_default().to_owned(),
        })));
    }
    Ok(None)
}

fn headers(get: &Map<String, Value>) -> Vec<(String, String)> {
    let list = get.get("httpHeaders").and_then(Value::as_array);
    let pairs = list.into_iter().flatten().filter_map(|header| {
        let text = |field: &str| Some(header.get(field)?.as_str()?.to_owned());
        Some((text("name")?, text("value").unwrap_or_default()))
    });
    pairs.collect()
}

/// As the kubelet reads it: a number, the name of one of the container's ports, or a number in quotes.
fn port(
    container: &Map<String, Value>,
    occasion: ProbeKind,
    written: Option<&Value>,
) -> Result<u16, InjectError> {
    let number = |value: u64| u16::try_from(value).ok().filter(|port| *port > 0);
    let found = match written {
        Some(Value::Number(written)) => written.as_u64().and_then(number),
        Some(Value::String(name)) => named(container, name)
            .and_then(number)
            .or_else(|| name.parse().ok().filter(|port| *port > 0)),
        _ => None,
    };
    if let Some(port) = found.filter(|port| PROXY_PORTS.contains(port)) {
        // The proxy would probe itself.
        return Err(InjectError::OwnProbePort {
            container: pod::name(container).to_owned(),
            occasion: occasion.to_string(),
            port,
        });
    }
    found.ok_or_else(|| InjectError::ProbePort {
        container: pod::name(container).to_owned(),
        occasion: occasion.to_string(),
        port: match written {
            Some(Value::String(text)) => text.chars().take(64).collect(),
            Some(other) => other.to_string().chars().take(64).collect(),
            None => String::new(),
        },
    })
}

fn named(container: &Map<String, Value>, name: &str) -> Option<u64> {
    let ports = container.get("ports")?.as_array()?;
    let port = ports
        .iter()
        .find(|port| port.get("name").is_some_and(|n| n == name))?;
    port.get("containerPort")?.as_u64()
}

fn seconds(written: Option<&Value>) -> u32 {
    let written = written.and_then(Value::as_u64).filter(|given| *given > 0);
    written.map_or(1, |given| u32::try_from(given).unwrap_or(u32::MAX))
}
