//! The harness of Merlon's end-to-end tests: real servers, real programs, the real binaries.
#![doc = include_str!("../README.md")]

pub mod api_server;
pub mod app;
pub mod chat;
pub mod client;
pub mod cluster;
pub mod folder;
pub mod load;
pub mod mesh;
pub mod openbao;
pub mod openid;
pub mod pods;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod rights;
pub mod runtime;
pub mod tools;
pub mod wait;

pub use api_server::ApiServer;
pub use client::{Client, Reply};
pub use cluster::Cluster;
pub use load::Load;
pub use mesh::Mesh;
pub use wait::until;
