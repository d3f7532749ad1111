//! Requests of the Kubernetes API server.

use std::sync::LazyLock;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use merlon_config::{injection::InjectionSettings, probe::HookKey};
use merlon_control_plane::fuzzing::{body_values, injected};
use merlon_inject::{Injection, SkipReason, inject};
use serde_json::Value;

static SETTINGS: LazyLock<InjectionSettings> = LazyLock::new(|| {
    let text = "\
proxyImage: merlon-proxy
interceptImage: merlon-intercept
controlPlane: https://merlon-control-plane.merlon-system.svc:7564
";
    InjectionSettings::parse("injection.yaml", text).expect("valid settings")
});

/// Any JSON either gets its sidecar and then stays as it is, or is refused with a printable reason.
pub(crate) fn inject_pod(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    match inject(&value, "shop", &SETTINGS, &HookKey::new(1)) {
        Ok(Injection::Changed { object, .. }) => {
            let again = inject(&object, "shop", &SETTINGS, &HookKey::new(2));
            assert_eq!(again, Ok(Injection::Unchanged(SkipReason::UpToDate)));
        }
        Ok(Injection::Unchanged(_)) => {}
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
}

/// The answer to an AdmissionReview has its uid, and its patch makes the injected pod of the pod that was sent.
pub(crate) fn review(bytes: &[u8]) {
    let Ok((before, after, answer)) = injected(bytes, &SETTINGS) else {
        return;
    };
    let review: Value = serde_json::from_slice(bytes).expect("JSON");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["kind"], "AdmissionReview");
    let response = &answer["response"];
    assert_eq!(response["uid"], review["request"]["uid"]);
    let refused = response["allowed"] == false;
    assert_eq!(refused, response["status"]["message"].is_string());
    assert!(!refused || after.is_none());
    let patch = response["patch"].as_str().map(|patch| {
        let patch = BASE64_STANDARD.decode(patch).expect("base64");
        serde_json::from_slice::<Vec<Value>>(&patch).expect("a list of steps")
    });
    let mut patched = before.clone();
    for step in patch.into_iter().flatten() {
        apply(&mut patched, &step);
    }
    assert_eq!(patched, after.unwrap_or(before));
}

/// Applies a step of a JSON patch (RFC 6902 §4) to a member of an object.
fn apply(object: &mut Value, step: &Value) {
    let path = step["path"].as_str().expect("a path");
    let (parent, member) = path.rsplit_once('/').expect("a member");
    let member = member.replace("~1", "/").replace("~0", "~");
    let parent = object.pointer_mut(parent).expect("the parent exists");
    let parent = parent.as_object_mut().expect("the parent is an object");
    match step["op"].as_str() {
        Some("add") => {
            parent.insert(member, step["value"].clone());
        }
        Some("remove") => {
            parent.remove(&member).expect("the member exists");
        }
        op => panic!("{op:?}"),
    }
}

/// The number that a body is counted with, before it is parsed, is not below the number of its values.
pub(crate) fn body(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<Value>(bytes) {
        assert!(values(&value) <= body_values(bytes) + 1);
    }
}

/// Values and names of members.
fn values(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(values).sum::<usize>(),
        Value::Object(members) => 1 + members.values().map(|own| 1 + values(own)).sum::<usize>(),
        _ => 1,
    }
}
