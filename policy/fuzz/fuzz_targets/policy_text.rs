//! Any text compiles to policies or is rejected with problems; a request is allowed only by a permit.
#![no_main]

use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use merlon_config::snapshot::{InboundService, MeshState, PolicyDocument};
use merlon_policy::{
    decision::Decision,
    facts::{RequestFacts, RequestKind, TcpFacts},
    mention::Mentions,
    principal::Principal,
    service::ServicePolicy,
};

static MESH: LazyLock<MeshState> = LazyLock::new(|| {
    let mesh = serde_json::json!({ "trustDomain": "demo.test", "rootNamespace": "merlon-system" });
    serde_json::from_value(mesh).expect("a mesh")
});

fuzz_target!(|text: &str| {
    let mut service: InboundService =
        serde_json::from_value(serde_json::json!({ "name": "shop/orders" })).expect("a service");
    let document = PolicyDocument {
        name: service.name.clone(),
        origin: String::new(),
        text: text.to_owned(),
    };
    let _ = Mentions::of(&document);
    service.policies = vec![document];
    let policy = match ServicePolicy::compile(&service, &MESH) {
        Ok(policy) => policy,
        Err(problems) => {
            assert!(!problems.is_empty());
            return;
        }
    };
    let peer = policy.peer(&Principal::Anonymous);
    let source_ip = [127, 0, 0, 1].into();
    let facts = RequestFacts {
        kind: RequestKind::Tcp(TcpFacts::default()),
        source_ip,
        client_ip: source_ip,
        port: 80,
        now: Timestamp::UNIX_EPOCH,
        user: None,
        tls: None,
    };
    if let Decision::Permit(permit) = policy.decide(&policy.candidates(&peer), &peer, &facts) {
        assert!(text.contains("permit"));
        assert!(!permit.policy().id.is_empty());
    }
});
