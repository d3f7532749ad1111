//! Meshes on this machine: processes on loopback, with real servers beside them.

mod access_log;
mod administration;
mod authentication;
mod authorization;
mod bad_input;
mod clock;
mod configuration;
mod documentation;
mod explain;
mod identity;
mod limits;
mod observability;
mod push;
mod servers;
mod shops;
mod shutdown;
mod standalone;
mod traffic;
mod validation;
mod wire;
mod workers;
