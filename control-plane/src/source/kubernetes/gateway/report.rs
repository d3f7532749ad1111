//! The `status` of objects of Gateway API.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cluster::gateway_api::GROUP;

/// Merlon's controller name in a GatewayClass.
pub(crate) const CONTROLLER: &str = "merlon.io/gateway";

/// Status, reason and message of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConditionDraft {
    pub(crate) ok: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl ConditionDraft {
    pub(super) fn positive(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            ok: true,
            reason,
            message: message.into(),
        }
    }

    pub(super) fn negative(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            ok: false,
            reason,
            message: message.into(),
        }
    }
}

/// The result for an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GatewayStatus {
    pub(crate) kind: &'static str,
    /// Empty for a GatewayClass.
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) details: GatewayDetails,
}

/// The result by kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum GatewayDetails {
    Class,
    Gateway {
        accepted: ConditionDraft,
        listeners: Vec<ListenerStatus>,
        addresses: Vec<Value>,
    },
    Route(Vec<ParentStatus>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ListenerStatus {
    pub(crate) name: String,
    pub(crate) attached: usize,
    pub(crate) accepted: ConditionDraft,
    pub(crate) resolved: ConditionDraft,
    pub(crate) conflict: Option<ConditionDraft>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParentStatus {
    pub(crate) parent: Value,
    pub(crate) accepted: ConditionDraft,
    pub(crate) resolved: ConditionDraft,
}

impl GatewayStatus {
    /// The origin of the resource that was derived from it.
    pub(crate) fn origin(&self) -> String {
        format!("{}/{}/{}", self.kind, self.namespace, self.name)
    }

    /// Sets a problem that only the compilation found.
    pub(crate) fn set_compile_error(&mut self, message: &str) {
        match &mut self.details {
            GatewayDetails::Class => {}
            GatewayDetails::Gateway { accepted, .. } => {
                *accepted = ConditionDraft::negative("Invalid", message)
            }
            GatewayDetails::Route(parents) => {
                for parent in parents {
                    parent.accepted = ConditionDraft::negative("UnsupportedValue", message);
                }
            }
        }
    }

    /// The status that the object should have. `before` is its present status, which may contain entries of other
    /// controllers.
    /// `enforcing` is the number of proxies that enforce a Gateway.
    pub(crate) fn status(&self, before: Option<&Value>, enforcing: u64, now: Timestamp) -> Value {
        match &self.details {
            GatewayDetails::Class => {
                let known = before.and_then(|before| before.get("conditions"));
                let accepted =
                    ConditionDraft::positive("Accepted", "Merlon runs gateways of this class");
                json!({ "conditions": [self.condition("Accepted", &accepted, known, now)] })
            }
            GatewayDetails::Gateway {
                accepted,
                listeners,
                addresses,
            } => self.gateway(before, (accepted, listeners, addresses), enforcing, now),
            GatewayDetails::Route(parents) => {
                json!({ "parents": self.parents(before, parents, now) })
            }
        }
    }

    fn gateway(
        &self,
        before: Option<&Value>,
        (accepted, listeners, addresses): (&ConditionDraft, &[ListenerStatus], &[Value]),
        enforcing: u64,
        now: Timestamp,
    ) -> Value {
        let programmed = |of: &ConditionDraft| match enforcing {
            _ if !of.ok => ConditionDraft::negative("Invalid", "not accepted"),
            0 => ConditionDraft::negative(
                "Pending",
                format!(
                    "no gateway proxy enforces it yet: the proxy must run as service account `{}` in `{}`",
                    self.name, self.namespace
                ),
            ),
            count => ConditionDraft::positive("Programmed", format!("{count} proxies enforce it")),
        };
        let listeners = listeners.iter().map(|listener| {
            let known = before
                .and_then(|before| before.get("listeners")?.as_array())
                .and_then(|list| list.iter().find(|one| one["name"] == *listener.name))
                .and_then(|one| one.get("conditions"));
            let good = listener.accepted.ok && listener.resolved.ok && accepted.ok;
            let state = match good {
                true => accepted.clone(),
                false => ConditionDraft::negative("Invalid", ""),
            };
            let none =
                ConditionDraft::negative("NoConflicts", "no other listener conflicts with it");
            let conflict = match &listener.conflict {
                Some(conflict) => ConditionDraft {
                    ok: true,
                    ..conflict.clone()
                },
                None => none,
            };
            let conditions = [
                ("Accepted", &listener.accepted),
                ("ResolvedRefs", &listener.resolved),
                ("Conflicted", &conflict),
                ("Programmed", &programmed(&state)),
            ];
            let conditions =
                conditions.map(|(kind, condition)| self.condition(kind, condition, known, now));
            json!({
                "name": listener.name,
                "attachedRoutes": listener.attached,
                "supportedKinds": [{ "group": GROUP, "kind": "HTTPRoute" }],
                "conditions": conditions,
            })
        });
        let listeners: Vec<Value> = listeners.collect();
        let known = before.and_then(|before| before.get("conditions"));
        json!({
            "addresses": addresses,
            "conditions": [
                self.condition("Accepted", accepted, known, now),
                self.condition("Programmed", &programmed(accepted), known, now),
            ],
            "listeners": listeners,
        })
    }

    /// Merlon's entries and the unchanged entries of other controllers, because the list is one field.
    fn parents(&self, before: Option<&Value>, own: &[ParentStatus], now: Timestamp) -> Vec<Value> {
        let known = before.and_then(|before| before.get("parents")?.as_array());
        let known: Vec<&Value> = known.into_iter().flatten().collect();
        let others = known
            .iter()
            .filter(|one| one["controllerName"] != CONTROLLER);
        let others = others.map(|one| (*one).clone());
        let own = own.iter().map(|status| {
            let known = known
                .iter()
                .find(|one| {
                    one["controllerName"] == CONTROLLER && one["parentRef"] == status.parent
                })
                .and_then(|one| one.get("conditions"));
            json!({
                "parentRef": status.parent,
                "controllerName": CONTROLLER,
                "conditions": [
                    self.condition("Accepted", &status.accepted, known, now),
                    self.condition("ResolvedRefs", &status.resolved, known, now),
                ],
            })
        });
        others.chain(own).collect()
    }

    fn condition(
        &self,
        kind: &str,
        condition: &ConditionDraft,
        known: Option<&Value>,
        now: Timestamp,
    ) -> Value {
        let status = if condition.ok { "True" } else { "False" };
        let known = known.and_then(Value::as_array);
        let same = known
            .into_iter()
            .flatten()
            .find(|one| one["type"] == kind && one["status"] == status)
            .and_then(|one| one["lastTransitionTime"].as_str());
        json!({
            "type": kind,
            "status": status,
            "reason": condition.reason,
            "message": condition.message.chars().take(8_000).collect::<String>(),
            "observedGeneration": self.generation,
            "lastTransitionTime": same.map_or_else(|| format!("{now:.0}"), str::to_owned),
        })
    }
}
