//! A pod as a JSON object. Unknown fields stay as they are.

use serde_json::{Map, Value, json};

use crate::error::InjectError;

/// A Pod or a pod template.
#[derive(Debug)]
pub(crate) struct Pod {
    object: Map<String, Value>,
}

/// The fields that hold containers.
pub(crate) const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

impl Pod {
    /// Fails when a field that the injector uses has the wrong type.
    pub(crate) fn of(value: &Value) -> Result<Self, InjectError> {
        let shape = |what: &str| InjectError::Shape(what.to_owned());
        let object = value.as_object().ok_or_else(|| shape("."))?.clone();
        let spec = object.get("spec").and_then(Value::as_object);
        let spec = spec.ok_or_else(|| shape("spec"))?;
        for field in CONTAINERS {
            let list = spec.get(field).filter(|list| !list.is_null());
            let right = list.is_none_or(|list| {
                list.as_array()
                    .is_some_and(|list| list.iter().all(Value::is_object))
            });
            if !right {
                return Err(InjectError::Shape(format!("spec.{field}")));
            }
        }
        let volumes = spec.get("volumes").filter(|list| !list.is_null());
        if volumes.is_some_and(|list| !list.is_array()) {
            return Err(shape("spec.volumes"));
        }
        let metadata = object.get("metadata").filter(|part| !part.is_null());
        if metadata.is_some_and(|metadata| !metadata.is_object()) {
            return Err(shape("metadata"));
        }
        for field in ["labels", "annotations"] {
            let map = metadata
                .and_then(|metadata| metadata.get(field))
                .filter(|map| !map.is_null());
            let right = map.is_none_or(|map| {
                map.as_object()
                    .is_some_and(|map| map.values().all(Value::is_string))
            });
            if !right {
                return Err(InjectError::Shape(format!("metadata.{field}")));
            }
        }
        Ok(Self { object })
    }

    pub(crate) fn into_object(self) -> Value {
        Value::Object(self.object)
    }

    pub(crate) fn spec(&self) -> Option<&Map<String, Value>> {
        self.object.get("spec")?.as_object()
    }

    pub(crate) fn spec_mut(&mut self) -> Result<&mut Map<String, Value>, InjectError> {
        let spec = self.object.get_mut("spec").and_then(Value::as_object_mut);
        spec.ok_or_else(|| InjectError::Shape("spec".to_owned()))
    }

    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        let labels = self.object.get("metadata")?.get("labels")?;
        labels.get(name)?.as_str()
    }

    pub(crate) fn annotations(&self) -> impl Iterator<Item = (&String, &str)> {
        let metadata = self.object.get("metadata");
        let all = metadata.and_then(|metadata| metadata.get("annotations")?.as_object());
        all.into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name, value.as_str()?)))
    }

    pub(crate) fn service_account(&self) -> &str {
        let spec = self.spec();
        let name = spec.and_then(|spec| spec.get("serviceAccountName")?.as_str());
        name.filter(|name| !name.is_empty()).unwrap_or("default")
    }

    /// All containers, init containers included.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &Map<String, Value>> {
        CONTAINERS.into_iter().flat_map(|field| {
            let spec = self.spec();
            let list = spec.and_then(|spec| spec.get(field)?.as_array());
            list.into_iter().flatten().filter_map(Value::as_object)
        })
    }

    /// The containers that run as long as the pod does: programs and other sidecars.
    pub(crate) fn programs_mut(&mut self) -> impl Iterator<Item = &mut Map<String, Value>> {
        let spec = self.object.get_mut("spec").and_then(Value::as_object_mut);
        spec.into_iter()
            .flatten()
            .filter(|(field, _)| CONTAINERS.contains(&field.as_str()))
            .flat_map(|(field, list)| {
                let all = list.as_array_mut().into_iter().flatten();
                let objects = all.filter_map(Value::as_object_mut);
                let alone = field == "containers";
                objects.filter(move |container| {
                    alone
                        || container
                            .get("restartPolicy")
                            .is_some_and(|p| p == "Always")
                })
            })
    }

    /// All containers, init containers included.
    pub(crate) fn containers_mut(&mut self) -> impl Iterator<Item = &mut Map<String, Value>> {
        let spec = self.object.get_mut("spec").and_then(Value::as_object_mut);
        spec.into_iter()
            .flatten()
            .filter(|(field, _)| CONTAINERS.contains(&field.as_str()))
            .flat_map(|(_, list)| list.as_array_mut().into_iter().flatten())
            .filter_map(Value::as_object_mut)
    }

    pub(crate) fn volumes(&self) -> impl Iterator<Item = &Value> {
        let list = self.spec().and_then(|spec| spec.get("volumes")?.as_array());
        list.into_iter().flatten()
    }

    /// Sets the label and the annotation of a pod with a sidecar.
    pub(crate) fn mark(
        &mut self,
        label: &str,
        annotation: &str,
        value: &str,
    ) -> Result<(), InjectError> {
        let wrong = || InjectError::Shape("metadata".to_owned());
        let metadata = self.object.entry("metadata").or_insert_with(|| json!({}));
        if metadata.is_null() {
            *metadata = json!({});
        }
        let metadata = metadata.as_object_mut().ok_or_else(wrong)?;
        for (field, name, value) in [
            ("labels", label, "true"),
            ("annotations", annotation, value),
        ] {
            let map = metadata.entry(field).or_insert_with(|| json!({}));
            if map.is_null() {
                *map = json!({});
            }
            let map = map.as_object_mut().ok_or_else(wrong)?;
            map.insert(name.to_owned(), json!(value));
        }
        Ok(())
    }
}

/// The value of a container's environment variable.
pub(crate) fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let all = container.get("env")?.as_array()?;
    let found = all
        .iter()
        .find(|one| one.get("name").is_some_and(|n| n == name))?;
    found.get("value")?.as_str()
}

/// The container's name, for messages.
pub(crate) fn name(container: &Map<String, Value>) -> &str {
    let name = container.get("name").and_then(Value::as_str);
    name.unwrap_or_default()
}
