//! A complete mesh: the real control plane and a real sidecar for each program.

pub(crate) mod admin;
mod builder;
mod clock;
mod control_plane;
mod fake_control_plane;
mod metric;
mod names;
mod peer;
mod resources;
mod running;
mod shared;
mod sidecar;
mod standalone;
mod wire;
mod workers;

pub(crate) use builder::limits_file;
pub use builder::{MeshBuilder, PORT, tokens_of};
pub use clock::Clock;
pub use control_plane::ControlPlane;
pub use fake_control_plane::FakeControlPlane;
pub use merlon_test_support::log::LogLine;
pub use metric::Metric;
pub use names::{NAMESPACE, TRUST_DOMAIN, identity, spiffe_id};
pub use peer::{AnonymousPeer, Destination, PeerCall, TestPeer, tls_connect, tls_connect_from};
pub use running::Mesh;
pub use shared::{Guard, Shared};
pub use sidecar::Sidecar;
pub use standalone::Standalone;
pub use wire::Wire;
