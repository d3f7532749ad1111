use std::collections::BTreeMap;

use jiff::Timestamp;
use merlon_config::snapshot::{InboundService, MeshState, PolicyDocument};

use super::*;
use crate::{
    authn::{ClaimValue, User},
    decision::Effect,
    facts::{GrpcFacts, HttpFacts, NoHeaders, TcpFacts},
};

/// A service `shop/orders` with policies, asked in sentences.
struct Ask {
    policy: ServicePolicy,
    user: Option<User>,
    headers: Vec<(&'static str, &'static [u8])>,
    query: Option<&'static str>,
    source: &'static str,
}

pub(crate) fn mesh() -> MeshState {
    MeshState {
        trust_domain: "demo.test".parse().unwrap(),
        root_namespace: "merlon-system".parse().unwrap(),
        outbound: Default::default(),
        gateways: Default::default(),
    }
}

pub(crate) fn service(text: &str) -> InboundService {
    let mut service: InboundService = serde_json::from_value(serde_json::json!({
        "name": "shop/orders",
        "groups": ["internal"],
        "workloadGroups": { "backoffice": ["ops/console"], "pci": ["shop/web"] },
        "authentication": [{ "from": "shop/tokens", "spec": { "issuers": [{
            "name": "customers", "issuer": "https://id.test", "audiences": ["orders"],
            "claims": { "department": "String", "clearance": "Long", "regions": "StringSet", "staff": "Boolean" },
        }] } }],
        "validation": [{ "from": "shop/shape", "spec": { "routes": [
            { "path": "/users/{user}/orders/{id}" },
            { "path": "/users/{user}/orders" },
            { "path": "/files/{rest*}" },
        ] } }],
    }))
    .unwrap();
    service.policies = vec![PolicyDocument {
        name: "shop/orders".parse().unwrap(),
        origin: String::new(),
        text: text.to_owned(),
    }];
    service
}

pub(crate) fn alice() -> User {
    User {
        groups: vec!["customers/gold".into()],
        amr: vec!["pwd".into(), "mfa".into()],
        claims: BTreeMap::from([
            ("department".into(), ClaimValue::String("sales".into())),
            ("clearance".into(), ClaimValue::Long(3)),
        ]),
        tags: BTreeMap::from([("realm_access.roles".into(), vec!["buyer".into()])]),
        ..User::new("customers", "alice", Timestamp::MAX)
    }
}

impl Ask {
    fn of(text: &str) -> Self {
        Self::service(&service(text))
    }

    fn service(service: &InboundService) -> Self {
        let policy = ServicePolicy::compile(service, &mesh())
            .unwrap_or_else(|problems| panic!("{}", problems[0]));
        Self {
            policy,
            user: None,
            headers: Vec::new(),
            query: None,
            source: "10.0.0.7",
        }
    }

    fn by_alice(mut self) -> Self {
        self.user = Some(alice());
        self
    }

    fn kind(&self, from: &str, kind: RequestKind<'_>) -> Decision {
        let principal = match from {
            "anonymous" => Principal::Anonymous,
            id if id.contains("://") => Principal::Workload(id.parse().unwrap()),
            id => Principal::Workload(
                format!("spiffe://demo.test/ns/{}", id.replace('/', "/sa/"))
                    .parse()
                    .unwrap(),
            ),
        };
        let peer = self.policy.peer(&principal);
        let candidates = self.policy.candidates(&peer);
        let facts = RequestFacts {
            kind,
            source_ip: self.source.parse().unwrap(),
            client_ip: self.source.parse().unwrap(),
            port: 8080,
            now: "2026-11-23T12:30:00.250Z".parse().unwrap(),
            user: self.user.as_ref(),
            tls: None,
        };
        self.policy.decide(&candidates, &peer, &facts)
    }

    fn http(&self, from: &str, method: &str, path: &str) -> Decision {
        let route = self.policy.route(method, path);
        self.kind(
            from,
            RequestKind::Http(HttpFacts {
                host: "orders.shop",
                method,
                path,
                query: self.query,
                route: &route,
                headers: &self.headers,
            }),
        )
    }

    fn tcp(&self, from: &str) -> Decision {
        self.kind(from, RequestKind::Tcp(TcpFacts::default()))
    }

    fn grpc(&self, from: &str, service: &str, method: &str) -> Decision {
        self.kind(
            from,
            RequestKind::Grpc(GrpcFacts {
                host: "orders.shop",
                service,
                method,
                headers: &NoHeaders,
            }),
        )
    }
}

#[track_caller]
fn allowed(decision: &Decision, by: &str) {
    let Decision::Permit(permit) = decision else {
        panic!("{decision:?}")
    };
    assert_eq!(permit.policy().to_string(), format!("shop/orders#{by}"));
    assert_eq!(permit.info().effect, Effect::Permit);
}

#[track_caller]
fn denied(decision: &Decision, by: Option<&str>) {
    let Decision::Deny(deny) = decision else {
        panic!("{decision:?}")
    };
    assert_eq!(deny.policy().map(|name| name.id.as_str()), by, "{deny}");
    assert_eq!((deny.status(), deny.code()), (403, "authz.denied"));
}

const WEB_READS: &str = "@id(\"web-reads\") permit (principal == Workload::\"shop/web\", action in Action::\"read\", resource == Service::\"shop/orders\");";

#[test]
fn nothing_is_allowed_that_no_policy_permits() {
    denied(&Ask::of("").http("shop/web", "GET", "/"), None);
    let ask = Ask::of(WEB_READS);
    allowed(&ask.http("shop/web", "GET", "/"), "web-reads");
    allowed(&ask.http("shop/web", "HEAD", "/"), "web-reads");
    denied(&ask.http("shop/web", "POST", "/"), None);
    denied(&ask.http("shop/cart", "GET", "/"), None);
    denied(&ask.http("anonymous", "GET", "/"), None);
    denied(&ask.tcp("shop/web"), None);
    // Methods are compared octet for octet.
    denied(&ask.http("shop/web", "get", "/"), None);
}

#[test]
fn a_foreign_domain_s_workload_is_not_ours_of_the_same_name() {
    let ask = Ask::of(WEB_READS);
    denied(
        &ask.http("spiffe://other.test/ns/shop/sa/web", "GET", "/"),
        None,
    );
    let ask = Ask::of("@id(\"ns\") permit (principal in Namespace::\"shop\", action, resource);
        @id(\"foreign\") permit (principal == Workload::\"spiffe://other.test/ns/shop/sa/web\", action, resource);
        @id(\"domain\") permit (principal in TrustDomain::\"third.test\", action, resource);");
    allowed(&ask.http("shop/web", "GET", "/"), "ns");
    allowed(
        &ask.http("spiffe://other.test/ns/shop/sa/web", "GET", "/"),
        "foreign",
    );
    denied(
        &ask.http("spiffe://other.test/ns/shop/sa/cart", "GET", "/"),
        None,
    );
    allowed(
        &ask.http("spiffe://third.test/ns/x/sa/y", "GET", "/"),
        "domain",
    );
}

#[test]
fn a_forbid_beats_any_permit_and_says_why() {
    let ask = Ask::of(&format!(
        "{WEB_READS} @id(\"closed\") @reason(\"Closed for repairs.\") forbid (principal, action, resource) when {{ context.port == 8080 }};"
    ));
    let Decision::Deny(deny) = ask.http("shop/web", "GET", "/") else {
        panic!()
    };
    assert_eq!(deny.reason(), Some("Closed for repairs."));
    assert_eq!(deny.to_string(), "forbidden by `shop/orders#closed`");
}

#[test]
fn a_forbid_that_cannot_be_evaluated_forbids() {
    // Overflows, which no type check finds.
    let ask = Ask::of(&format!(
        "{WEB_READS} @id(\"sum\") forbid (principal, action, resource) when {{ context.port * 9223372036854775807 > 5 }};"
    ));
    let Decision::Deny(deny) = ask.http("shop/web", "GET", "/") else {
        panic!()
    };
    assert!(matches!(deny.kind(), DenyKind::ForbidFailed(_)));
    // A permit that cannot be evaluated permits nothing.
    let ask = Ask::of(
        "@id(\"sum\") permit (principal, action, resource) when { context.port * 9223372036854775807 > 5 };",
    );
    denied(&ask.http("shop/web", "GET", "/"), None);
}

#[test]
fn a_user_sees_only_what_is_hers() {
    let own = "@id(\"own\") permit (principal == Workload::\"edge/gateway\", action in Action::\"read\", resource)
        when { context has user && context.user.issuer == Issuer::\"customers\" &&
               context has route && context.route == \"/users/{user}/orders/{id}\" &&
               context.params has user && context.params.user == context.user.subject };";
    let ask = Ask::of(own).by_alice();
    allowed(
        &ask.http("edge/gateway", "GET", "/users/alice/orders/7"),
        "own",
    );
    denied(
        &ask.http("edge/gateway", "GET", "/users/bob/orders/7"),
        None,
    );
    denied(
        &ask.http("edge/gateway", "GET", "/users/alice/orders"),
        None,
    );
    denied(
        &Ask::of(own).http("edge/gateway", "GET", "/users/alice/orders/7"),
        None,
    );
    let mut other = Ask::of(own);
    other.user = Some(User::new("partners", "alice", Timestamp::MAX));
    denied(
        &other.http("edge/gateway", "GET", "/users/alice/orders/7"),
        None,
    );
}

#[test]
fn claims_groups_tags_and_time_can_be_asked_for() {
    for condition in [
        "context.user in Group::\"customers/gold\"",
        "context.user == User::\"customers#alice\"",
        "context.user.amr.containsAny([\"mfa\", \"hwk\"])",
        "context.user.claims has department && context.user.claims.department == \"sales\"",
        "context.user.claims has clearance && context.user.claims.clearance >= 3",
        "context.user.hasTag(\"realm_access.roles\") && context.user.getTag(\"realm_access.roles\").contains(\"buyer\")",
        "!(context.user has acr)",
        "context.circumstances.now > datetime(\"2026-11-23T12:00:00Z\")",
        "context.circumstances.now.toTime() < duration(\"13h\")",
        "context.sourceIp.isInRange(ip(\"10.0.0.0/8\"))",
        "context.host == \"orders.shop\" && context.path like \"/users/*\"",
        "principal is Workload && principal.namespace == Namespace::\"edge\" && principal.serviceAccount == \"gateway\"",
    ] {
        let ask = Ask::of(&format!("@id(\"p\") permit (principal, action == Action::\"GET\", resource) when {{ context has user && {condition} }};")).by_alice();
        allowed(&ask.http("edge/gateway", "GET", "/users/alice"), "p");
        assert_eq!(ask.policy.fallback_policies(), 0, "{condition}");
        let ask = Ask::of(&format!("@id(\"p\") permit (principal, action == Action::\"GET\", resource) when {{ context has user && !({condition}) }};")).by_alice();
        denied(&ask.http("edge/gateway", "GET", "/users/alice"), None);
    }
}

#[test]
fn what_does_not_compile_is_left_to_cedar_and_decides_alike() {
    let ask = Ask::of("@id(\"p\") permit (principal, action == Action::\"GET\", resource) when { context.sourceIp.isLoopback() };
        @id(\"f\") forbid (principal, action == Action::\"GET\", resource) when { context has user && context.user.amr == [\"pwd\", \"mfa\"] };");
    assert_eq!(ask.policy.fallback_policies(), 2);
    denied(&ask.http("shop/web", "GET", "/"), None);
    let mut local = ask;
    local.source = "127.0.0.1";
    allowed(&local.http("shop/web", "GET", "/"), "p");
    local.source = "::ffff:127.0.0.1";
    allowed(&local.http("shop/web", "GET", "/"), "p");
    denied(&local.by_alice().http("shop/web", "GET", "/"), Some("f"));
}

#[test]
fn grpc_and_tcp_have_facts_of_their_own() {
    let ask = Ask::of("@id(\"post\") permit (principal in WorkloadGroup::\"backoffice\", action == Action::\"grpc\", resource)
            when { context.service == \"ledger.v1.Ledger\" && [\"Post\", \"Get\"].contains(context.method) };
        @id(\"db\") permit (principal, action == Action::\"tcp\", resource in ServiceGroup::\"internal\") when { context.port == 8080 };");
    allowed(&ask.grpc("ops/console", "ledger.v1.Ledger", "Post"), "post");
    denied(&ask.grpc("ops/console", "ledger.v1.Ledger", "Drop"), None);
    denied(&ask.grpc("shop/web", "ledger.v1.Ledger", "Post"), None);
    allowed(&ask.tcp("anonymous"), "db");
}

const TENANT: &str = "@id(\"tenant\") permit (principal, action == Action::\"GET\", resource)
        when { context.headers has \"x-tenant\" && context.headers[\"x-tenant\"] == \"a\" };";

#[test]
fn every_value_of_a_repeated_header_is_judged_alone() {
    let mut ask = Ask::of(TENANT);
    ask.headers = vec![("X-Tenant", b"a")];
    allowed(&ask.http("shop/web", "GET", "/"), "tenant");
    ask.headers = vec![("x-tenant", b"a"), ("x-tenant", b"b")];
    denied(&ask.http("shop/web", "GET", "/"), None);
    // Nor can a forbid be passed by a second value beside the one it names.
    let mut ask = Ask::of(
        "@id(\"all\") permit (principal, action == Action::\"GET\", resource);
        @id(\"evil\") forbid (principal, action == Action::\"GET\", resource)
        when { context.headers has \"x-tenant\" && context.headers[\"x-tenant\"] == \"evil\" };",
    );
    ask.headers = vec![("x-tenant", b"good"), ("x-tenant", b"evil")];
    denied(&ask.http("shop/web", "GET", "/"), Some("evil"));
    ask.headers = vec![("x-tenant", b"good"), ("x-tenant", b"fine")];
    allowed(&ask.http("shop/web", "GET", "/"), "all");
}

#[test]
fn a_header_that_a_policy_reads_is_plain_text_or_the_request_is_refused() {
    let mut ask = Ask::of(TENANT);
    for value in [&b"\xff"[..], b"caf\xc3\xa9", b"a\x00"] {
        ask.headers = vec![("x-tenant", value)];
        let Decision::Deny(deny) = ask.http("shop/web", "GET", "/") else {
            panic!()
        };
        assert_eq!((deny.status(), deny.code()), (400, "http.header"));
    }
    // Headers that no policy reads are nobody's business here.
    ask.headers = vec![("x-tenant", b"a"), ("x-other", b"\xff")];
    allowed(&ask.http("shop/web", "GET", "/"), "tenant");
}

#[test]
fn query_parameters_are_decoded_and_must_be_single() {
    let mut ask = Ask::of(
        "@id(\"dry\") permit (principal, action == Action::\"GET\", resource)
        when { context.query has dryRun && context.query.dryRun == \"yes please\" };",
    );
    for query in [
        "dryRun=yes+please",
        "x=1&dryRun=yes%20please",
        "%64ryRun=yes%20please",
    ] {
        ask.query = Some(query);
        allowed(&ask.http("shop/web", "GET", "/"), "dry");
    }
    ask.query = Some("dryRun=no");
    denied(&ask.http("shop/web", "GET", "/"), None);
    for query in [
        "dryRun=no&dryRun=yes%20please",
        "dryRun=%zz",
        "dryRun=%ff",
        "%zz=1&dryRun=yes%20please",
    ] {
        ask.query = Some(query);
        let Decision::Deny(deny) = ask.http("shop/web", "GET", "/") else {
            panic!("{query}")
        };
        assert_eq!((deny.status(), deny.code()), (400, "http.query"));
    }
}

#[test]
fn another_service_on_the_port_has_its_forbids_heard() {
    let ask = Ask::of(
        "@id(\"p\") permit (principal, action == Action::\"tcp\", resource);
        @id(\"f\") forbid (principal == Workload::\"shop/cart\", action, resource);",
    );
    let facts = RequestFacts {
        kind: RequestKind::Tcp(TcpFacts::default()),
        source_ip: "10.0.0.7".parse().unwrap(),
        client_ip: "10.0.0.7".parse().unwrap(),
        port: 1,
        now: Timestamp::UNIX_EPOCH,
        user: None,
        tls: None,
    };
    let forbids = |id: &str| {
        let peer = ask.policy.peer(&Principal::Workload(id.parse().unwrap()));
        ask.policy
            .forbids(&ask.policy.candidates(&peer), &peer, &facts)
    };
    assert!(forbids("spiffe://demo.test/ns/shop/sa/cart").is_some());
    assert!(forbids("spiffe://demo.test/ns/shop/sa/web").is_none());
}

#[test]
fn what_another_snapshot_resolved_is_resolved_anew() {
    let grants =
        "@id(\"g\") permit (principal in WorkloadGroup::\"backoffice\", action, resource);";
    let old = Ask::of(grants);
    let mut changed = service(grants);
    changed.workload_groups.clear();
    let new = Ask::service(&changed);
    let peer = old.policy.peer(&Principal::Workload(
        "spiffe://demo.test/ns/ops/sa/console".parse().unwrap(),
    ));
    let candidates = old.policy.candidates(&peer);
    let facts = RequestFacts {
        kind: RequestKind::Tcp(TcpFacts::default()),
        source_ip: "10.0.0.7".parse().unwrap(),
        client_ip: "10.0.0.7".parse().unwrap(),
        port: 1,
        now: Timestamp::UNIX_EPOCH,
        user: None,
        tls: None,
    };
    assert!(matches!(
        old.policy.decide(&candidates, &peer, &facts),
        Decision::Permit(_)
    ));
    assert!(matches!(
        new.policy.decide(&candidates, &peer, &facts),
        Decision::Deny(_)
    ));
}
