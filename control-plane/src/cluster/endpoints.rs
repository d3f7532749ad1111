//! The endpoints of Merlon's own Services.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::ResourceExt as _;

use super::{names::SERVICE_LABEL, watch::Cluster};

/// The EndpointSlices of a Service.
pub(crate) fn slices_of(
    cluster: &Cluster,
    namespace: &str,
    service: &str,
) -> Vec<Arc<EndpointSlice>> {
    let mut slices = cluster.slices.state();
    slices.retain(|slice| {
        let of = slice.labels().get(SERVICE_LABEL);
        slice.metadata.namespace.as_deref() == Some(namespace) && of.is_some_and(|of| of == service)
    });
    slices
}

pub(crate) fn has_ready_endpoint(slice: &EndpointSlice) -> bool {
    slice.endpoints.iter().any(is_ready)
}

/// Absent conditions count as ready, as for the node's proxy.
pub(crate) fn is_ready(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    conditions.is_none_or(|conditions| conditions.ready != Some(false))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_endpoint_is_ready_unless_it_says_that_it_is_not() {
        let ready = |endpoints: Value| {
            let slice = json!({ "metadata": {}, "addressType": "IPv4", "endpoints": endpoints });
            has_ready_endpoint(&serde_json::from_value(slice).unwrap())
        };
        let endpoint =
            |conditions: Value| json!({ "addresses": ["10.0.0.1"], "conditions": conditions });
        assert!(!ready(json!([])));
        assert!(!ready(json!([endpoint(
            json!({ "ready": false, "serving": true })
        )])));
        assert!(ready(json!([endpoint(json!({}))])));
        let second = [
            endpoint(json!({ "ready": false })),
            endpoint(json!({ "ready": true })),
        ];
        assert!(ready(json!(second)));
    }
}
