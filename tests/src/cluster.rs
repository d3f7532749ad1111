//! A real Kubernetes cluster of one node, in separate Linux namespaces.

mod addresses;
mod image;
pub mod merlon;
mod node;
pub mod openbao;
mod outside;
mod running;
mod settings;
mod sweep;
mod workloads;

pub use addresses::Addresses;
pub use image::Image;
pub use running::{BUSYBOX, Cluster, are_possible, is_possible};
pub use sweep::sweep;
pub use workloads::program;

/// The time limit of `kubectl wait` and `kubectl rollout status`. Long: a node whose processors are busy starts pods slowly.
const KUBECTL_TIMEOUT: &str = "--timeout=200s";
