//! Network namespaces that stand for pods; need root.

mod interception;
