//! A Kubernetes cluster, by the user's own kubeconfig and with the user's own rights.

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

/// Which cluster, and where in it Merlon is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// The namespace that Merlon is installed in.
    #[arg(
        long,
        global = true,
        value_name = "NAMESPACE",
        default_value = "merlon-system"
    )]
    pub(crate) merlon_namespace: String,
    /// The context of the kubeconfig [default: the current one].
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// A cluster that can be asked.
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

/// The control plane's pods.
pub(crate) const CONTROL_PLANES: &str =
    "app.kubernetes.io/name=merlon,app.kubernetes.io/component=control-plane";
/// Where the chart puts the control plane's administration socket.
pub(crate) const SOCKET: &str = "/var/lib/merlon/state/admin.sock";

impl Cluster {
    /// Reads the kubeconfig. Nothing is asked yet.
    pub(crate) async fn connect(place: &Place) -> Result<Self, Failure> {
        let options = KubeConfigOptions {
            context: place.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &place.context {
            Some(_) => kube::Config::from_kubeconfig(&options)
                .await
                .map_err(|error| error.to_string()),
            None => kube::Config::infer()
                .await
                .map_err(|error| error.to_string()),
        };
        let config = config.map_err(|error| {
            Failure::usage(format!("it is not known where the cluster is: {error}"))
                .hint("set KUBECONFIG, or name a context of it by `--context`")
        })?;
        let server = config.cluster_url.to_string();
        let client = client(&config)
            .map_err(|error| Failure::usage(format!("the cluster cannot be spoken to: {error}")))?;
        Ok(Self {
            client,
            namespace: place.merlon_namespace.clone(),
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
                "no control plane runs in the namespace `{}` of {}",
                self.namespace, self.server
            ))
            .hint("`merlon check` says why; another namespace is named by `--merlon-namespace`"));
        }
        Ok(names)
    }

    /// A way to the administration socket of one of them, by `exec` in its pod.
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
                "the pod `{pod}` gives no way to its administration"
            )));
        };
        // What is left of it ends with the two.
        tokio::spawn(async move { attached.join().await });
        Ok(join(out, into))
    }

    /// What the API server refused, and with which right it would not have.
    pub(crate) fn failed(&self, error: &kube::Error) -> Failure {
        let failure = Failure::runtime(format!("{}: {}", self.server, said(error)));
        match error {
            kube::Error::Api(status) if status.code == 403 => failure.hint(format!(
                "your user needs, in the namespace `{}`, `list` of pods and `create` of pods/exec",
                self.namespace
            )),
            kube::Error::Api(status) if status.code == 401 => {
                failure.hint("the credentials of the kubeconfig are not good (any more)")
            }
            kube::Error::Api(_) => failure,
            _ => failure
                .hint("is the API server reached from here? `kubectl version` tells the same"),
        }
    }
}

/// What went wrong, in the words of whoever said it.
pub(crate) fn said(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error
        && !status.message.is_empty()
    {
        return status.message.clone();
    }
    let mut said = error.to_string();
    let mut inner = std::error::Error::source(error);
    while let Some(cause) = inner {
        let more = cause.to_string();
        // Some say what caused them themselves.
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        inner = cause.source();
    }
    said
}

/// As kube makes one, but for the names, and nothing is asked twice: what is not well now is what is asked about.
fn client(config: &kube::Config) -> Result<Client, kube::Error> {
    let mut http = HttpConnector::new_with_resolver(names::Names);
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT));
    let https = config.rustls_https_connector_with_connector(http)?;
    let asking = legacy::Client::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(asking);
    Ok(Client::new(service, config.default_namespace.clone()))
}

const CONNECT: Duration = Duration::from_secs(5);
