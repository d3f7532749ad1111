//! Requests and responses: `AdmissionReview` of `admission.k8s.io/v1`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

/// A request.
#[derive(Debug)]
pub(crate) struct Review {
    uid: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) user: String,
    /// The new object; null for a deletion.
    pub(crate) object: Value,
    before: Value,
}

/// Why a body is not a review.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReviewError {
    #[error("the body is not JSON: {0}")]
    Json(String),
    #[error("the body is not an AdmissionReview of admission.k8s.io/v1")]
    Kind,
    #[error("the AdmissionReview lacks `request.uid`")]
    Uid,
}

impl Review {
    pub(crate) fn read(body: &[u8]) -> Result<Self, ReviewError> {
        let mut review: Value =
            serde_json::from_slice(body).map_err(|error| ReviewError::Json(error.to_string()))?;
        if review.get("apiVersion") != Some(&json!("admission.k8s.io/v1"))
            || review.get("kind") != Some(&json!("AdmissionReview"))
        {
            return Err(ReviewError::Kind);
        }
        let mut request = review
            .get_mut("request")
            .map(Value::take)
            .unwrap_or_default();
        let text = |pointer: &str| {
            let found = request.pointer(pointer).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let uid = text("/uid");
        if uid.is_empty() {
            return Err(ReviewError::Uid);
        }
        let name = match text("/name") {
            name if name.is_empty() => text("/object/metadata/generateName"),
            name => name,
        };
        let (kind, namespace, user) = (
            text("/kind/kind"),
            text("/namespace"),
            text("/userInfo/username"),
        );
        let mut part = |name: &str| request.get_mut(name).map(Value::take).unwrap_or_default();
        Ok(Self {
            uid,
            kind,
            namespace,
            name,
            user,
            object: part("object"),
            before: part("oldObject"),
        })
    }

    /// Whether the spec stays the same. Other changes of an invalid resource must not be refused, for example to delete
    /// it.
    pub(crate) fn changes_nothing(&self) -> bool {
        self.object.is_null()
            || (!self.before.is_null() && self.object.get("spec") == self.before.get("spec"))
    }
}

/// A response.
#[derive(Debug, Default)]
pub(crate) struct AdmissionResponse {
    refused: Option<String>,
    patch: Vec<Value>,
    warnings: Vec<String>,
}

/// The API server truncates longer warnings.
const WARNING_CHARS: usize = 250;

impl AdmissionResponse {
    pub(crate) fn allowed() -> Self {
        Self::default()
    }

    pub(crate) fn refused(why: String) -> Self {
        Self {
            refused: Some(why),
            ..Self::default()
        }
    }

    /// Allowed with a patch.
    pub(crate) fn changed(before: &Value, after: &Value, warnings: Vec<String>) -> Self {
        Self {
            patch: patch(before, after),
            ..Self::default()
        }
        .with(warnings)
    }

    pub(crate) fn with(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// The metric's label.
    pub(crate) fn result(&self) -> &'static str {
        match (&self.refused, self.patch.is_empty()) {
            (Some(_), _) => "refused",
            (None, true) => "allowed",
            (None, false) => "changed",
        }
    }

    pub(crate) fn to(self, review: &Review) -> String {
        let mut response = Map::new();
        let mut set = |field: &str, value: Value| response.insert(field.to_owned(), value);
        set("uid", json!(review.uid));
        set("allowed", json!(self.refused.is_none()));
        if let Some(why) = &self.refused {
            let status = json!({ "code": 403, "reason": "Forbidden", "message": why });
            set("status", status);
        }
        if !self.patch.is_empty() {
            let patch = Value::from(self.patch).to_string();
            set("patchType", json!("JSONPatch"));
            set("patch", json!(STANDARD.encode(patch)));
        }
        if !self.warnings.is_empty() {
            let warnings = self.warnings.iter();
            let cut = warnings.map(|text| text.chars().take(WARNING_CHARS).collect::<String>());
            set("warnings", cut.collect());
        }
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response,
        })
        .to_string()
    }
}

/// A patch (RFC 6902) from `before` to `after`. It replaces whole fields of `metadata` and `spec`, so changes of other
/// webhooks to other fields are kept.
fn patch(before: &Value, after: &Value) -> Vec<Value> {
    let mut steps = Vec::new();
    let empty = Map::new();
    for part in ["metadata", "spec"] {
        let Some(new) = after.get(part).and_then(Value::as_object) else {
            continue;
        };
        let old = before.get(part).and_then(Value::as_object);
        if old.is_none() {
            steps.push(json!({ "op": "add", "path": format!("/{part}"), "value": new }));
            continue;
        }
        let old = old.unwrap_or(&empty);
        for (field, value) in new {
            if old.get(field) != Some(value) {
                // `add` replaces an existing field.
                let path = format!("/{part}/{}", escaped(field));
                steps.push(json!({ "op": "add", "path": path, "value": value }));
            }
        }
        for field in old.keys().filter(|field| !new.contains_key(*field)) {
            let path = format!("/{part}/{}", escaped(field));
            steps.push(json!({ "op": "remove", "path": path }));
        }
    }
    steps
}

/// Escapes a part of a JSON pointer (RFC 6901 §3).
fn escaped(field: &str) -> String {
    field.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(request: &Value) -> Result<Review, ReviewError> {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request,
        });
        Review::read(review.to_string().as_bytes())
    }

    #[test]
    fn a_body_that_is_not_a_review_is_refused_with_the_reason() {
        assert!(matches!(
            Review::read(b"{").unwrap_err(),
            ReviewError::Json(_)
        ));
        assert_eq!(Review::read(b"[]").unwrap_err(), ReviewError::Kind);
        assert_eq!(
            Review::read(
                br#"{ "apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview" }"#
            )
            .unwrap_err(),
            ReviewError::Kind
        );
        assert_eq!(review(&json!({})).unwrap_err(), ReviewError::Uid);
        assert_eq!(review(&json!([1])).unwrap_err(), ReviewError::Uid);
    }

    #[test]
    fn a_response_contains_the_requests_uid_and_the_reason() {
        let review = review(&json!({ "uid": "1" })).unwrap();
        let response: Value =
            serde_json::from_str(&AdmissionResponse::refused("no".to_owned()).to(&review)).unwrap();
        assert_eq!(
            response["response"],
            json!({
                "uid": "1", "allowed": false,
                "status": { "code": 403, "reason": "Forbidden", "message": "no" },
            })
        );
    }

    #[test]
    fn a_patch_contains_only_the_fields_that_differ() {
        let before =
            json!({ "metadata": { "name": "a" }, "spec": { "x": 1, "y~/z": 2, "gone": 3 } });
        let after =
            json!({ "metadata": { "name": "a", "labels": {} }, "spec": { "x": 1, "y~/z": 4 } });
        assert_eq!(
            patch(&before, &after),
            [
                json!({ "op": "add", "path": "/metadata/labels", "value": {} }),
                json!({ "op": "add", "path": "/spec/y~0~1z", "value": 4 }),
                json!({ "op": "remove", "path": "/spec/gone" }),
            ]
        );
        assert_eq!(patch(&after, &after), Vec::<Value>::new());
    }

    #[test]
    fn a_deletion_or_a_change_outside_the_spec_changes_nothing() {
        let same =
            json!({ "uid": "1", "object": { "spec": 1 }, "oldObject": { "spec": 1, "status": 2 } });
        assert!(review(&same).unwrap().changes_nothing());
        let deleted = json!({ "uid": "1", "object": null, "oldObject": { "spec": 1 } });
        assert!(review(&deleted).unwrap().changes_nothing());
        let new = json!({ "uid": "1", "object": { "spec": 1 }, "oldObject": null });
        assert!(!review(&new).unwrap().changes_nothing());
    }
}
