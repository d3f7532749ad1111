//! The API server's audit log: who called for what, and what came of it.

use serde_json::Value;

/// One call that was answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Call {
    /// Who.
    pub user: String,
    /// As `list`; what an apply made is a `create` too.
    pub verb: String,
    /// The API group; empty for the oldest.
    pub group: String,
    /// With its subresource: `pods`, `meshconfigs/status`.
    pub resource: String,
    /// Where; empty: everywhere.
    pub namespace: String,
    /// The status.
    pub code: u64,
}

pub(super) fn calls(log: &str) -> Vec<Call> {
    // The last line may be on its way.
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
        // What an apply finds missing it makes, and needs the right to.
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
