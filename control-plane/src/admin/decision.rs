//! Looks up a decision by its id: the proxy that decided, its recorded facts, and the policies of then and now.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use merlon_api::inspection::{Ask, FactsAsk, FactsReply, Reply};
use merlon_config::name::ServiceName;
use serde_json::{Value, json};

use super::{
    problem::{self, Problem},
    state::Admin,
};
use crate::push::{AskError, ProxyStatus};

pub(super) async fn decision(
    State(admin): State<Admin>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    let prefix = prefix(&id).ok_or_else(|| {
        let id: String = id.chars().take(64).collect();
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("`{id}` is not a decision id"),
        )
        .hint("a decision id looks like `1a2b3c4d-0g5`; it is in the header `merlon-decision-id` and in the access log")
    })?;
    let deciders = admin.registry.deciders(prefix);
    if deciders.is_empty() {
        let detail = format!("no known proxy has decisions that begin with `{prefix}`");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail).hint(
            "decisions are lost when the process of a proxy ends; the access log keeps its entries",
        ));
    }
    let mut away = None;
    let mut evicted = None;
    for proxy in deciders {
        let ask = Ask::Facts(FactsAsk {
            decision_id: id.clone(),
        });
        match admin.registry.ask(&proxy, ask).await {
            Ok(Reply::Facts(facts)) if facts.found => {
                return explained(&admin, &id, &proxy, &facts).map(Json);
            }
            Ok(Reply::Facts(_)) => evicted = Some(proxy.id),
            Ok(_) => return Err(problem::wrong_reply(&proxy.id)),
            Err(error @ AskError::Disconnected { .. }) => away = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    match (evicted, away) {
        (Some(proxy), _) => {
            let detail = format!("the proxy `{proxy}` no longer has the decision `{id}`");
            Err(Problem::new(StatusCode::NOT_FOUND, detail)
                .hint("of the last 4,096 requests a proxy keeps every denial, and 50 permits per second; the access log has the rest"))
        }
        (None, Some(away)) => {
            let away = Problem::new(StatusCode::SERVICE_UNAVAILABLE, away.to_string());
            Err(away.hint("if the process has ended, its decisions are lost and the access log has its entries; if it only lost its connection, try again when it has reconnected"))
        }
        (None, None) => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no proxy has the decision",
        )),
    }
}

fn explained(
    admin: &Admin,
    id: &str,
    proxy: &ProxyStatus,
    reply: &FactsReply,
) -> Result<Value, Problem> {
    let optional = |bytes: &[u8]| match bytes {
        [] => Ok(Value::Null),
        bytes => problem::json_of(bytes),
    };
    let facts = optional(&reply.facts)?;
    let mesh = admin.snapshots.mesh();
    let name = facts.get("service").and_then(Value::as_str);
    let name: Option<ServiceName> = name.and_then(|name| name.parse().ok());
    let now = name.and_then(|name| mesh.service(&name).cloned());
    Ok(json!({
        "id": id,
        "proxy": proxy.id,
        "identity": proxy.identity,
        "facts": facts,
        "service": optional(&reply.service)?,
        "mesh": optional(&reply.mesh)?,
        "snapshotVersion": reply.snapshot_version,
        "decision": optional(&reply.decision)?,
        "serviceNow": optional(now.as_deref().map_or(&[], |service| service.json()))?,
        "meshNow": mesh.state(),
    }))
}

/// The first eight hexadecimal digits, which identify the proxy. A hyphen and the proxy's counter follow.
fn prefix(id: &str) -> Option<&str> {
    let (prefix, rest) = id.split_once('-')?;
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let good = prefix.len() == 8 && prefix.bytes().all(hex);
    let counted = (1..=32).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_alphanumeric());
    (good && counted).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_id_is_eight_hexadecimal_digits_and_a_count() {
        assert_eq!(prefix("1a2b3c4d-0g5"), Some("1a2b3c4d"));
        for wrong in [
            "",
            "1a2b3c4d",
            "1a2b3c4d-",
            "1A2B3C4D-0",
            "1a2b3c4-0",
            "../../etc-0",
            "1a2b3c4d-a/b",
        ] {
            assert_eq!(prefix(wrong), None, "{wrong}");
        }
    }
}
