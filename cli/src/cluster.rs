//! Access to a Kubernetes cluster, with the user's kubeconfig and permissions.

mod names;

use std::time::Duration;

use clap::Args;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{AttachParams, ListParams},
    client::ConfigExt as _,
    config::KubeConfigOptions,
};
use tokio::io::{AsyncRead, AsyncWrite, join};
use tower::{BoxError, ServiceBuilder};

use crate::failure::Failure;

/// The cluster, and the namespace of Merlon in it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClusterArgs {
    /// Namespace in which Merlon is installed.
    #[arg(
        long,
        global = true,
        value_name = "NAMESPACE",
        default_value = "merlon-system"
    )]
    pub(crate) merlon_namespace: String,
    /// Context of the kubeconfig [default: the current context].
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// A client of one cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) server: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Label selector of the control plane's pods.
pub(crate) const CONTROL_PLANES: &str =
    "app.kubernetes.io/name=merlon,app.kubernetes.io/component=control-plane";
/// The administration socket of the control plane in the chart.
pub(crate) const SOCKET: &str = "/var/lib/merlon/state/admin.sock";

impl Cluster {
    /// Reads the kubeconfig. Sends no request.
    pub(crate) async fn connect(args: &ClusterArgs) -> Result<Self, Failure> {
        let options = KubeConfigOptions {
            context: args.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &args.context {
            Some(_) => kube::Config::from_kubeconfig(&options)
                .await
                .map_err(|error| error.to_string()),
            None => kube::Config::infer()
                .await
                .map_err(|error| error.to_string()),
        };
        let config = config.map_err(|error| {
            Failure::usage(format!("cannot find the cluster: {error}"))
                .hint("set KUBECONFIG, or select one of its contexts with `--context`")
        })?;
        let server = config.cluster_url.to_string();
        let client = client(&config).map_err(|error| {
            Failure::usage(format!("cannot create a client for the cluster: {error}"))
        })?;
        Ok(Self {
            client,
            namespace: args.merlon_namespace.clone(),
            server,
        })
    }

    /// The names of the control plane's running pods.
    pub(crate) async fn control_planes(&self) -> Result<Vec<String>, Failure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let all = ListParams::default().labels(CONTROL_PLANES);
        let found = pods.list(&all).await.map_err(|error| self.failed(&error))?;
        let running = found.items.iter().filter(|pod| {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
        });
        let names: Vec<String> = running.map(kube::ResourceExt::name_any).collect();
        if names.is_empty() {
            return Err(Failure::runtime(format!(
                "no control plane runs in namespace `{}` of {}",
                self.namespace, self.server
            ))
            .hint(
                "`merlon check` shows the cause; `--merlon-namespace` selects another namespace",
            ));
        }
        Ok(names)
    }

    /// Opens a stream to the administration socket of one replica, by `exec` in its pod.
    pub(crate) async fn tunnel(
        &self,
        pod: &str,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Failure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let both = AttachParams::default()
            .container("control-plane")
            .stdin(true)
            .stdout(true)
            .stderr(false);
        let command = ["/merlon", "tunnel", "--socket", SOCKET];
        let mut attached = pods
            .exec(pod, command, &both)
            .await
            .map_err(|error| self.failed(&error))?;
        let (Some(out), Some(into)) = (attached.stdout(), attached.stdin()) else {
            return Err(Failure::runtime(format!(
                "`exec` in pod `{pod}` gave no standard input and output"
            )));
        };
        // This task ends when both streams close.
        tokio::spawn(async move { attached.join().await });
        Ok(join(out, into))
    }

    /// The error of the API server, with a hint about missing permissions.
    pub(crate) fn failed(&self, error: &kube::Error) -> Failure {
        let failure = Failure::runtime(format!("{}: {}", self.server, error_text(error)));
        match error {
            kube::Error::Api(status) if status.code == 403 => failure.hint(format!(
                "your user needs `list` of pods and `create` of pods/exec in namespace `{}`",
                self.namespace
            )),
            kube::Error::Api(status) if status.code == 401 => {
                failure.hint("the credentials of the kubeconfig are invalid or expired")
            }
            kube::Error::Api(_) => failure,
            _ => failure.hint("check with `kubectl version` that the API server is reachable"),
        }
    }
}

/// The message of the API server, or the error with its causes.
pub(crate) fn error_text(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error
        && !status.message.is_empty()
    {
        return status.message.clone();
    }
    let mut text = error.to_string();
    let mut inner = std::error::Error::source(error);
    while let Some(cause) = inner {
        let more = cause.to_string();
        // Some errors already include their cause.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        inner = cause.source();
    }
    text
}

/// The client that kube builds, with another resolver and without retries: a request that fails now is what the user
/// needs to see.
fn client(config: &kube::Config) -> Result<Client, kube::Error> {
    let mut http = HttpConnector::new_with_resolver(names::Names);
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT));
    let https = config.rustls_https_connector_with_connector(http)?;
    let http_client = legacy::Client::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http_client);
    Ok(Client::new(service, config.default_namespace.clone()))
}

const CONNECT: Duration = Duration::from_secs(5);
