//! Specifications of the compiler.

mod addresses;
mod documentation;
mod isolation;
mod mesh;
mod problems;

/// A mesh with one service and one workload.
const SHOP: &str = "
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: { name: mesh, namespace: merlon-system }
spec: { trustDomain: shop.example.org }
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: { name: orders, namespace: shop }
spec: { selector: { app: orders }, ports: [{ port: 80 }] }
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: { name: orders, namespace: shop, labels: { app: orders } }
spec: { serviceAccount: orders, meshAddress: \"127.0.0.1:17562\" }
";
