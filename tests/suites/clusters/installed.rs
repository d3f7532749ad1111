//! The cluster that the suites of this target share, with one installation of Merlon: certificates from OpenBao, a gateway.

use merlon_tests::{
    Cluster,
    cluster::{merlon, openbao::ClusterBao},
};
use tokio::sync::OnceCell;

use crate::gateway_in_cluster;

/// The cluster, and OpenBao in it.
pub(crate) struct Installed {
    pub(crate) cluster: &'static Cluster,
    pub(crate) bao: ClusterBao<'static>,
}

/// Starts the cluster and installs everything, once. Each test uses namespaces of its own.
pub(crate) async fn installed() -> &'static Installed {
    static INSTALLED: OnceCell<Installed> = OnceCell::const_new();
    INSTALLED
        .get_or_init(async || {
            let cluster = Cluster::shared().await;
            cluster.install_gateway_crds().await;
            cluster
                .kubectl(&["create", "namespace", merlon::NAMESPACE])
                .await;
            gateway_in_cluster::create_certificates(cluster).await;
            let bao = cluster.openbao().await;
            let values = [bao.values().as_str(), gateway_in_cluster::VALUES].concat();
            cluster.install_merlon(&values).await;
            Installed { cluster, bao }
        })
        .await
}
