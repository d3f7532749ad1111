//! The start-up settings of a process: a small YAML file with the same fields as its flags.
//!
//! For each field, a flag overrides the environment and the environment overrides the file, so every field is optional.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

use crate::{
    document,
    load::text_of,
    name::{Namespace, ResourceName, ServiceName, WorkloadId},
    node::Mark,
    probe::Probes,
    read::read,
    report::{Problem, Report},
    resources::File,
    unit::HumanDuration,
};

/// Start-up settings of `merlon-proxy`. Relative paths are relative to the file's directory.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyBootstrap {
    /// Runs without a control plane, from the resource files in this directory.
    pub standalone: Option<PathBuf>,
    /// The service account of this sidecar's workload, written `namespace/service-account`, for example `shop/orders`.
    pub identity: Option<WorkloadId>,
    /// The Gateway that this proxy runs, for example `shop/edge`. Its service account is `shop/edge`, or `identity` if set.
    pub gateway: Option<ServiceName>,
    /// The name of this sidecar's Workload. Needed only if several Workloads with different settings share `identity`.
    pub workload: Option<ResourceName>,
    /// The control plane's URL, for example `https://127.0.0.1:7564`.
    pub control_plane: Option<Url>,
    /// The namespace of the control plane's identity. Default: `merlon-system`.
    pub root_namespace: Option<Namespace>,
    /// The join token for the first certificate. Prefer `joinTokenFile`, so that this file holds no secret.
    #[schemars(with = "Option<String>")]
    pub join_token: Option<SecretString>,
    /// A file that holds the join token.
    pub join_token_file: Option<PathBuf>,
    /// In Kubernetes, instead of a join token: a file that holds the pod's projected token with the audience `merlon`.
    pub token_file: Option<PathBuf>,
    /// With `tokenFile`: a file that holds the trust domain. Default: `trust-domain` in the directory of `trustBundle`.
    pub trust_domain_file: Option<PathBuf>,
    /// PEM file with the mesh's root certificates. If omitted, the root that the join token pins.
    pub trust_bundle: Option<PathBuf>,
    /// PEM file with this proxy's certificate chain, leaf first. Only with `standalone`, `key` and `trustBundle`.
    pub certificate: Option<PathBuf>,
    /// PEM file with the certificate's private key (PKCS#8). Only with `certificate`.
    pub key: Option<PathBuf>,
    /// Directory that keeps the key, the certificate and the last snapshot across restarts. If omitted, nothing is kept.
    pub state_dir: Option<PathBuf>,
    /// Directory for secrets that are granted to the program as files, on a memory file system. If omitted, no files are
    /// written.
    pub secrets_dir: Option<PathBuf>,
    /// The address that other proxies connect to. Default: `0.0.0.0:7561`.
    #[schemars(with = "Option<String>")]
    pub inbound: Option<SocketAddr>,
    /// The address through which the program calls services. Default: `127.0.0.1:7560`.
    #[schemars(with = "Option<String>")]
    pub outbound: Option<SocketAddr>,
    /// Whether firewall rules, such as those of `merlon-intercept`, redirect connections with other destinations to
    /// `inbound` and `outbound`. Default: `false`.
    pub interception: Option<bool>,
    /// The address of `/live`, `/ready` and `/metrics`. Default: `127.0.0.1:7562`.
    #[schemars(with = "Option<String>")]
    pub admin: Option<SocketAddr>,
    /// The address for the kubelet's probes of the program. The proxy answers each probe by sending the same probe to the
    /// program. Requires `probes`. If omitted, probes are not served.
    #[schemars(with = "Option<String>")]
    pub probes_address: Option<SocketAddr>,
    /// The probes of `probesAddress`, by path.
    pub probes: Option<Probes>,
    /// Number of threads that process requests. 1–1024; default: the number of available CPUs.
    pub workers: Option<u16>,
    /// Which requests are logged. Default: `all`.
    pub access_log: Option<AccessLogMode>,
    /// How long open requests may take to finish at shutdown. Default: `30s`.
    pub drain_timeout: Option<HumanDuration>,
}

/// Which requests are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AccessLogMode {
    /// All requests.
    #[default]
    All,
    /// Requests that Merlon denied.
    Refusals,
    /// No requests.
    Off,
}

/// What happens to a request for a certificate with a pod's token that comes from another address than the pod's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PodAddressCheck {
    /// It is rejected.
    #[default]
    Enforce,
    /// It is accepted, logged and counted: for networks that translate the addresses of pods.
    Warn,
}

/// Start-up settings of `merlon-control-plane`. Relative paths are relative to the file's directory.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlPlaneBootstrap {
    /// The directory of resource files.
    pub config: Option<PathBuf>,
    /// Whether resources come from a Kubernetes cluster, instead of `config`. Default: false.
    pub kubernetes: Option<bool>,
    /// With `kubernetes`: the name of this replica, which is the name of its pod. Default: the host name.
    pub replica: Option<String>,
    /// With `kubernetes`: the namespace of Merlon's own objects. Default: `merlon-system`.
    pub namespace: Option<String>,
    /// With `kubernetes`: whether Gateway API is supported. Default: false.
    pub gateway_api: Option<bool>,
    /// With `kubernetes`: file with the injector's settings. It enables the admission webhooks.
    pub injection: Option<PathBuf>,
    /// With `kubernetes`: whether a pod's token is accepted only from an address of that pod. Default: `enforce`.
    pub pod_address_check: Option<PodAddressCheck>,
    /// With `injection`: the address of the admission webhooks, which the API server calls. Default: `0.0.0.0:7566`.
    #[schemars(with = "Option<String>")]
    pub webhook: Option<SocketAddr>,
    /// With `injection`: the second address of the admission webhooks, which the API server calls while no replica is ready.
    /// Default: `0.0.0.0:7568`.
    #[schemars(with = "Option<String>")]
    pub webhook_fallback: Option<SocketAddr>,
    /// The address that proxies connect to. Default: `0.0.0.0:7564`.
    #[schemars(with = "Option<String>")]
    pub listen: Option<SocketAddr>,
    /// The Unix socket for administration. Default: `admin.sock` in `stateDir`.
    pub admin_socket: Option<PathBuf>,
    /// The address of `/live`, `/ready` and `/metrics`. Default: `127.0.0.1:7565`.
    #[schemars(with = "Option<String>")]
    pub admin: Option<SocketAddr>,
    /// Directory that keeps the embedded CA, join tokens and history.
    pub state_dir: Option<PathBuf>,
}

impl ProxyBootstrap {
    /// Reads a bootstrap file.
    ///
    /// # Errors
    /// All problems in the file.
    pub fn load(file: &Path) -> Result<Self, Report> {
        let mut this: Self = load(file)?;
        let paths = [
            &mut this.standalone,
            &mut this.join_token_file,
            &mut this.token_file,
            &mut this.trust_domain_file,
            &mut this.trust_bundle,
            &mut this.certificate,
            &mut this.key,
            &mut this.state_dir,
            &mut this.secrets_dir,
        ];
        resolve_from(file, paths);
        Ok(this)
    }

    /// Reads a bootstrap file from memory. Relative paths stay relative.
    ///
    /// # Errors
    /// All problems in the file.
    pub fn parse(file: &str, text: &str) -> Result<Self, Report> {
        parse(file, text)
    }
}

impl ControlPlaneBootstrap {
    /// Reads a bootstrap file.
    ///
    /// # Errors
    /// All problems in the file.
    pub fn load(file: &Path) -> Result<Self, Report> {
        let mut this: Self = load(file)?;
        let paths = [
            &mut this.config,
            &mut this.injection,
            &mut this.admin_socket,
            &mut this.state_dir,
        ];
        resolve_from(file, paths);
        Ok(this)
    }

    /// Reads a bootstrap file from memory. Relative paths stay relative.
    ///
    /// # Errors
    /// All problems in the file.
    pub fn parse(file: &str, text: &str) -> Result<Self, Report> {
        parse(file, text)
    }
}

fn resolve_from<const N: usize>(file: &Path, paths: [&mut Option<PathBuf>; N]) {
    let Some(folder) = file.parent() else {
        return;
    };
    for path in paths.into_iter().flatten() {
        // Joining an absolute path gives that path.
        *path = folder.join(&path);
    }
}

/// Checks that serde cannot do: ranges, and fields that exclude or require each other.
pub(crate) trait Validate {
    /// Each invalid field with its message.
    fn problems(&self) -> Vec<(&'static str, &'static str)>;
}

impl Validate for ProxyBootstrap {
    fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let mut found = Vec::new();
        let mut when = |wrong: bool, field, message| {
            if wrong {
                found.push((field, message));
            }
        };
        when(
            self.workload.is_some() && self.gateway.is_some(),
            "workload",
            "`workload` and `gateway` are mutually exclusive: a proxy is either a sidecar or a gateway",
        );
        when(
            self.certificate.is_some() != self.key.is_some(),
            if self.key.is_some() {
                "key"
            } else {
                "certificate"
            },
            "`certificate` and `key` must be set together",
        );
        when(
            self.certificate.is_some() && self.control_plane.is_some(),
            "certificate",
            "`certificate` is only for `standalone`: the control plane issues this proxy's certificate",
        );
        when(
            self.standalone.is_some() && self.control_plane.is_some(),
            "controlPlane",
            "`standalone` and `controlPlane` are mutually exclusive",
        );
        when(
            self.join_token.is_some() && self.join_token_file.is_some(),
            "joinTokenFile",
            "`joinToken` and `joinTokenFile` are mutually exclusive",
        );
        when(
            self.control_plane
                .as_ref()
                .is_some_and(|url| url.scheme() != "https"),
            "controlPlane",
            "the control plane's URL must begin with `https://`",
        );
        when(
            self.probes.is_some() != self.probes_address.is_some(),
            if self.probes.is_some() {
                "probes"
            } else {
                "probesAddress"
            },
            "`probes` and `probesAddress` must be set together",
        );
        when(
            self.workers
                .is_some_and(|workers| !(1..=1_024).contains(&workers)),
            "workers",
            "`workers` must be from 1 to 1024",
        );
        found
    }
}

impl Validate for ControlPlaneBootstrap {
    fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let both = self.kubernetes == Some(true) && self.config.is_some();
        let message = "`kubernetes` and `config` are mutually exclusive: resources come from a cluster or from files";
        both.then_some(("kubernetes", message))
            .into_iter()
            .collect()
    }
}

pub(crate) fn load<T: DeserializeOwned + Default + Validate>(file: &Path) -> Result<T, Report> {
    let name = file.display().to_string();
    match text_of(file) {
        Ok(text) => parse(&name, &text),
        Err(message) => Err(Report::from_iter([Problem::error(name, message)])),
    }
}

pub(crate) fn parse<T: DeserializeOwned + Default + Validate>(
    file: &str,
    text: &str,
) -> Result<T, Report> {
    let mut report = Report::new();
    let file = File::new(file, text);
    let trees = document::documents(&file, &mut report);
    let mut error = |mark: Mark, field: &str, message: &str, hint: Option<String>| {
        let problem = file.problem(mark, message);
        report.push(problem.field(field).maybe_hint(hint));
    };
    let value = match trees.as_slice() {
        [] => T::default(),
        [tree] => match read::<T>(tree, "", tree.at) {
            Ok(value) => {
                for (field, message) in value.problems() {
                    error(tree.find(field).0, field, message, None);
                }
                value
            }
            Err(mismatches) => {
                for one in mismatches {
                    error(one.at, &one.path, &one.message, one.hint);
                }
                T::default()
            }
        },
        [_, second, ..] => {
            let message = "unexpected second document: a bootstrap file has only one";
            error(second.at, "", message, None);
            T::default()
        }
    };
    if report.is_empty() {
        Ok(value)
    } else {
        Err(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_valid_and_sets_nothing() {
        let bootstrap = ProxyBootstrap::parse("proxy.yaml", "# nothing yet\n").unwrap();
        assert!(bootstrap.identity.is_none());
    }

    #[test]
    fn all_problems_of_a_bootstrap_file_are_reported_at_once() {
        let text = "\
identity: shop
gateway: shop/edge
control-plane: https://127.0.0.1:7564
inbound: localhost:7561
admin: 7562
workers: 0
accessLog: some
drainTimeout: 30
";
        insta::assert_snapshot!(ProxyBootstrap::parse("proxy.yaml", text).unwrap_err());
    }

    #[test]
    fn mutually_exclusive_fields_are_reported() {
        let text = "\
gateway: shop/edge
workload: web
certificate: web.pem
standalone: resources
controlPlane: http://127.0.0.1:7564
joinToken: merlon-join.1.example.org.secret
joinTokenFile: web.join
workers: 2000
";
        insta::assert_snapshot!(ProxyBootstrap::parse("proxy.yaml", text).unwrap_err());
    }

    #[test]
    fn a_join_token_is_not_printed() {
        let text = "joinToken: merlon-join.1.example.org.secret\n";
        let bootstrap = ProxyBootstrap::parse("proxy.yaml", text).unwrap();
        assert!(
            !format!("{bootstrap:?}").contains("secret\""),
            "{bootstrap:?}"
        );
        assert!(
            !format!("{bootstrap:?}").contains("merlon-join"),
            "{bootstrap:?}"
        );
    }

    #[test]
    fn paths_are_relative_to_the_directory_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("control-plane.yaml");
        std::fs::write(&file, "config: shop\nstateDir: /var/lib/merlon\n").unwrap();
        let bootstrap = ControlPlaneBootstrap::load(&file).unwrap();
        assert_eq!(bootstrap.config, Some(folder.path().join("shop")));
        assert_eq!(bootstrap.state_dir, Some(PathBuf::from("/var/lib/merlon")));
    }

    #[test]
    fn the_examples_are_read() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
        for (name, identity) in [
            ("proxy-web.yaml", "shop/web"),
            ("proxy-orders.yaml", "shop/orders"),
            ("proxy-payments.yaml", "shop/payments"),
        ] {
            let bootstrap = ProxyBootstrap::load(&examples.join(name)).unwrap();
            assert_eq!(bootstrap.identity.unwrap().to_string(), identity);
        }
        let gateway =
            ProxyBootstrap::load(&examples.join("standalone-gateway/proxy.yaml")).unwrap();
        assert!(gateway.standalone.unwrap().is_dir());
        let control_plane =
            ControlPlaneBootstrap::load(&examples.join("control-plane.yaml")).unwrap();
        assert!(control_plane.config.unwrap().is_dir());
    }
}
