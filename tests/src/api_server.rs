//! A real Kubernetes API without nodes: etcd and kube-apiserver. Pods exist as objects only; their programs and proxies
//! run as processes on this machine.

mod audit;
mod etcd;
mod issue;
mod replica;
mod server;

pub use audit::Call;
pub use issue::Issued;
pub use replica::Replica;
pub use server::{ApiServer, Pod};
