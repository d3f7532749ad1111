//! Policies, paths and path templates.

use std::sync::LazyLock;

use jiff::Timestamp;
use merlon_config::snapshot::{InboundService, MeshState, PolicyDocument};
use merlon_policy::{
    decision::Decision,
    facts::{RequestFacts, RequestKind, TcpFacts},
    mention::Mentions,
    path::normalize,
    principal::Principal,
    service::ServicePolicy,
    validate::check_template,
};

use crate::input;

/// The mesh of every policy.
pub(crate) static MESH: LazyLock<MeshState> = LazyLock::new(|| {
    let mesh = serde_json::json!({ "trustDomain": "demo.test", "rootNamespace": "merlon-system" });
    serde_json::from_value(mesh).expect("a mesh")
});

/// The service `shop/orders`.
pub(crate) fn orders() -> InboundService {
    serde_json::from_value(serde_json::json!({ "name": "shop/orders" })).expect("a service")
}

/// Any text compiles to policies or is rejected with problems; a connection is allowed only by a permit.
pub(crate) fn text(bytes: &[u8]) {
    input::text(bytes, |text| {
        let mut service = orders();
        let document = PolicyDocument {
            name: service.name.clone(),
            origin: String::new(),
            text: text.to_owned(),
        };
        let _ = Mentions::of(&document);
        service.policies = vec![document];
        let policy = match ServicePolicy::compile(&service, &MESH) {
            Ok(policy) => policy,
            Err(problems) => return assert!(!problems.is_empty()),
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
}

/// Any path is normalised to a stable result, or is rejected.
pub(crate) fn path(bytes: &[u8]) {
    input::text(bytes, |path| {
        if let Ok(normal) = normalize(path) {
            assert_eq!(normalize(&normal).as_deref(), Ok(&*normal));
            assert!(normal.starts_with('/'));
            assert!(!normal.contains("//") && !normal.contains(';') && !normal.contains("/../"));
        }
    });
}

/// Any text is a path template or is rejected with a reason.
pub(crate) fn template(bytes: &[u8]) {
    input::text(bytes, |text| {
        if let Err(problem) = check_template(text) {
            assert!(!problem.is_empty());
        }
    });
}
