//! The harness of Merlon's end-to-end tests: real servers, real programs, the real binaries.
#![doc = include_str!("../README.md")]

pub mod api_server;
pub mod app;
pub mod chat;
pub mod client;
pub mod cluster;
pub mod connection;
pub mod hostile;
pub mod http2;
pub mod load;
pub mod mesh;
pub mod open_request;
pub mod openbao;
pub mod openid;
pub mod pods;
pub mod postgres;
pub mod redis;
pub mod refusals;
pub mod rights;

pub use api_server::ApiServer;
pub use client::{Client, Reply};
pub use cluster::Cluster;
pub use load::Load;
pub use merlon_test_support::{
    eventually, folder, limit, ports, process, runtime, tools, until, wait,
};
pub use mesh::Mesh;
pub use open_request::OpenRequest;
