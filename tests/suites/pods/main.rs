//! What needs root on one machine: network namespaces that stand for pods, and file systems.

mod full_disk;
mod interception;
