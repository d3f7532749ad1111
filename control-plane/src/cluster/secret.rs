//! Secrets that all replicas share. The first replica creates them.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::PostParams};

/// Reads the Secret of this name, and creates it if it does not exist.
pub(crate) async fn shared<E: From<Box<kube::Error>>>(
    api: &Api<Secret>,
    name: &str,
    make: impl AsyncFnOnce() -> Result<Secret, E>,
) -> Result<Secret, E> {
    if let Some(secret) = api.get_opt(name).await.map_err(Box::new)? {
        return Ok(secret);
    }
    let made = make().await?;
    match api.create(&PostParams::default(), &made).await {
        Ok(created) => Ok(created),
        // Another replica was faster: its key is used.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            Ok(api.get(name).await.map_err(Box::new)?)
        }
        Err(error) => Err(Box::new(error).into()),
    }
}

/// A Secret of a Merlon type.
pub(crate) fn of_type(kind: &str, name: &str, data: BTreeMap<String, ByteString>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some(kind.to_owned()),
        ..Secret::default()
    }
}
