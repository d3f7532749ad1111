//! A Kubernetes API server without nodes: the control plane's replicas are processes, pods are objects.

mod charts;
mod kubernetes;
