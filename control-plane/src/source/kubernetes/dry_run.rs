//! Checks a resource before it is created or changed.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use kube::api::DynamicObject;
use merlon_compile::{Compiler, Mesh};
use merlon_config::{crd::CLUSTER_KINDS, resource::Resource};
use serde_json::Value;

use super::{
    acceptance::{InForce, dry_run, outside_root_namespace},
    document::Document,
    share::Shares,
};

/// Checks resources against the versions in force. Clones share them and are cheap.
#[derive(Clone)]
pub(crate) struct DryRun {
    /// The control plane's own namespace.
    home: Arc<str>,
    known: Arc<Mutex<Known>>,
    /// A separate lock: a check takes time and must not delay updates of `known`.
    compiler: Arc<Mutex<Compiler>>,
}

#[derive(Clone, Default)]
struct Known {
    in_force: Arc<InForce>,
    shares: Arc<Shares>,
    found: Arc<[Resource]>,
    running: Option<Arc<Mesh>>,
}

impl fmt::Debug for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DryRun").finish_non_exhaustive()
    }
}

impl DryRun {
    pub(super) fn new(home: &str) -> Self {
        Self {
            home: home.into(),
            known: Arc::default(),
            compiler: Arc::default(),
        }
    }

    /// Replaces the versions in force.
    pub(super) fn update(
        &self,
        (in_force, shares): (Arc<InForce>, Arc<Shares>),
        found: Arc<[Resource]>,
        running: Option<&Arc<Mesh>>,
    ) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.in_force = in_force;
        known.shares = shares;
        known.found = found;
        if let Some(running) = running {
            known.running = Some(Arc::clone(running));
        }
    }

    /// Warnings about a resource that would be accepted. It compiles the mesh, so it may take some time.
    ///
    /// # Errors
    /// Why it would be refused, with field, line and column.
    pub(crate) fn check(&self, kind: &str, object: Value) -> Result<Vec<String>, String> {
        let Some(kind) = CLUSTER_KINDS.iter().find(|known| known.kind == kind) else {
            return Ok(Vec::new());
        };
        let object: DynamicObject = serde_json::from_value(object)
            .map_err(|error| format!("merlon: the resource cannot be parsed: {error}"))?;
        let document = Document::of(kind, &object)
            .ok_or_else(|| "merlon: the resource has no namespace".to_owned())?;
        if let Some(why) = outside_root_namespace(&document.key, &self.home) {
            return Err(why);
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known {
            in_force,
            shares,
            found,
            running,
        } = known.clone();
        drop(known);
        shares.fits(&document)?;
        let mut compiler = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        let mesh = (&*self.home, running.as_deref());
        let mut warnings = dry_run(&mut compiler, mesh, &found, &in_force, &document)?;
        let exceeded = shares.exceeded_by(&document);
        warnings.extend(exceeded.map(|why| format!("merlon: {why}")));
        Ok(warnings)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::{super::acceptance::Acceptance, *};

    fn object(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "merlon.io/v1alpha1", "kind": kind,
            "metadata": { "name": name, "namespace": namespace, "generation": 1, "uid": name },
            "spec": spec,
        })
    }

    fn document(object: &Value) -> Document {
        let kind = CLUSTER_KINDS
            .iter()
            .find(|kind| object["kind"] == kind.kind);
        let object = serde_json::from_value(object.clone()).unwrap();
        Document::of(kind.unwrap(), &object).unwrap()
    }

    fn policy(name: &str, policies: &str) -> Value {
        let spec = json!({ "policies": policies });
        object("AuthorizationPolicy", "shop", name, &spec)
    }

    const FORBID: &str = "@id(\"a\")\nforbid (principal, action, resource);";

    #[test]
    fn checks_change_neither_what_is_in_force_nor_the_result_of_later_checks() {
        let home = "merlon-system";
        let mesh = object(
            "MeshConfig",
            home,
            "mesh",
            &json!({ "trustDomain": "x.test" }),
        );
        let documents: BTreeMap<_, _> = [&mesh, &policy("a", FORBID)]
            .map(document)
            .into_iter()
            .map(|document| (document.key.clone(), document))
            .collect();
        let found: Arc<[Resource]> = Arc::new([]);
        let mut acceptance = Acceptance::new(home);
        let evaluation = acceptance.evaluate(&documents, &found, None);
        let dry_run = DryRun::new(home);
        let known = (acceptance.in_force(), acceptance.shares());
        dry_run.update(known, found, evaluation.mesh.as_ref());
        let before = dry_run.known.lock().unwrap().clone();

        let limit = json!({ "limits": [{ "name": "x", "rate": { "requests": 1, "per": "1s" } }] });
        let questions = [
            // A new resource, another version of one that is in force, and invalid ones.
            policy("b", &FORBID.replace("\"a\"", "\"b\"")),
            policy("a", &FORBID.replace("forbid", "permit")),
            policy("a", "permit ("),
            policy("c", "@id(\"a\")\nforbid (principal, action, resource);"),
            object("RateLimit", "shop", "r", &limit),
            object("RateLimit", "shop", "r", &json!({})),
            object(
                "MeshConfig",
                home,
                "mesh",
                &json!({ "trustDomain": "y.test" }),
            ),
            object(
                "MeshConfig",
                "shop",
                "mesh",
                &json!({ "trustDomain": "y.test" }),
            ),
            json!({ "kind": "AuthorizationPolicy" }),
        ];
        let check = |question: &Value| {
            let kind = question["kind"].as_str().unwrap();
            dry_run.check(kind, question.clone())
        };
        let first: Vec<_> = questions.iter().map(check).collect();
        let results: Vec<_> = first.iter().map(Result::is_ok).collect();
        let expected = [true, true, false, true, true, false, false, false, false];
        assert_eq!(results, expected, "{first:?}");

        let after = dry_run.known.lock().unwrap().clone();
        assert!(Arc::ptr_eq(&before.in_force, &after.in_force));
        assert!(Arc::ptr_eq(&before.found, &after.found));
        assert!(Arc::ptr_eq(
            &before.running.unwrap(),
            &after.running.unwrap()
        ));
        // In another order, each has the same result: none of them left anything.
        let mut again: Vec<_> = questions.iter().rev().map(check).collect();
        again.reverse();
        assert_eq!(first, again);
        assert_eq!(
            acceptance
                .evaluate(&documents, &[], evaluation.mesh.as_deref())
                .verdicts,
            evaluation.verdicts
        );
    }
}
