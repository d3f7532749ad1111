//! Access to the cluster's API from the machine's own network, which has no route to the cluster.

use std::net::SocketAddr;

use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use super::running::Cluster;
use crate::pods;

impl Cluster {
    /// Forwards a loopback port to the API server for as long as the runtime runs.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn forward(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let here = listener.local_addr().expect("an address");
        let (network, there) = (
            format!("/proc/{}/ns/net", self.init()),
            SocketAddr::from((self.addresses().node(), 6443)),
        );
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let network = network.clone();
                tokio::spawn(async move {
                    let opened = tokio::task::spawn_blocking(move || {
                        pods::within(&network, || std::net::TcpStream::connect(there))
                    });
                    let Ok(Ok(far)) = opened.await else { return };
                    let far = far
                        .set_nonblocking(true)
                        .and_then(|()| TcpStream::from_std(far));
                    if let Ok(mut far) = far {
                        // Either end may close it.
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        here
    }

    /// The kubeconfig of an administrator, with `address` as the address of the API server.
    pub fn kubeconfig_at(&self, address: SocketAddr) -> String {
        let own = std::fs::read_to_string(self.kubeconfig()).expect("the kubeconfig");
        let mut config: serde_json::Value = serde_json::from_str(&own).expect("JSON");
        let cluster = &mut config["clusters"][0]["cluster"];
        cluster["server"] = json!(format!("https://{address}"));
        // The certificate is valid for the cluster's addresses and for this name.
        cluster["tls-server-name"] = json!("kubernetes.default.svc");
        config.to_string()
    }
}
