//! The API server's audit log.

use serde_json::Value;

/// A completed API call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    /// The user name.
    pub user: String,
    /// The verb, such as `list`. An apply that created an object is also listed as `create`.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource with its subresource: `pods`, `meshconfigs/status`.
    pub resource: String,
    /// The namespace; empty for all namespaces.
    pub namespace: String,
    /// The HTTP status.
    pub code: u64,
}

pub(super) fn calls(log: &str) -> Vec<Call> {
    // The last line may be incomplete.
    let events = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut calls = Vec::new();
    for event in events {
        if event["stage"] == "RequestReceived" {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        let mut resource = text(&object["resource"]);
        if let Some(sub) = object["subresource"].as_str() {
            resource = format!("{resource}/{sub}");
        }
        let call = Call {
            user: text(&event["user"]["username"]),
            verb: text(&event["verb"]),
            group: text(&object["apiGroup"]),
            resource,
            namespace: text(&object["namespace"]),
            code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
        };
        // An apply of a missing object creates it, and needs the permission to.
        if call.verb == "patch" && call.code == 201 {
            calls.push(Call {
                verb: "create".to_owned(),
                ..call.clone()
            });
        }
        calls.push(call);
    }
    calls
}
