use jiff::Timestamp;
use merlon_config::snapshot::InboundService;

use super::*;
use crate::{
    authn::User,
    decision::Effect,
    facts::{GrpcFacts, HttpFacts, NoHeaders, TcpFacts},
    tests::{alice, mesh, service},
};

/// A service `shop/orders` with policies, and the facts of requests to it.
struct Fixture {
    policy: ServicePolicy,
    user: Option<User>,
    headers: Vec<(&'static str, &'static [u8])>,
    query: Option<&'static str>,
    source: &'static str,
}

impl Fixture {
    fn new(text: &str) -> Self {
        Self::for_service(&service(text))
    }

    fn for_service(service: &InboundService) -> Self {
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

    fn with_alice(mut self) -> Self {
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
fn a_request_that_no_policy_permits_is_denied() {
    denied(&Fixture::new("").http("shop/web", "GET", "/"), None);
    let fixture = Fixture::new(WEB_READS);
    allowed(&fixture.http("shop/web", "GET", "/"), "web-reads");
    allowed(&fixture.http("shop/web", "HEAD", "/"), "web-reads");
    denied(&fixture.http("shop/web", "POST", "/"), None);
    denied(&fixture.http("shop/cart", "GET", "/"), None);
    denied(&fixture.http("anonymous", "GET", "/"), None);
    denied(&fixture.tcp("shop/web"), None);
    // Methods are compared octet for octet.
    denied(&fixture.http("shop/web", "get", "/"), None);
}

#[test]
fn a_foreign_workload_is_not_the_local_one_of_the_same_name() {
    let fixture = Fixture::new(WEB_READS);
    denied(
        &fixture.http("spiffe://other.test/ns/shop/sa/web", "GET", "/"),
        None,
    );
    let fixture = Fixture::new("@id(\"ns\") permit (principal in Namespace::\"shop\", action, resource);
        @id(\"foreign\") permit (principal == Workload::\"spiffe://other.test/ns/shop/sa/web\", action, resource);
        @id(\"domain\") permit (principal in TrustDomain::\"third.test\", action, resource);");
    allowed(&fixture.http("shop/web", "GET", "/"), "ns");
    allowed(
        &fixture.http("spiffe://other.test/ns/shop/sa/web", "GET", "/"),
        "foreign",
    );
    denied(
        &fixture.http("spiffe://other.test/ns/shop/sa/cart", "GET", "/"),
        None,
    );
    allowed(
        &fixture.http("spiffe://third.test/ns/x/sa/y", "GET", "/"),
        "domain",
    );
}

#[test]
fn a_forbid_overrides_any_permit_and_gives_its_reason() {
    let fixture = Fixture::new(&format!(
        "{WEB_READS} @id(\"closed\") @reason(\"Closed for repairs.\") forbid (principal, action, resource) when {{ context.port == 8080 }};"
    ));
    let Decision::Deny(deny) = fixture.http("shop/web", "GET", "/") else {
        panic!()
    };
    assert_eq!(deny.reason(), Some("Closed for repairs."));
    assert_eq!(deny.to_string(), "forbidden by `shop/orders#closed`");
}

#[test]
fn a_forbid_that_cannot_be_evaluated_denies() {
    // An overflow, which type checking does not find.
    let fixture = Fixture::new(&format!(
        "{WEB_READS} @id(\"sum\") forbid (principal, action, resource) when {{ context.port * 9223372036854775807 > 5 }};"
    ));
    let Decision::Deny(deny) = fixture.http("shop/web", "GET", "/") else {
        panic!()
    };
    assert!(matches!(deny.kind(), DenyKind::ForbidFailed(_)));
    // A permit that cannot be evaluated does not allow.
    let fixture = Fixture::new(
        "@id(\"sum\") permit (principal, action, resource) when { context.port * 9223372036854775807 > 5 };",
    );
    denied(&fixture.http("shop/web", "GET", "/"), None);
}

#[test]
fn a_user_can_read_only_their_own_orders() {
    let own = "@id(\"own\") permit (principal == Workload::\"edge/gateway\", action in Action::\"read\", resource)
        when { context has user && context.user.issuer == Issuer::\"customers\" &&
               context has route && context.route == \"/users/{user}/orders/{id}\" &&
               context.params has user && context.params.user == context.user.subject };";
    let fixture = Fixture::new(own).with_alice();
    allowed(
        &fixture.http("edge/gateway", "GET", "/users/alice/orders/7"),
        "own",
    );
    denied(
        &fixture.http("edge/gateway", "GET", "/users/bob/orders/7"),
        None,
    );
    denied(
        &fixture.http("edge/gateway", "GET", "/users/alice/orders"),
        None,
    );
    denied(
        &Fixture::new(own).http("edge/gateway", "GET", "/users/alice/orders/7"),
        None,
    );
    let mut other = Fixture::new(own);
    other.user = Some(User::new("partners", "alice", Timestamp::MAX));
    denied(
        &other.http("edge/gateway", "GET", "/users/alice/orders/7"),
        None,
    );
}

#[test]
fn conditions_can_read_claims_groups_tags_and_time() {
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
        let fixture = Fixture::new(&format!("@id(\"p\") permit (principal, action == Action::\"GET\", resource) when {{ context has user && {condition} }};")).with_alice();
        allowed(&fixture.http("edge/gateway", "GET", "/users/alice"), "p");
        assert_eq!(fixture.policy.fallback_policies(), 0, "{condition}");
        let fixture = Fixture::new(&format!("@id(\"p\") permit (principal, action == Action::\"GET\", resource) when {{ context has user && !({condition}) }};")).with_alice();
        denied(&fixture.http("edge/gateway", "GET", "/users/alice"), None);
    }
}

#[test]
fn a_policy_that_does_not_compile_is_evaluated_by_cedar() {
    let fixture = Fixture::new("@id(\"p\") permit (principal, action == Action::\"GET\", resource) when { context.sourceIp.isLoopback() };
        @id(\"f\") forbid (principal, action == Action::\"GET\", resource) when { context has user && context.user.amr == [\"pwd\", \"mfa\"] };");
    assert_eq!(fixture.policy.fallback_policies(), 2);
    denied(&fixture.http("shop/web", "GET", "/"), None);
    let mut local = fixture;
    local.source = "127.0.0.1";
    allowed(&local.http("shop/web", "GET", "/"), "p");
    local.source = "::ffff:127.0.0.1";
    allowed(&local.http("shop/web", "GET", "/"), "p");
    denied(&local.with_alice().http("shop/web", "GET", "/"), Some("f"));
}

#[test]
fn grpc_and_tcp_have_their_own_facts() {
    let fixture = Fixture::new("@id(\"post\") permit (principal in WorkloadGroup::\"backoffice\", action == Action::\"grpc\", resource)
            when { context.service == \"ledger.v1.Ledger\" && [\"Post\", \"Get\"].contains(context.method) };
        @id(\"db\") permit (principal, action == Action::\"tcp\", resource in ServiceGroup::\"internal\") when { context.port == 8080 };");
    allowed(
        &fixture.grpc("ops/console", "ledger.v1.Ledger", "Post"),
        "post",
    );
    denied(
        &fixture.grpc("ops/console", "ledger.v1.Ledger", "Drop"),
        None,
    );
    denied(&fixture.grpc("shop/web", "ledger.v1.Ledger", "Post"), None);
    allowed(&fixture.tcp("anonymous"), "db");
}

const TENANT: &str = "@id(\"tenant\") permit (principal, action == Action::\"GET\", resource)
        when { context.headers has \"x-tenant\" && context.headers[\"x-tenant\"] == \"a\" };";

#[test]
fn every_value_of_a_repeated_header_is_evaluated_on_its_own() {
    let mut fixture = Fixture::new(TENANT);
    fixture.headers = vec![("X-Tenant", b"a")];
    allowed(&fixture.http("shop/web", "GET", "/"), "tenant");
    fixture.headers = vec![("x-tenant", b"a"), ("x-tenant", b"b")];
    denied(&fixture.http("shop/web", "GET", "/"), None);
    // A second value does not bypass a forbid of the first.
    let mut fixture = Fixture::new(
        "@id(\"all\") permit (principal, action == Action::\"GET\", resource);
        @id(\"evil\") forbid (principal, action == Action::\"GET\", resource)
        when { context.headers has \"x-tenant\" && context.headers[\"x-tenant\"] == \"evil\" };",
    );
    fixture.headers = vec![("x-tenant", b"good"), ("x-tenant", b"evil")];
    denied(&fixture.http("shop/web", "GET", "/"), Some("evil"));
    fixture.headers = vec![("x-tenant", b"good"), ("x-tenant", b"fine")];
    allowed(&fixture.http("shop/web", "GET", "/"), "all");
}

#[test]
fn a_header_that_a_policy_reads_must_be_printable_ascii() {
    let mut fixture = Fixture::new(TENANT);
    for value in [&b"\xff"[..], b"caf\xc3\xa9", b"a\x00"] {
        fixture.headers = vec![("x-tenant", value)];
        let Decision::Deny(deny) = fixture.http("shop/web", "GET", "/") else {
            panic!()
        };
        assert_eq!((deny.status(), deny.code()), (400, "http.header"));
    }
    // Headers that no policy reads are not checked.
    fixture.headers = vec![("x-tenant", b"a"), ("x-other", b"\xff")];
    allowed(&fixture.http("shop/web", "GET", "/"), "tenant");
}

#[test]
fn query_parameters_are_decoded_and_must_not_be_repeated() {
    let mut fixture = Fixture::new(
        "@id(\"dry\") permit (principal, action == Action::\"GET\", resource)
        when { context.query has dryRun && context.query.dryRun == \"yes please\" };",
    );
    for query in [
        "dryRun=yes+please",
        "x=1&dryRun=yes%20please",
        "%64ryRun=yes%20please",
    ] {
        fixture.query = Some(query);
        allowed(&fixture.http("shop/web", "GET", "/"), "dry");
    }
    fixture.query = Some("dryRun=no");
    denied(&fixture.http("shop/web", "GET", "/"), None);
    for query in [
        "dryRun=no&dryRun=yes%20please",
        "dryRun=%zz",
        "dryRun=%ff",
        "%zz=1&dryRun=yes%20please",
    ] {
        fixture.query = Some(query);
        let Decision::Deny(deny) = fixture.http("shop/web", "GET", "/") else {
            panic!("{query}")
        };
        assert_eq!((deny.status(), deny.code()), (400, "http.query"));
    }
}

#[test]
fn forbids_of_another_service_on_the_port_apply() {
    let fixture = Fixture::new(
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
        let peer = fixture
            .policy
            .peer(&Principal::Workload(id.parse().unwrap()));
        fixture
            .policy
            .forbids(&fixture.policy.candidates(&peer), &peer, &facts)
    };
    assert!(forbids("spiffe://demo.test/ns/shop/sa/cart").is_some());
    assert!(forbids("spiffe://demo.test/ns/shop/sa/web").is_none());
}

#[test]
fn a_peer_of_another_snapshot_is_resolved_again() {
    let grants =
        "@id(\"g\") permit (principal in WorkloadGroup::\"backoffice\", action, resource);";
    let old = Fixture::new(grants);
    let mut changed = service(grants);
    changed.workload_groups.clear();
    let new = Fixture::for_service(&changed);
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
