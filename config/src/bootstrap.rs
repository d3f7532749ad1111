//! What a process is told at its start: a small YAML file of the same fields as its flags.
//!
//! A flag beats the environment and the environment beats the file, field by field; hence every field may be left out.

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
    unit::Span,
};

/// The start of a `merlon-proxy`. Relative paths are meant from the file's folder.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyBootstrap {
    /// Runs without a control plane, from the resource files in this directory.
    pub standalone: Option<PathBuf>,
    /// Whom the workload that this proxy stands beside runs as: `namespace/service-account`, as `shop/orders`.
    pub identity: Option<WorkloadId>,
    /// The Gateway that this proxy is, as `shop/edge`. It runs as `shop/edge`, or as `identity` when that is given.
    pub gateway: Option<ServiceName>,
    /// Which Workload this proxy stands beside, by name, where several with different settings run as `identity`.
    pub workload: Option<ResourceName>,
    /// Where the control plane is, as `https://127.0.0.1:7564`.
    pub control_plane: Option<Url>,
    /// The namespace in which the control plane's identity is. Default: `merlon-system`.
    pub root_namespace: Option<Namespace>,
    /// The join token for the first certificate. A file (`joinTokenFile`) keeps it apart from what is shown around.
    #[schemars(with = "Option<String>")]
    pub join_token: Option<SecretString>,
    /// A file that holds the join token.
    pub join_token_file: Option<PathBuf>,
    /// In a cluster, instead of a join token: a file that holds the pod's projected token of the audience `merlon`.
    pub token_file: Option<PathBuf>,
    /// With `tokenFile`: a file that holds the trust domain. Default: `trust-domain` beside `trustBundle`.
    pub trust_domain_file: Option<PathBuf>,
    /// PEM file with the mesh's roots; left out: the root that the join token pins.
    pub trust_bundle: Option<PathBuf>,
    /// PEM file with this proxy's certificate chain, leaf first. Only with `standalone`, `key` and `trustBundle`.
    pub certificate: Option<PathBuf>,
    /// PEM file with the certificate's private key (PKCS#8). Only with `certificate`.
    pub key: Option<PathBuf>,
    /// Where the key, the certificate and the last snapshot are kept over a restart. Left out: nowhere.
    pub state_dir: Option<PathBuf>,
    /// Where the program finds the secrets that it was granted as files; a memory file system. Left out: nowhere.
    pub secrets_dir: Option<PathBuf>,
    /// Where other proxies reach this one. Default: `0.0.0.0:7561`.
    #[schemars(with = "Option<String>")]
    pub inbound: Option<SocketAddr>,
    /// Where the program finds services. Default: `127.0.0.1:7560`.
    #[schemars(with = "Option<String>")]
    pub outbound: Option<SocketAddr>,
    /// Whether rules, as those of `merlon-intercept`, lead connections to `inbound` and `outbound` that were meant to go
    /// elsewhere. Default: `false`.
    pub interception: Option<bool>,
    /// `/live`, `/ready`, `/metrics`. Default: `127.0.0.1:7562`.
    #[schemars(with = "Option<String>")]
    pub admin: Option<SocketAddr>,
    /// Where a Kubernetes node's probes of the program are answered, each by the very same probe at the program. Only with
    /// `probes`; left out: nowhere.
    #[schemars(with = "Option<String>")]
    pub probes_address: Option<SocketAddr>,
    /// Those probes, by the path at `probesAddress`.
    pub probes: Option<Probes>,
    /// Threads that carry requests. 1–1024; default: the CPUs that may be used.
    pub workers: Option<u16>,
    /// Which requests are logged. Default: `all`.
    pub access_log: Option<AccessLogMode>,
    /// How long open requests may take to finish at the end. Default: `30s`.
    pub drain_timeout: Option<Span>,
}

/// Which requests are logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, serde::Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AccessLogMode {
    /// Each one.
    #[default]
    All,
    /// Those that Merlon refused.
    Refusals,
    /// None.
    Off,
}

/// The start of a `merlon-control-plane`. Relative paths are meant from the file's folder.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlPlaneBootstrap {
    /// The directory of resource files.
    pub config: Option<PathBuf>,
    /// Whether resources are those of a Kubernetes cluster, instead of `config`. Default: false.
    pub kubernetes: Option<bool>,
    /// With `kubernetes`: the name of this replica, which is its pod's. Default: the host's name.
    pub replica: Option<String>,
    /// With `kubernetes`: the namespace of Merlon's own objects. Default: `merlon-system`.
    pub namespace: Option<String>,
    /// With `kubernetes`: whether Gateway API is served too. Default: false.
    pub gateway_api: Option<bool>,
    /// With `kubernetes`: file of the injector's settings; with it the admission webhooks are served.
    pub injection: Option<PathBuf>,
    /// With `injection`: where the API server calls the admission webhooks. Default: `0.0.0.0:7566`.
    #[schemars(with = "Option<String>")]
    pub webhook: Option<SocketAddr>,
    /// Where proxies reach it. Default: `0.0.0.0:7564`.
    #[schemars(with = "Option<String>")]
    pub listen: Option<SocketAddr>,
    /// The Unix socket for administration. Default: `admin.sock` in `stateDir`.
    pub admin_socket: Option<PathBuf>,
    /// `/live`, `/ready`, `/metrics`. Default: `127.0.0.1:7565`.
    #[schemars(with = "Option<String>")]
    pub admin: Option<SocketAddr>,
    /// Where the embedded CA, join tokens and history are kept.
    pub state_dir: Option<PathBuf>,
}

impl ProxyBootstrap {
    /// Reads a bootstrap file.
    ///
    /// # Errors
    /// Everything that is wrong in it.
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
        from_folder_of(file, paths);
        Ok(this)
    }

    /// The same from a text in memory; paths stay as they are.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn parse(file: &str, text: &str) -> Result<Self, Report> {
        parse(file, text)
    }
}

impl ControlPlaneBootstrap {
    /// Reads a bootstrap file.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn load(file: &Path) -> Result<Self, Report> {
        let mut this: Self = load(file)?;
        let paths = [
            &mut this.config,
            &mut this.injection,
            &mut this.admin_socket,
            &mut this.state_dir,
        ];
        from_folder_of(file, paths);
        Ok(this)
    }

    /// The same from a text in memory; paths stay as they are.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn parse(file: &str, text: &str) -> Result<Self, Report> {
        parse(file, text)
    }
}

fn from_folder_of<const N: usize>(file: &Path, paths: [&mut Option<PathBuf>; N]) {
    let Some(folder) = file.parent() else {
        return;
    };
    for path in paths.into_iter().flatten() {
        // Joining an absolute path gives that path.
        *path = folder.join(&path);
    }
}

/// What serde cannot know: fields that do not go together, and ranges.
pub(crate) trait Sensible {
    /// Each field that makes no sense, with why.
    fn problems(&self) -> Vec<(&'static str, &'static str)>;
}

impl Sensible for ProxyBootstrap {
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
            "a proxy stands beside a `workload` or is a `gateway`, not both",
        );
        when(
            self.certificate.is_some() != self.key.is_some(),
            if self.key.is_some() {
                "key"
            } else {
                "certificate"
            },
            "`certificate` and `key` belong together",
        );
        when(
            self.certificate.is_some() && self.control_plane.is_some(),
            "certificate",
            "the control plane issues this proxy's certificate: `certificate` is only for `standalone`",
        );
        when(
            self.standalone.is_some() && self.control_plane.is_some(),
            "controlPlane",
            "a proxy is `standalone` or follows a `controlPlane`, not both",
        );
        when(
            self.join_token.is_some() && self.join_token_file.is_some(),
            "joinTokenFile",
            "the join token stands here (`joinToken`) or in a file (`joinTokenFile`), not both",
        );
        when(
            self.control_plane
                .as_ref()
                .is_some_and(|url| url.scheme() != "https"),
            "controlPlane",
            "the control plane is reached by `https` only",
        );
        when(
            self.probes.is_some() != self.probes_address.is_some(),
            if self.probes.is_some() {
                "probes"
            } else {
                "probesAddress"
            },
            "`probes` and `probesAddress` belong together",
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

impl Sensible for ControlPlaneBootstrap {
    fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let both = self.kubernetes == Some(true) && self.config.is_some();
        let message =
            "resources come from a cluster (`kubernetes`) or from files (`config`), not both";
        both.then_some(("kubernetes", message))
            .into_iter()
            .collect()
    }
}

pub(crate) fn load<T: DeserializeOwned + Default + Sensible>(file: &Path) -> Result<T, Report> {
    let name = file.display().to_string();
    match text_of(file) {
        Ok(text) => parse(&name, &text),
        Err(message) => Err(Report::from_iter([Problem::error(name, message)])),
    }
}

pub(crate) fn parse<T: DeserializeOwned + Default + Sensible>(
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
            Err(misfits) => {
                for misfit in misfits {
                    error(misfit.at, &misfit.path, &misfit.message, misfit.hint);
                }
                T::default()
            }
        },
        [_, second, ..] => {
            let message = "a second document: a bootstrap file has only one";
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
    fn an_empty_file_says_nothing_and_is_right() {
        let bootstrap = ProxyBootstrap::parse("proxy.yaml", "# nothing yet\n").unwrap();
        assert!(bootstrap.identity.is_none());
    }

    #[test]
    fn everything_wrong_in_a_bootstrap_file_is_told_at_once() {
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
    fn fields_that_exclude_each_other_are_told() {
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
    fn paths_are_meant_from_the_folder_of_the_file() {
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
