//! Kubernetes clusters that serve several tests each; need root.

mod cluster;
mod gateway_in_cluster;
mod installed;
mod mesh_in_cluster;
mod programs_in_cluster;
