//! `envoy.service.discovery.v3`: the delta stream.

pub use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, aggregated_discovery_service_client,
    aggregated_discovery_service_server,
};
pub use crate::proto::{
    envoy::config::core::v3::{ControlPlane, Node},
    google::rpc::Status,
};
