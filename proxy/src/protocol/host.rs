//! The host of a request: its port, and the mesh service that it names.

use merlon_config::name::{Namespace, ServiceName};

use super::peer_header::parse_port;

/// Host and port of an authority.
pub(crate) fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    match authority.get(end..)?.rfind(':') {
        None => Some((authority, None)),
        Some(colon) => {
            let (host, port) = authority.split_at_checked(end + colon)?;
            Some((host, Some(parse_port(port.strip_prefix(':')?)?)))
        }
    }
}

/// The service that a host names: `name` or `name.namespace`, each optionally with `.svc` or `.svc.cluster.local`.
pub(crate) fn mesh_name(host: &str, own: &Namespace) -> Option<ServiceName> {
    let short = strip_cluster(host);
    match short.split_once('.') {
        None => Some(ServiceName {
            namespace: own.clone(),
            name: short.parse().ok()?,
        }),
        Some((name, namespace)) => {
            // Digits and dots are an address, not a name.
            if short
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
            {
                return None;
            }
            Some(ServiceName {
                namespace: namespace.parse().ok()?,
                name: name.parse().ok()?,
            })
        }
    }
}

pub(crate) fn strip_cluster(host: &str) -> &str {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.strip_suffix(".svc.cluster.local")
        .or_else(|| host.strip_suffix(".svc"))
        .unwrap_or(host)
}

/// Whether the host can only be a service of the mesh.
pub(crate) fn is_mesh_only(host: &str) -> bool {
    !host.contains('.') || strip_cluster(host).len() < host.trim_end_matches('.').len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(host: &str) -> Option<String> {
        mesh_name(host, &"shop".parse().unwrap()).map(|name| name.to_string())
    }

    #[test]
    fn every_common_form_of_a_service_name_resolves() {
        for host in [
            "orders",
            "orders.shop",
            "orders.shop.svc",
            "orders.shop.svc.cluster.local",
            "orders.shop.",
        ] {
            assert_eq!(resolved(host).as_deref(), Some("shop/orders"), "{host}");
        }
        assert_eq!(resolved("db.data").as_deref(), Some("data/db"));
        for host in ["127.0.0.1", "10.0", "api.example.com", "[::1]", "a_b"] {
            assert_eq!(resolved(host), None, "{host}");
        }
    }

    #[test]
    fn short_names_and_cluster_names_are_never_external() {
        assert!(is_mesh_only("orders"));
        assert!(is_mesh_only("orders.shop.svc"));
        assert!(!is_mesh_only("example.com"));
    }

    #[test]
    fn only_a_valid_port_is_split_off() {
        assert_eq!(split_port("a:80"), Some(("a", Some(80))));
        assert_eq!(split_port("a"), Some(("a", None)));
        assert_eq!(split_port("[::1]"), Some(("[::1]", None)));
        assert_eq!(split_port("[::1]:8080"), Some(("[::1]", Some(8080))));
        assert_eq!(split_port("a:0"), None);
    }
}
