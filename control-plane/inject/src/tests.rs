use merlon_config::{
    injection::InjectionSettings,
    probe::{HookKey, Probes},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn settings() -> InjectionSettings {
    let text = "\
proxyImage: registry.example.org/merlon-proxy:0.1.0
interceptImage: registry.example.org/merlon-intercept:0.1.0
imagePullPolicy: IfNotPresent
controlPlane: https://merlon-control-plane.merlon-system.svc:7564
proxyResources: { requests: { cpu: 20m, memory: 24Mi }, limits: { memory: 128Mi } }
drainTimeout: 20s
excludeOutboundIpRanges: [169.254.169.254/32]
";
    InjectionSettings::parse("injection.yaml", text).unwrap()
}

fn key() -> HookKey {
    HookKey::new(0xfeed)
}

fn injected(pod: &Value) -> Value {
    match inject(pod, "shop", &settings(), &key()) {
        Ok(Injection::Changed { object, .. }) => object,
        other => panic!("{other:?}"),
    }
}

fn refusal(pod: &Value) -> String {
    inject(pod, "shop", &settings(), &key())
        .unwrap_err()
        .to_string()
}

fn pod(container: &Value) -> Value {
    let mut container = container.clone();
    container["name"] = json!("web");
    json!({ "spec": { "containers": [container] } })
}

fn annotated(name: &str, value: &str) -> Value {
    json!({
        "metadata": { "annotations": { name: value } },
        "spec": { "containers": [{ "name": "web" }] },
    })
}

fn rich() -> Value {
    json!({
        "metadata": {
            "labels": { "app": "orders" },
            "annotations": { "merlon.io/exclude-outbound-ports": " 5432 , 9000-9010", "team": "shop" },
        },
        "spec": {
            "serviceAccountName": "orders",
            "someFieldOfTheFuture": { "kept": true },
            "initContainers": [
                { "name": "migrate", "image": "migrate" },
                {
                    "name": "logs", "image": "logs", "restartPolicy": "Always",
                    "startupProbe": { "tcpSocket": { "port": 24224 } },
                },
            ],
            "containers": [{
                "name": "orders",
                "image": "orders",
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "livenessProbe": {
                    "httpGet": {
                        "path": "/live?full", "port": "http", "scheme": "HTTPS",
                        "httpHeaders": [{ "name": "Host", "value": "orders" }],
                    },
                    "timeoutSeconds": 3, "terminationGracePeriodSeconds": 5,
                },
                "readinessProbe": { "grpc": { "port": 9090, "service": "shop.Orders" }, "periodSeconds": 7 },
                "startupProbe": { "exec": { "command": ["true"] } },
                "lifecycle": { "preStop": { "httpGet": { "path": "quit", "port": 8080 } } },
            }],
            "volumes": [{ "name": "data", "emptyDir": {} }],
        },
    })
}

#[test]
fn the_interception_rules_and_the_sidecar_come_before_the_pods_own_containers() {
    insta::assert_json_snapshot!(injected(&rich()));
}

#[test]
fn a_pod_that_is_injected_already_stays_as_it_is() {
    let once = injected(&rich());
    let again = inject(&once, "shop", &settings(), &key());
    assert_eq!(again, Ok(Injection::Unchanged(SkipReason::UpToDate)));
}

#[test]
fn other_settings_replace_what_an_earlier_injection_made() {
    let older = injected(&rich());
    let mut newer = settings();
    newer.proxy_image = "registry.example.org/merlon-proxy:0.2.0".to_owned();
    let Ok(Injection::Changed { object: again, .. }) = inject(&older, "shop", &newer, &key())
    else {
        panic!("it changes");
    };
    let Ok(Injection::Changed { object: once, .. }) = inject(&rich(), "shop", &newer, &key())
    else {
        panic!("it changes");
    };
    // A port name is replaced by its number, which is the same to the kubelet.
    assert_eq!(again, once);
    assert_ne!(settings_hash(&settings()), settings_hash(&newer));
}

#[test]
fn a_pod_that_only_claims_to_have_a_sidecar_gets_one() {
    let mut claiming = rich();
    claiming["metadata"]["annotations"][INJECTED] = json!(settings_hash(&settings()));
    claiming["metadata"]["labels"][MESHED] = json!("true");
    assert_eq!(injected(&claiming), injected(&rich()));
    let own = json!({ "name": PROXY_CONTAINER, "image": "own", "restartPolicy": "Always" });
    let list = claiming["spec"]["initContainers"].as_array_mut().unwrap();
    list.insert(0, own);
    assert_eq!(injected(&claiming), injected(&rich()));
}

#[test]
fn the_proxy_gets_the_probes_that_it_makes_for_the_node() {
    let object = injected(&rich());
    let proxy = &object["spec"]["initContainers"][1];
    let text = pod::variable(proxy, "MERLON_PROBES").unwrap();
    let probes: Probes = serde_json::from_str(text).unwrap();
    insta::assert_json_snapshot!(probes);
}

#[test]
fn programs_mount_secrets_read_only_and_only_the_proxy_may_write_them() {
    let pod = annotated("merlon.io/mount-secrets", "true");
    let once = injected(&pod);
    let mounted = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().unwrap().iter();
        let mut own = mounts.filter(|mount| mount["name"] == "merlon-secrets");
        own.next().map(|mount| mount["readOnly"] == true)
    };
    let of = |field: &str, name: &str| {
        let mut all = once["spec"][field].as_array().unwrap().iter();
        let found = all.find(|one| one["name"] == name);
        mounted(found.unwrap())
    };
    let program = pod["spec"]["containers"][0]["name"].as_str().unwrap();
    assert_eq!(of("containers", program), Some(true));
    assert_eq!(of("initContainers", "merlon-proxy"), Some(false));
    assert_eq!(of("initContainers", "merlon-init"), None);
    assert_eq!(
        inject(&once, "shop", &settings(), &key()),
        Ok(Injection::Unchanged(SkipReason::UpToDate))
    );
    // Without the annotation the mounts are removed.
    let mut without = once;
    without["metadata"]["annotations"]["merlon.io/mount-secrets"] = json!("false");
    assert!(!injected(&without).to_string().contains("merlon-secrets"));
    let wrong = refusal(&annotated("merlon.io/mount-secrets", "yes"));
    assert!(wrong.contains("neither `true` nor `false`"), "{wrong}");
}

#[test]
fn a_pod_can_disable_injection() {
    let disabled = json!({
        "metadata": { "labels": { "merlon.io/inject": "disabled" } },
        "spec": { "hostNetwork": true, "containers": [] },
    });
    let kept = inject(&disabled, "shop", &settings(), &key());
    assert_eq!(kept, Ok(Injection::Unchanged(SkipReason::Disabled)));
}

#[test]
fn a_pod_that_cannot_be_in_the_mesh_is_refused_with_a_fix() {
    let get = |port: Value| json!({ "livenessProbe": { "httpGet": { "port": port } } });
    let labelled = json!({
        "metadata": { "labels": { "merlon.io/inject": "yes" } }, "spec": { "containers": [] },
    });
    let all = [
        json!({ "spec": { "hostNetwork": true, "containers": [] } }),
        json!({ "spec": { "os": { "name": "windows" }, "containers": [] } }),
        json!({ "spec": { "nodeSelector": { "kubernetes.io/os": "windows" }, "containers": [] } }),
        json!({ "spec": { "securityContext": { "runAsUser": 7565 }, "containers": [] } }),
        pod(&json!({ "securityContext": { "runAsUser": 7565 } })),
        pod(&json!({ "ports": [{ "containerPort": 7561 }] })),
        pod(&json!({ "volumeMounts": [{ "name": "merlon-token", "mountPath": "/t" }] })),
        json!({ "spec": { "containers": [{ "name": "merlon-proxy" }] } }),
        json!({ "spec": { "initContainers": [{ "name": "merlon-proxy" }], "containers": [] } }),
        json!({ "spec": { "containers": [], "volumes": [{ "name": "merlon-state" }] } }),
        pod(&get(json!("http"))),
        pod(&get(json!(0))),
        pod(&get(json!(70_000))),
        pod(&get(json!(7563))),
        labelled,
        annotated("merlon.io/exclude-outbound-port", "80"),
        annotated("merlon.io/exclude-outbound-ports", "80,http"),
        annotated("merlon.io/exclude-inbound-ports", "9010-9000"),
        annotated("merlon.io/exclude-outbound-ip-ranges", "10.0.0.0/33"),
        json!({ "spec": { "containers": {} } }),
        json!({ "spec": { "containers": ["web"] } }),
        json!({ "metadata": { "annotations": { "a": 1 } }, "spec": {} }),
        json!([]),
    ];
    let messages: Vec<String> = all.iter().map(refusal).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn settings_that_let_a_program_bypass_its_sidecar_cause_warnings() {
    let pod = json!({ "spec": {
        "shareProcessNamespace": true,
        "containers": [
            { "name": "a", "securityContext": { "privileged": true } },
            { "name": "b", "securityContext": { "capabilities": { "add": ["CAP_NET_ADMIN", "CHOWN", "setuid", "NET_RAW"] } } },
            { "name": "as-it-comes" },
            { "name": "without-setuid", "securityContext": { "runAsUser": 0, "capabilities": { "drop": ["CAP_SETUID"] } } },
            { "name": "nothing-left", "securityContext": { "capabilities": { "drop": ["all"] } } },
            { "name": "a-user", "securityContext": { "runAsUser": 1000 } },
            { "name": "no-root", "securityContext": { "runAsNonRoot": true } },
        ],
    } });
    let Ok(Injection::Changed { warnings, .. }) = inject(&pod, "shop", &settings(), &key()) else {
        panic!("it changes");
    };
    insta::assert_snapshot!(warnings.join("\n"));
}

#[test]
fn of_many_warnings_the_most_severe_are_shown_and_the_rest_is_counted() {
    let mut containers = vec![json!({ "name": "plain" }); 30];
    containers.push(json!({ "name": "severe", "securityContext": { "privileged": true } }));
    let pod = json!({ "spec": { "containers": containers } });
    let Ok(Injection::Changed { warnings, .. }) = inject(&pod, "shop", &settings(), &key()) else {
        panic!("it changes");
    };
    assert_eq!(warnings.len(), 21);
    assert!(
        warnings[0].contains("the privileged container `severe`"),
        "{}",
        warnings[0]
    );
    assert_eq!(warnings[20], "merlon: 11 more warnings");
}

#[test]
fn a_pod_whose_programs_cannot_be_root_causes_no_warning() {
    let mut pod = pod(&json!({}));
    for context in [
        json!({ "runAsNonRoot": true }),
        json!({ "runAsUser": 1000 }),
    ] {
        pod["spec"]["securityContext"] = context;
        let injected = inject(&pod, "shop", &settings(), &key());
        let Ok(Injection::Changed { warnings, .. }) = injected else {
            panic!("it changes");
        };
        assert_eq!(warnings, [""; 0]);
    }
}

#[test]
fn a_probe_of_another_host_is_not_redirected() {
    let probe = json!({ "httpGet": { "port": 80, "host": "status.example.org" } });
    let object = injected(&pod(&json!({ "livenessProbe": probe })));
    assert_eq!(object["spec"]["containers"][0]["livenessProbe"], probe);
}

#[test]
fn the_kubelet_expands_nothing_in_the_proxys_probes() {
    let probe = json!({ "httpGet": { "port": 80, "path": "/$(SECRET)$$" } });
    let object = injected(&pod(&json!({ "livenessProbe": probe })));
    let text = pod::variable(&object["spec"]["initContainers"][1], "MERLON_PROBES").unwrap();
    assert!(text.contains("/$$(SECRET)$$$$"), "{text}");
    let again = inject(&object, "shop", &settings(), &key());
    assert_eq!(again, Ok(Injection::Unchanged(SkipReason::UpToDate)));
}

/// The path of the pod's `preStop` hook.
fn hook(pod: &Value) -> String {
    let get = &pod["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"];
    assert_eq!(get["port"], 7563);
    get["path"].as_str().unwrap().to_owned()
}

#[test]
fn the_path_of_a_hook_contains_a_key_that_belongs_to_the_pod_and_stays() {
    let quit = json!({ "preStop": { "httpGet": { "port": 80, "path": "/quit" } } });
    let pod = pod(&json!({ "lifecycle": quit }));
    let once = injected(&pod);
    let path = hook(&once);
    assert_eq!(path, format!("/probe/web/preStop/{}", key()));
    let text = pod::variable(&once["spec"]["initContainers"][1], "MERLON_PROBES").unwrap();
    let probes: Probes = serde_json::from_str(text).unwrap();
    assert_eq!(probes.keys().collect::<Vec<_>>(), [&path]);
    let other = HookKey::new(0xbeef);
    let Ok(Injection::Changed { object, .. }) = inject(&pod, "shop", &settings(), &other) else {
        panic!("it changes");
    };
    assert_eq!(hook(&object), format!("/probe/web/preStop/{other}"));
    // A pod that has a key keeps it, whatever key the next injection generates.
    let again = inject(&once, "shop", &settings(), &other);
    assert_eq!(again, Ok(Injection::Unchanged(SkipReason::UpToDate)));
}

#[test]
fn a_hook_that_was_redirected_without_a_key_gets_one() {
    let quit = json!({ "preStop": { "httpGet": { "port": 80, "path": "/quit" } } });
    let pod = pod(&json!({ "lifecycle": quit }));
    let keyless = injected(&pod)
        .to_string()
        .replace(&format!("/{}", key()), "");
    let keyless: Value = serde_json::from_str(&keyless).unwrap();
    assert_eq!(hook(&keyless), "/probe/web/preStop");
    assert_eq!(injected(&keyless), injected(&pod));
}

#[test]
fn a_number_in_quotes_is_a_port_as_for_the_kubelet() {
    let probe = json!({ "tcpSocket": { "port": "8080" } });
    let object = injected(&pod(&json!({ "livenessProbe": probe })));
    let redirected = &object["spec"]["containers"][0]["livenessProbe"]["httpGet"];
    assert_eq!(redirected["path"], "/probe/web/liveness");
}

/// Any JSON, with some field names of a pod.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        "[a-z]{0,6}".prop_map(Value::from),
    ];
    let word = prop_oneof![
        Just("spec".to_owned()),
        Just("containers".to_owned()),
        Just("initContainers".to_owned()),
        Just("name".to_owned()),
        Just("livenessProbe".to_owned()),
        Just("lifecycle".to_owned()),
        Just("preStop".to_owned()),
        Just("httpGet".to_owned()),
        Just("port".to_owned()),
        Just("metadata".to_owned()),
        Just("labels".to_owned()),
        "[a-z]{1,4}",
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(word.clone(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A port that is not reserved for the proxy.
fn ports() -> impl Strategy<Value = u16> {
    (1_u16..).prop_filter("reserved", |port| !(7560..=7563).contains(port))
}

/// A probe or a lifecycle hook.
fn handler() -> impl Strategy<Value = Value> {
    prop_oneof![
        ports().prop_map(|port| json!({ "tcpSocket": { "port": port }, "periodSeconds": 3 })),
        ports().prop_map(|port| json!({ "httpGet": { "port": port, "path": "/a" } })),
        ports().prop_map(|port| json!({ "grpc": { "port": port }, "failureThreshold": 9 })),
        Just(json!({ "exec": { "command": ["true"] } })),
        Just(json!({ "httpGet": { "port": 80, "host": "elsewhere.example.org" } })),
    ]
}

fn container() -> impl Strategy<Value = Value> {
    let optional = || prop::option::of(handler());
    let parts = (
        "[a-z]{1,8}",
        any::<bool>(),
        optional(),
        optional(),
        optional(),
        optional(),
    );
    parts.prop_map(|(name, sidecar, liveness, readiness, startup, stop)| {
        let mut container = json!({ "name": name, "image": name, "ofTheFuture": [1] });
        let probes = [
            ("livenessProbe", liveness),
            ("readinessProbe", readiness),
            ("startupProbe", startup),
        ];
        for (field, probe) in probes {
            if let Some(probe) = probe {
                container[field] = probe;
            }
        }
        if let Some(stop) = stop {
            container["lifecycle"] = json!({ "preStop": stop, "stopSignal": "SIGQUIT" });
        }
        if sidecar {
            container["restartPolicy"] = json!("Always");
        }
        container
    })
}

/// Pods whose fields have the right types.
fn pods() -> impl Strategy<Value = Value> {
    let list = || prop::collection::vec(container(), 0..4);
    let labels = prop::collection::btree_map("[a-z]{1,4}", "[a-z]{0,4}", 0..3);
    (list(), list(), labels, any::<bool>()).prop_map(|(first, then, labels, volume)| {
        let mut pod = json!({
            "metadata": { "labels": labels, "annotations": labels, "name": "one" },
            "spec": { "initContainers": first, "containers": then, "nodeName": "one", "volumes": [] },
            "ofTheFuture": { "kept": true },
        });
        if volume {
            pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
        }
        pod
    })
}

/// The pod without the sidecar and without network probes and hooks.
fn own(pod: &Value) -> Value {
    let mut pod = pod.clone();
    let ours = |one: &Value| {
        one["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("merlon-"))
    };
    for field in ["initContainers", "containers", "volumes"] {
        let list = pod["spec"][field].as_array_mut().unwrap();
        list.retain(|one| !ours(one));
        for container in list {
            for place in [
                "/livenessProbe",
                "/readinessProbe",
                "/startupProbe",
                "/lifecycle/preStop",
            ] {
                if let Some(Value::Object(handler)) = container.pointer_mut(place) {
                    handler.retain(|kind, _| {
                        !matches!(kind.as_str(), "httpGet" | "tcpSocket" | "grpc")
                    });
                }
            }
        }
    }
    for field in ["labels", "annotations"] {
        let map = pod["metadata"][field].as_object_mut().unwrap();
        map.retain(|name, _| !name.starts_with("merlon.io/"));
    }
    pod
}

proptest! {
    #[test]
    fn nothing_panics(value in anything()) {
        let _ = inject(&value, "shop", &settings(), &key());
        let _ = inject(&json!({ "spec": value }), "shop", &settings(), &key());
    }

    #[test]
    fn injecting_twice_is_the_same_as_once(pod in pods()) {
        let once = injected(&pod);
        prop_assert_eq!(inject(&once, "shop", &settings(), &key()), Ok(Injection::Unchanged(SkipReason::UpToDate)));
    }

    #[test]
    fn nothing_changes_but_the_sidecar_and_the_probes_and_hooks(pod in pods()) {
        let once = injected(&pod);
        prop_assert_eq!(own(&once), own(&pod));
        let names: Vec<_> = once["spec"]["initContainers"].as_array().unwrap().iter()
            .take(2).map(|one| one["name"].clone()).collect();
        prop_assert_eq!(names, ["merlon-init", "merlon-proxy"]);
    }

    #[test]
    fn every_network_probe_and_hook_is_made_by_the_proxy_or_stays(pod in pods()) {
        let once = injected(&pod);
        let text = pod::variable(&once["spec"]["initContainers"][1], "MERLON_PROBES");
        let probes: Probes = text.map(|text| serde_json::from_str(text).unwrap()).unwrap_or_default();
        for field in pod::CONTAINERS {
            for container in once["spec"][field].as_array().unwrap() {
                let runs = field == "containers" || container["restartPolicy"] == "Always";
                if !runs || container["name"].as_str().unwrap().starts_with("merlon-") {
                    continue;
                }
                for place in ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/preStop"] {
                    let Some(handler) = container.pointer(place) else { continue };
                    prop_assert!(handler.get("tcpSocket").is_none() && handler.get("grpc").is_none());
                    if let Some(get) = handler.get("httpGet").filter(|get| get.get("host").is_none()) {
                        prop_assert_eq!(&get["port"], 7563);
                        prop_assert!(probes.contains_key(get["path"].as_str().unwrap()));
                    }
                }
            }
        }
    }
}
