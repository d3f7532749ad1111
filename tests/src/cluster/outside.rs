//! The cluster's API as this machine reaches it, which has no way into the cluster's network.

use std::net::SocketAddr;

use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use super::Cluster;
use crate::pods;

impl Cluster {
    /// Listens on a port of loopback that leads to the API server, as long as the runtime lives.
    ///
    /// # Panics
    /// When no port can be had.
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
                        // Either end may end it.
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        here
    }

    /// Credentials of an administrator, for who reaches the API server at `address`.
    pub fn kubeconfig_at(&self, address: SocketAddr) -> String {
        let own = std::fs::read_to_string(self.kubeconfig()).expect("the kubeconfig");
        let mut config: serde_json::Value = serde_json::from_str(&own).expect("JSON");
        let cluster = &mut config["clusters"][0]["cluster"];
        cluster["server"] = json!(format!("https://{address}"));
        // Its certificate names the cluster's own addresses, and this.
        cluster["tls-server-name"] = json!("kubernetes.default.svc");
        config.to_string()
    }
}
