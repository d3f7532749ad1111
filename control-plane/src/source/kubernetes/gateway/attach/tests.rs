use k8s_openapi::ByteString;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{from_value, json};

use super::{super::report::ListenerStatus, *};
use crate::cluster::gateway_api::GROUP;

const NAMESPACE: &str = "merlon-system";

fn object(kind: &str, namespace: &str, name: &str, spec: &Value) -> Arc<DynamicObject> {
    let object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": { "namespace": namespace, "name": name, "uid": name, "generation": 3 },
        "spec": spec,
    });
    Arc::new(from_value(object).unwrap())
}

fn service(namespace: &str, name: &str, selector: &Value) -> Arc<Service> {
    let service = json!({
        "metadata": { "namespace": namespace, "name": name },
        "spec": { "selector": selector, "clusterIPs": ["10.9.0.1"], "ports": [{ "port": 80 }] },
    });
    Arc::new(from_value(service).unwrap())
}

fn secret(name: &str) -> Arc<Secret> {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["shop.example".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let mut secret: Secret =
        from_value(json!({ "metadata": { "namespace": NAMESPACE, "name": name } })).unwrap();
    let part = |name: &str, text: String| (name.to_owned(), ByteString(text.into_bytes()));
    secret.data = Some(BTreeMap::from([
        part("tls.crt", leaf.pem()),
        part("tls.key", key.serialize_pem()),
    ]));
    Arc::new(secret)
}

/// A Gateway with these listeners, and a namespace `shop` with the label `edge: yes`.
fn seen(listeners: &Value, routes: &[Value]) -> GatewayObjects {
    let class = json!({ "controllerName": "merlon.io/gateway" });
    let foreign = json!({ "controllerName": "example.org/other" });
    let gateway = json!({ "gatewayClassName": "edge", "listeners": listeners });
    let other = json!({ "gatewayClassName": "other", "listeners": listeners });
    let routes = routes.iter().enumerate();
    let shop = json!({ "metadata": { "name": "shop", "labels": { "edge": "yes" } } });
    GatewayObjects {
        namespace: NAMESPACE.to_owned(),
        classes: vec![
            object("GatewayClass", "", "edge", &class),
            object("GatewayClass", "", "other", &foreign),
        ],
        gateways: vec![
            object("Gateway", NAMESPACE, "main", &gateway),
            object("Gateway", NAMESPACE, "foreign", &other),
        ],
        routes: routes
            .map(|(index, spec)| object("HTTPRoute", "shop", &format!("route-{index}"), spec))
            .collect(),
        namespaces: vec![Arc::new(from_value(shop).unwrap())],
        services: vec![
            service("shop", "orders", &json!({ "app": "orders" })),
            service("bank", "accounts", &json!({ "app": "accounts" })),
            service(NAMESPACE, "main", &json!({ GATEWAY_LABEL: "main" })),
        ],
        secrets: vec![secret("cert")],
        ..GatewayObjects::default()
    }
}

fn http(allowed: &Value) -> Value {
    json!([{ "name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": { "namespaces": allowed } }])
}

fn everyone() -> Value {
    http(&json!({ "from": "All" }))
}

/// A route to the Service `shop/orders`, with the API server's defaults.
fn route() -> Value {
    json!({
        "parentRefs": [{ "group": GROUP, "kind": "Gateway", "namespace": NAMESPACE, "name": "main" }],
        "rules": [{
            "matches": [{ "path": { "type": "PathPrefix", "value": "/" } }],
            "backendRefs": [{ "group": "", "kind": "Service", "name": "orders", "port": 80, "weight": 1 }],
        }],
    })
}

fn with(mut route: Value, pointer: &str, value: Value) -> Value {
    if let Some(place) = route.pointer_mut(pointer) {
        *place = value;
        return route;
    }
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let parent = route.pointer_mut(parent).unwrap();
    parent
        .as_object_mut()
        .unwrap()
        .insert(last.to_owned(), value);
    route
}

/// The conditions `Accepted` and `ResolvedRefs` of the first route's first parent.
fn conditions(attached: &Attached) -> (ConditionDraft, ConditionDraft) {
    let report = attached.reports.iter().find(|one| one.kind == "HTTPRoute");
    let GatewayDetails::Route(parents) = &report.expect("a report").details else {
        panic!("of a route")
    };
    (parents[0].accepted.clone(), parents[0].resolved.clone())
}

fn gateway_details(attached: &Attached) -> (ConditionDraft, Vec<ListenerStatus>) {
    let report = attached.reports.iter().find(|one| one.kind == "Gateway");
    let GatewayDetails::Gateway {
        accepted,
        listeners,
        ..
    } = &report.expect("a report").details
    else {
        panic!("of a gateway")
    };
    (accepted.clone(), listeners.clone())
}

fn kinds(attached: &Attached) -> Vec<&'static str> {
    let all = attached.resources.iter();
    all.map(|resource| resource.spec.kind()).collect()
}

#[test]
fn a_gateway_of_merlons_class_and_its_routes_are_served_and_others_are_ignored() {
    let attached = attach(&seen(&everyone(), &[route()]));
    assert_eq!(kinds(&attached), ["HTTPRoute", "Gateway"]);
    let (accepted, resolved) = conditions(&attached);
    assert!(accepted.ok && resolved.ok, "{accepted:?} {resolved:?}");
    let (accepted, listeners) = gateway_details(&attached);
    assert!(accepted.ok);
    assert_eq!(listeners[0].attached, 1);
    let reported: Vec<_> = attached.reports.iter().map(|one| &*one.name).collect();
    assert_eq!(reported, ["edge", "route-0", "main"]);
}

#[test]
fn a_listener_accepts_routes_of_its_own_namespace_by_default() {
    let selector =
        |labels: Value| json!({ "from": "Selector", "selector": { "matchLabels": labels } });
    for (allowed, taken) in [
        (json!({ "from": "Same" }), false),
        (json!({}), false),
        (json!({ "from": "None" }), false),
        (json!({ "from": "Selector" }), false),
        (selector(json!({ "edge": "no" })), false),
        (selector(json!({ "edge": "yes" })), true),
        (json!({ "from": "All" }), true),
    ] {
        let attached = attach(&seen(&http(&allowed), &[route()]));
        let (accepted, _) = conditions(&attached);
        assert_eq!(accepted.ok, taken, "{allowed}: {accepted:?}");
        assert_eq!(kinds(&attached).contains(&"HTTPRoute"), taken);
        if !taken {
            assert_eq!(accepted.reason, "NotAllowedByListeners");
        }
    }
    for allowed in [json!({ "from": "Same" }), json!({})] {
        let mut seen = seen(&http(&allowed), &[]);
        seen.routes = vec![object("HTTPRoute", NAMESPACE, "own", &route())];
        let attached = attach(&seen);
        let (accepted, _) = conditions(&attached);
        assert!(accepted.ok, "{allowed}: {accepted:?}");
        assert!(kinds(&attached).contains(&"HTTPRoute"), "{allowed}");
    }
}

#[test]
fn a_route_is_attached_to_the_listeners_that_it_names_and_whose_host_matches() {
    let listeners = json!([
        { "name": "a", "port": 80, "protocol": "HTTP", "hostname": "*.shop.example", "allowedRoutes": { "namespaces": { "from": "All" } } },
        { "name": "b", "port": 81, "protocol": "HTTP", "allowedRoutes": { "namespaces": { "from": "All" } } },
    ]);
    let sections = |route: Value| {
        let attached = attach(&seen(&listeners, &[route]));
        let mut routes = attached.resources.iter().filter_map(|one| match &one.spec {
            Spec::HttpRoute(route) => Some(route),
            _ => None,
        });
        let refs = routes.next().map(|route| route.parent_refs.clone());
        let names = refs.unwrap_or_default().into_iter();
        let names: Vec<String> = names
            .map(|one| one.section_name.unwrap().to_string())
            .collect();
        (names.join(","), conditions(&attached).0.reason)
    };
    let with_hosts = |hosts: Value| with(route(), "/hostnames", hosts);
    assert_eq!(sections(route()), ("a,b".to_owned(), "Accepted"));
    assert_eq!(sections(with_hosts(json!(["api.shop.example"]))).0, "a,b");
    assert_eq!(sections(with_hosts(json!(["shop.example"]))).0, "b");
    let named = |section: &str| with(route(), "/parentRefs/0/sectionName", json!(section));
    assert_eq!(sections(named("b")).0, "b");
    assert_eq!(sections(named("c")), (String::new(), "NoMatchingParent"));
    let wrong = with(named("a"), "/hostnames", json!(["other.example"]));
    assert_eq!(
        sections(wrong),
        (String::new(), "NoMatchingListenerHostname")
    );
    let port = with(route(), "/parentRefs/0/port", json!(80));
    assert_eq!(sections(port).0, "a");
}

#[test]
fn an_unsupported_setting_of_a_route_is_refused_by_name_and_never_ignored() {
    let header =
        json!([{ "headers": [{ "name": "x", "value": ".*", "type": "RegularExpression" }] }]);
    for (pointer, value, expected) in [
        (
            "/rules/0/filters",
            json!([{ "type": "RequestRedirect" }]),
            "spec.rules[0].filters",
        ),
        (
            "/rules/0/timeouts",
            json!({ "request": "1s" }),
            "spec.rules[0].timeouts",
        ),
        ("/rules/0/matches", header, "spec.rules[0].matches[0]"),
        (
            "/rules/0/matches",
            json!([{ "queryParams": [{ "name": "a", "value": "b" }] }]),
            "queryParams",
        ),
        (
            "/rules/0/matches",
            json!([{ "path": { "type": "RegularExpression", "value": "/.*" } }]),
            "RegularExpression",
        ),
        (
            "/rules/0/backendRefs/0/filters",
            json!([{ "type": "URLRewrite" }]),
            "backendRefs[0].filters",
        ),
    ] {
        let attached = attach(&seen(&everyone(), &[with(route(), pointer, value)]));
        let (accepted, _) = conditions(&attached);
        assert_eq!((accepted.ok, accepted.reason), (false, "UnsupportedValue"));
        assert!(accepted.message.contains(expected), "{}", accepted.message);
        assert_eq!(kinds(&attached), ["Gateway"]);
    }
}

/// The first backend and its condition.
fn backend(seen: &GatewayObjects) -> (String, ConditionDraft) {
    let attached = attach(seen);
    let mut routes = attached.resources.iter().filter_map(|one| match &one.spec {
        Spec::HttpRoute(route) => Some(&route.rules[0].backend_refs[0]),
        _ => None,
    });
    let found = routes.next().expect("a backend");
    let namespace = found.namespace.as_ref().map(ToString::to_string);
    (
        format!("{}/{}", namespace.unwrap_or_default(), found.name),
        conditions(&attached).1,
    )
}

#[test]
fn a_backend_in_another_namespace_requires_a_reference_grant_there() {
    let foreign = json!({ "name": "accounts", "namespace": "bank", "port": 80 });
    let mut seen = seen(
        &everyone(),
        &[with(route(), "/rules/0/backendRefs/0", foreign)],
    );
    let (to, resolved) = backend(&seen);
    assert_eq!(
        (&*to, resolved.reason),
        ("/merlon-leads-nowhere", "RefNotPermitted")
    );
    let grant = |from: &str, name: Value| {
        json!({
            "from": [{ "group": GROUP, "kind": "HTTPRoute", "namespace": from }],
            "to": [{ "group": "", "kind": "Service", "name": name }],
        })
    };
    for (namespace, spec, permitted) in [
        ("bank", grant("elsewhere", Value::Null), false),
        ("shop", grant("shop", Value::Null), false),
        ("bank", grant("shop", json!("others")), false),
        ("bank", grant("shop", json!("accounts")), true),
        ("bank", grant("shop", Value::Null), true),
    ] {
        seen.grants = vec![object("ReferenceGrant", namespace, "grant", &spec)];
        let (to, resolved) = backend(&seen);
        assert_eq!(resolved.ok, permitted, "{spec}");
        assert_eq!(to == "bank/accounts", permitted);
    }
}

#[test]
fn a_missing_backend_keeps_its_share_and_leads_nowhere() {
    for (value, reason) in [
        (
            json!({ "name": "gone", "port": 80, "weight": 7 }),
            "BackendNotFound",
        ),
        (
            json!({ "name": "orders", "port": 81, "weight": 7 }),
            "BackendNotFound",
        ),
        (
            json!({ "name": "orders", "group": "example.org", "kind": "Bucket", "weight": 7 }),
            "InvalidKind",
        ),
    ] {
        let seen = seen(
            &everyone(),
            &[with(route(), "/rules/0/backendRefs/0", value)],
        );
        let (to, resolved) = backend(&seen);
        assert_eq!((&*to, resolved.reason), ("/merlon-leads-nowhere", reason));
    }
}

fn https(certificate: &Value) -> Value {
    json!([{ "name": "https", "port": 443, "protocol": "HTTPS", "tls": { "mode": "Terminate", "certificateRefs": [certificate] } }])
}

#[test]
fn a_tls_listener_has_the_certificate_of_a_valid_secret() {
    let attached = attach(&seen(&https(&json!({ "name": "cert" })), &[]));
    let (accepted, listeners) = gateway_details(&attached);
    assert!(accepted.ok && listeners[0].resolved.ok);
    let names: Vec<String> = attached
        .certificates
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(names, ["merlon-system/cert"]);
    for (reference, reason, expected) in [
        (
            json!({ "name": "gone" }),
            "InvalidCertificateRef",
            "no Secret `merlon-system/gone`",
        ),
        (
            json!({ "name": "cert", "namespace": "shop" }),
            "RefNotPermitted",
            "create it in `merlon-system`",
        ),
        (
            json!({ "name": "cert", "kind": "ConfigMap" }),
            "InvalidCertificateRef",
            "`ConfigMap`",
        ),
    ] {
        let attached = attach(&seen(&https(&reference), &[]));
        let (accepted, listeners) = gateway_details(&attached);
        assert_eq!((accepted.ok, accepted.reason), (false, "ListenersNotValid"));
        assert_eq!(listeners[0].resolved.reason, reason);
        assert!(listeners[0].resolved.message.contains(expected));
        assert!(attached.certificates.is_empty());
    }
    // The key of another certificate.
    let mut mixed = seen(&https(&json!({ "name": "cert" })), &[]);
    let mut pair = (*secret("cert")).clone();
    let other = (*secret("cert")).clone().data.unwrap()["tls.key"].clone();
    pair.data
        .as_mut()
        .unwrap()
        .insert("tls.key".to_owned(), other);
    mixed.secrets = vec![Arc::new(pair)];
    let (_, listeners) = gateway_details(&attach(&mixed));
    assert_eq!(listeners[0].resolved.reason, "InvalidCertificateRef");
}

#[test]
fn an_invalid_listener_does_not_affect_the_others() {
    let listeners = json!([
        { "name": "http", "port": 80, "protocol": "HTTP" },
        { "name": "raw", "port": 81, "protocol": "TCP" },
        { "name": "twice", "port": 80, "protocol": "HTTPS", "tls": { "certificateRefs": [{ "name": "cert" }] } },
        { "name": "own", "port": 7562, "protocol": "HTTP" },
        { "name": "through", "port": 444, "protocol": "HTTPS", "tls": { "mode": "Passthrough" } },
    ]);
    let attached = attach(&seen(&listeners, &[]));
    let (accepted, listeners) = gateway_details(&attached);
    assert_eq!((accepted.ok, accepted.reason), (true, "ListenersNotValid"));
    let reasons: Vec<_> = listeners.iter().map(|one| one.accepted.reason).collect();
    assert_eq!(
        reasons,
        [
            "Accepted",
            "UnsupportedProtocol",
            "ProtocolConflict",
            "PortUnavailable",
            "UnsupportedValue"
        ]
    );
    let Spec::Gateway(made) = &attached.resources[0].spec else {
        panic!("a gateway")
    };
    assert_eq!(made.listeners.len(), 1);
}

#[test]
fn a_gateway_with_unsupported_settings_or_the_name_of_a_service_is_not_served() {
    let wrong = |change: &dyn Fn(&mut GatewayObjects)| {
        let mut seen = seen(&everyone(), &[route()]);
        change(&mut seen);
        let attached = attach(&seen);
        assert!(attached.resources.is_empty(), "{:?}", attached.resources);
        gateway_details(&attached).0
    };
    let gateway = |extra: Value| {
        let mut spec = json!({ "gatewayClassName": "edge", "listeners": everyone() });
        spec.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        vec![object("Gateway", NAMESPACE, "main", &spec)]
    };
    let client = json!({ "tls": { "frontend": { "default": {} } } });
    let condition = wrong(&|seen| seen.gateways = gateway(client.clone()));
    assert!(condition.message.starts_with("spec.tls: "), "{condition:?}");
    let condition =
        wrong(&|seen| seen.gateways = gateway(json!({ "addresses": [{ "value": "1.2.3.4" }] })));
    assert_eq!(condition.reason, "UnsupportedAddress");
    let condition = wrong(&|seen| {
        seen.services
            .push(service(NAMESPACE, "main", &json!({ "app": "x" })))
    });
    assert!(
        condition.message.contains("`merlon-system/main`"),
        "{condition:?}"
    );
    let condition = wrong(&|seen| seen.namespace = "elsewhere".to_owned());
    assert!(condition.message.contains("`elsewhere`"), "{condition:?}");
}

#[test]
fn a_status_is_written_once_and_keeps_the_entries_of_other_controllers() {
    let attached = attach(&seen(&everyone(), &[route()]));
    let report = attached
        .reports
        .iter()
        .find(|one| one.kind == "HTTPRoute")
        .unwrap();
    let other = json!({ "controllerName": "example.org/other", "parentRef": { "name": "x" }, "conditions": [] });
    let before = json!({ "parents": [other] });
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    let first = report.status(Some(&before), 0, early.parse().unwrap());
    assert_eq!(first["parents"][0], other);
    assert_eq!(first["parents"][1]["conditions"][0]["status"], "True");
    assert_eq!(report.status(Some(&first), 0, late.parse().unwrap()), first);
    let gateway = attached
        .reports
        .iter()
        .find(|one| one.kind == "Gateway")
        .unwrap();
    let programmed = |enforcing| {
        let status = gateway.status(None, enforcing, early.parse().unwrap());
        (
            status["conditions"][1]["status"].clone(),
            status["listeners"][0]["conditions"][3]["status"].clone(),
        )
    };
    assert_eq!(programmed(0), (json!("False"), json!("False")));
    assert_eq!(programmed(2), (json!("True"), json!("True")));
}
