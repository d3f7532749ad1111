//! The compiled matcher decides exactly as Cedar's evaluator does. The tests generate policies from a grammar without
//! validating them against the schema, so that evaluation errors are covered too.
//!
//! `MERLON_POLICY_CASES=100000 cargo test -p merlon-policy equality` runs more cases than the default.

use std::collections::BTreeSet;

use cedar_policy::Schema;
use jiff::Timestamp;
use merlon_config::snapshot::InboundService;
use proptest::{prelude::*, sample::select, test_runner::Config};

use super::*;
use crate::{
    authn::User,
    decision::Effect,
    document::Parsed,
    facts::{GrpcFacts, HttpFacts, TcpFacts, TlsFacts},
    tests::{alice, mesh, service},
};

/// Number of policy sets, each evaluated on [`REQUESTS`] requests.
fn cases() -> u32 {
    let cases = std::env::var("MERLON_POLICY_CASES").ok();
    cases.and_then(|text| text.parse().ok()).unwrap_or(400)
}

const REQUESTS: usize = 8;

fn text() -> impl Strategy<Value = String> + Clone {
    select(vec![
        r#""alice""#,
        r#""bob""#,
        r#""/users/alice""#,
        r#""a""#,
        r#""sales""#,
        r#""GET""#,
        r#""Post""#,
        r#""""#,
        r#""gateway""#,
        r#""é*""#,
        "context.path",
        "context.route",
        "context.host",
        "context.method",
        "context.service",
        "context.sni",
        "context.params.user",
        "context.params.id",
        r#"context.headers["x-tenant"]"#,
        "context.query.q",
        "context.user.subject",
        "context.user.acr",
        "context.user.clientId",
        "context.user.claims.department",
        "context.tls.version",
        "context.tls.spiffeId",
        "principal.serviceAccount",
        "context.country",
    ])
    .prop_map(str::to_owned)
}

fn texts() -> impl Strategy<Value = String> + Clone {
    select(vec![
        r#"["alice", "a"]"#,
        r#"["pwd"]"#,
        r#"["mfa", "hwk"]"#,
        "context.user.amr",
        "context.user.scopes",
        "context.user.audience",
        "context.user.claims.regions",
        "context.circumstances.schedules",
        "context.tls.dnsNames",
        r#"context.user.getTag("realm_access.roles")"#,
        r#"context.user.getTag("none")"#,
    ])
    .prop_map(str::to_owned)
}

fn long() -> impl Strategy<Value = String> + Clone {
    let leaf = select(vec![
        "0",
        "1",
        "3",
        "8080",
        "9223372036854775807",
        "context.port",
        "context.user.claims.clearance",
        "context.circumstances.now.toTime().toHours()",
        r#"context.circumstances.now.durationSince(datetime("2026-11-23")).toMinutes()"#,
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(2, 4, 2, |inner| {
        prop_oneof![
            (inner.clone(), select(vec!["+", "-", "*"]), inner.clone())
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            inner.prop_map(|a| format!("(-({a}))")),
        ]
    })
}

fn time() -> impl Strategy<Value = String> + Clone {
    select(vec![
        "context.circumstances.now",
        "context.user.authTime",
        r#"datetime("2026-11-23T12:00:00Z")"#,
        r#"datetime("2026-11-23T12:00:00.250+0130")"#,
        "context.circumstances.now.toDate()",
        r#"context.circumstances.now.offset(duration("-1d2h"))"#,
    ])
    .prop_map(str::to_owned)
}

const PEERS: [&str; 8] = [
    r#"Workload::"shop/web""#,
    r#"Workload::"edge/gateway""#,
    r#"Workload::"spiffe://other.test/ns/shop/sa/web""#,
    r#"Anonymous::"peer""#,
    r#"Namespace::"shop""#,
    r#"WorkloadGroup::"backoffice""#,
    r#"TrustDomain::"demo.test""#,
    r#"WorkloadGroup::"pci""#,
];

const SERVICES: [&str; 6] = [
    r#"Service::"shop/orders""#,
    r#"Service::"shop/other""#,
    r#"Namespace::"shop""#,
    r#"Namespace::"edge""#,
    r#"ServiceGroup::"internal""#,
    r#"TrustDomain::"demo.test""#,
];

fn atom() -> impl Strategy<Value = String> + Clone {
    let fixed = select(vec![
        "true",
        "false",
        "context has user",
        "context has user.acr",
        "context has user.claims.clearance",
        "context has route",
        "context has country",
        "context has tls",
        "context.tls has spiffeId",
        "context has params.id",
        "context.params has user",
        r#"context.headers has "x-tenant""#,
        "context.query has q",
        "context.user has acr",
        "context.user.claims has department",
        r#"context.user.hasTag("realm_access.roles")"#,
        r#"context.user.hasTag("none")"#,
        "context.user.claims.staff",
        "principal is Workload",
        "principal is Anonymous",
        r#"principal is Workload in Namespace::"shop""#,
        "principal has namespace",
        r#"principal.namespace == Namespace::"shop""#,
        r#"principal.trustDomain == TrustDomain::"demo.test""#,
        r#"principal.namespace == resource.namespace"#,
        r#"resource.namespace == Namespace::"shop""#,
        "resource is Service",
        r#"context.user == User::"customers#alice""#,
        r#"context.user != User::"customers#alice""#,
        r#"context.user in Group::"customers/gold""#,
        r#"context.user in [Group::"x/y", User::"customers#alice"]"#,
        r#"context.user.issuer == Issuer::"customers""#,
        r#"action == Action::"GET""#,
        r#"action in Action::"write""#,
        r#"action in [Action::"grpc", Action::"read"]"#,
        r#"action != Action::"tcp""#,
        r#"context.sourceIp.isInRange(ip("10.0.0.0/8"))"#,
        r#"context.clientIp.isInRange(ip("::/0"))"#,
        r#"context.sourceIp == ip("10.0.0.7")"#,
        "context.sourceIp.isIpv4()",
        "context.clientIp.isIpv6()",
        "context.circumstances.breakGlass.isEmpty()",
        r#"context.circumstances.now.toTime() < duration("12h30m")"#,
        // Left to Cedar.
        "context.sourceIp.isLoopback()",
        r#"context.user.amr == ["pwd", "mfa"]"#,
        "context.user.claims.regions == context.user.scopes",
        r#"context.user.claims.department == context.user.claims.department"#,
    ])
    .prop_map(str::to_owned);
    let compare = select(vec!["<", "<=", ">", ">=", "==", "!="]);
    prop_oneof![
        4 => fixed,
        2 => (text(), select(vec!["==", "!="]), text()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        1 => (text(), select(vec!["/users/*", "*a*", "a", "", "*", "/**e", "*é*"])).prop_map(|(a, like)| format!("{a} like \"{like}\"")),
        2 => (long(), compare.clone(), long()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        1 => (time(), compare, time()).prop_map(|(a, op, b)| format!("{a} {op} {b}")),
        1 => (select(PEERS.to_vec()), select(vec!["==", "in", "!="])).prop_map(|(of, op)| format!("principal {op} {of}")),
        1 => select(PEERS.to_vec()).prop_map(|of| format!("[{of}, Workload::\"ops/console\"].contains(principal)")),
        1 => select(PEERS.to_vec()).prop_map(|of| format!("principal in [{of}, Namespace::\"ops\"]")),
        1 => (select(SERVICES.to_vec()), select(vec!["==", "in"])).prop_map(|(of, op)| format!("resource {op} {of}")),
        1 => (texts(), text()).prop_map(|(set, item)| format!("{set}.contains({item})")),
        1 => (texts(), select(vec!["containsAny", "containsAll"]), texts()).prop_map(|(a, op, b)| format!("{a}.{op}({b})")),
        1 => texts().prop_map(|set| format!("{set}.isEmpty()")),
    ]
}

fn condition() -> impl Strategy<Value = String> {
    atom().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            3 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            2 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            2 => inner.clone().prop_map(|a| format!("!({a})")),
            1 => (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("(if {a} then {b} else {c})")),
        ]
    })
}

fn policy() -> impl Strategy<Value = String> {
    let principal = prop_oneof![
        2 => Just("principal".to_owned()),
        1 => select(PEERS.to_vec()).prop_map(|of| format!("principal == {of}")),
        1 => select(PEERS.to_vec()).prop_map(|of| format!("principal in {of}")),
        1 => Just("principal is Workload".to_owned()),
        1 => Just(r#"principal is Workload in Namespace::"shop""#.to_owned()),
    ];
    let action = select(vec![
        "action",
        r#"action == Action::"GET""#,
        r#"action == Action::"otherMethod""#,
        r#"action in Action::"http""#,
        r#"action in [Action::"write", Action::"grpc"]"#,
        r#"action in Action::"any""#,
        r#"action == Action::"http""#,
    ]);
    let resource = prop_oneof![
        3 => Just("resource".to_owned()),
        1 => select(SERVICES.to_vec()).prop_map(|of| format!("resource == {of}")),
        2 => select(SERVICES.to_vec()).prop_map(|of| format!("resource in {of}")),
        1 => Just("resource is ExternalService".to_owned()),
        1 => Just(r#"resource is Service in Namespace::"shop""#.to_owned()),
    ];
    let clause = (select(vec!["when", "unless"]), condition())
        .prop_map(|(word, of)| format!("{word} {{ {of} }}"));
    let effect = prop_oneof![2 => Just("permit"), 1 => Just("forbid")];
    (
        effect,
        principal,
        action,
        resource,
        prop::collection::vec(clause, 0..3),
    )
        .prop_map(|(effect, principal, action, resource, clauses)| {
            format!(
                "{effect} ({principal}, {action}, {resource}) {};",
                clauses.join(" ")
            )
        })
}

/// A request from few possible values, so that policies often match.
#[derive(Debug, Clone)]
struct Call {
    from: &'static str,
    kind: &'static str,
    method: &'static str,
    path: &'static str,
    query: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    source: &'static str,
    now: &'static str,
    user: Option<u8>,
    tls: bool,
}

fn call() -> impl Strategy<Value = Call> {
    let origin = (
        select(vec![
            "anonymous",
            "shop/web",
            "edge/gateway",
            "ops/console",
            "other",
        ]),
        select(vec![
            "10.0.0.7",
            "127.0.0.1",
            "::ffff:10.0.0.7",
            "2001:db8::1",
            "::1",
        ]),
        select(vec![
            "2026-11-23T10:30:00.250Z",
            "2026-11-23T12:30:00Z",
            "1969-12-31T23:00:00.001Z",
        ]),
        any::<bool>(),
        prop::option::of(0u8..3),
    );
    let request = (
        select(vec!["http", "http", "http", "grpc", "tcp"]),
        select(vec!["GET", "POST", "HEAD", "PURGE", "Post"]),
        select(vec![
            "/",
            "/users/alice/orders/7",
            "/users/bob/orders",
            "/users/alice",
            "/files/",
            "/a/é*e",
        ]),
        prop::option::of(select(vec!["q=a", "q=%61lice", "x=1"])),
        prop::collection::vec(
            select(vec![
                ("x-tenant", "a"),
                ("x-tenant", "alice"),
                ("x-other", "a"),
            ]),
            0..3,
        ),
    );
    (origin, request).prop_map(
        |((from, source, now, tls, user), (kind, method, path, query, headers))| Call {
            from,
            kind,
            method,
            path,
            query,
            headers,
            source,
            now,
            user,
            tls,
        },
    )
}

impl Call {
    fn user(&self) -> Option<User> {
        match self.user? {
            0 => Some(alice()),
            1 => Some(User::new("customers", "bob", Timestamp::MAX)),
            _ => Some(User {
                acr: Some("a".into()),
                client_id: Some("gateway".into()),
                auth_time: Some("2026-11-23T12:00:00Z".parse().unwrap()),
                scopes: vec!["a".into()],
                claims: [
                    (
                        "regions".to_owned(),
                        crate::authn::ClaimValue::StringSet(vec!["a".into()]),
                    ),
                    ("staff".to_owned(), crate::authn::ClaimValue::Boolean(true)),
                ]
                .into(),
                ..User::new("partners", "alice", Timestamp::MAX)
            }),
        }
    }

    fn principal(&self) -> Principal {
        match self.from {
            "anonymous" => Principal::Anonymous,
            "other" => Principal::Workload("spiffe://other.test/ns/shop/sa/web".parse().unwrap()),
            own => Principal::Workload(
                format!("spiffe://demo.test/ns/{}", own.replace('/', "/sa/"))
                    .parse()
                    .unwrap(),
            ),
        }
    }

    /// Calls `check` with the peer and the facts of this request.
    fn with_facts<T>(
        &self,
        policy: &ServicePolicy,
        check: impl FnOnce(&PeerFacts, &RequestFacts<'_>) -> T,
    ) -> T {
        let user = self.user();
        let route = policy.route(self.method, self.path);
        let names = ["a.test".to_owned()];
        let kind = match self.kind {
            "http" => RequestKind::Http(HttpFacts {
                host: "a",
                method: self.method,
                path: self.path,
                query: self.query,
                route: &route,
                headers: &self.headers,
            }),
            "grpc" => RequestKind::Grpc(GrpcFacts {
                host: "a",
                service: "alice",
                method: self.method,
                headers: &self.headers,
            }),
            _ => RequestKind::Tcp(TcpFacts { sni: self.query }),
        };
        let facts = RequestFacts {
            kind,
            source_ip: self.source.parse().unwrap(),
            client_ip: self.source.parse().unwrap(),
            port: 8080,
            now: self.now.parse().unwrap(),
            user: user.as_ref(),
            tls: self.tls.then_some(TlsFacts {
                version: "a",
                cipher: "b",
                dns_names: &names,
            }),
        };
        check(&policy.peer(&self.principal()), &facts)
    }

    fn decide(&self, policy: &ServicePolicy) -> Decision {
        self.with_facts(policy, |peer, facts| {
            policy.decide(&policy.candidates(peer), peer, facts)
        })
    }
}

fn unchecked(_: &[Parsed<'_>], _: &Schema) -> Vec<PolicyProblem> {
    Vec::new()
}

fn service_with(policies: &[String]) -> InboundService {
    let texts: Vec<String> = policies
        .iter()
        .enumerate()
        .map(|(number, policy)| format!("@id(\"p{number}\") {policy}"))
        .collect();
    service(&texts.join("\n"))
}

fn prepare(service: &InboundService) -> Prepared {
    Prepared::checked_by(unchecked, service, &mesh())
        .unwrap_or_else(|problems| panic!("{}", problems[0]))
}

fn compile(policies: &[String]) -> ServicePolicy {
    let service = service_with(policies);
    ServicePolicy::new(&service, &mesh(), prepare(&service))
}

/// Cedar's decision on one reading and the policies that decide. As in Merlon, a forbid with an error denies.
fn oracle(prepared: &Prepared, inputs: &Inputs) -> (bool, BTreeSet<String>) {
    let mut forbids = BTreeSet::new();
    let mut permits = BTreeSet::new();
    for policy in &prepared.policies {
        let name = policy.info.name.id.clone();
        match (policy.info.effect, inputs.evaluate_policy(&policy.cedar).0) {
            (Effect::Forbid, Verdict::Holds | Verdict::Error) => drop(forbids.insert(name)),
            (Effect::Permit, Verdict::Holds) => drop(permits.insert(name)),
            _ => {}
        }
    }
    if forbids.is_empty() {
        (!permits.is_empty(), permits)
    } else {
        (false, forbids)
    }
}

proptest! {
    #![proptest_config(Config { cases: cases(), failure_persistence: None, ..Config::default() })]

    #[test]
    fn the_matcher_decides_like_the_evaluator(
        policies in prop::collection::vec(policy(), 1..6),
        calls in prop::collection::vec(call(), REQUESTS),
    ) {
        let service = service_with(&policies);
        let prepared = prepare(&service);
        let matcher = ServicePolicy::new(&service, &mesh(), prepare(&service));
        for call in &calls {
            let (decision, expected) = call.with_facts(&matcher, |peer, facts| {
                let decision = matcher.decide(&matcher.candidates(peer), peer, facts);
                let route = match facts.kind {
                    RequestKind::Http(http) => prepared.router.find(http.method, http.path),
                    _ => RouteMatch::NONE,
                };
                let gathered = Gathered::new(&prepared.names, facts).expect("generated headers are valid");
                let mut all = Vec::new();
                for number in 0..gathered.readings() {
                    let headers = gathered.reading(number);
                    let reading = Reading {
                        action: facts.action(), peer, facts, router: &prepared.router, route: &route,
                        headers: &headers, query: &gathered.query,
                    };
                    let inputs = prepared.inputs.build(&reading).expect("generated facts match the schema");
                    all.push(oracle(&prepared, &inputs));
                }
                // The first denial decides, otherwise the first reading.
                let deciding = all.iter().position(|(allowed, _)| !allowed).unwrap_or(0);
                (decision, all.swap_remove(deciding))
            });
            let (allowed, determining) = expected;
            prop_assert_eq!(matches!(decision, Decision::Permit(_)), allowed, "{:?}\n{:#?}", call, policies);
            match decision.policy() {
                Some(name) => prop_assert!(determining.contains(&name.id), "{} of {:?}", name, determining),
                None => prop_assert!(determining.is_empty(), "{:?} {:?}\n{:#?}", determining, call, policies),
            }
        }
    }
}

proptest! {
    #![proptest_config(Config { cases: cases() / 4, failure_persistence: None, ..Config::default() })]

    #[test]
    fn order_never_changes_a_decision(
        policies in prop::collection::vec(policy(), 2..5),
        calls in prop::collection::vec(call(), REQUESTS),
        rotation in 1usize..4,
    ) {
        let mut reordered = policies.clone();
        reordered.rotate_left(rotation % policies.len());
        reordered.reverse();
        let (one, other) = (compile(&policies), compile(&reordered));
        for call in &calls {
            prop_assert_eq!(
                matches!(call.decide(&one), Decision::Permit(_)),
                matches!(call.decide(&other), Decision::Permit(_))
            );
        }
    }

    #[test]
    fn an_additional_forbid_never_allows_more(
        policies in prop::collection::vec(policy(), 1..4),
        forbid in policy().prop_map(|text| text.replacen("permit", "forbid", 1)),
        calls in prop::collection::vec(call(), REQUESTS),
    ) {
        let mut more = policies.clone();
        more.push(forbid);
        let (fewer, more) = (compile(&policies), compile(&more));
        for call in &calls {
            let admitted = matches!(call.decide(&more), Decision::Permit(_));
            prop_assert!(!admitted || matches!(call.decide(&fewer), Decision::Permit(_)));
        }
    }
}
