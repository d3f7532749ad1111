//! Builds a [`ProxyConfig`] from arguments, environment and file, or reports all problems.

use std::{
    fs,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use merlon_api::JoinToken;
use merlon_config::{
    bootstrap::{AccessLogMode, ProxyBootstrap},
    name::{Namespace, ResourceName, ServiceName, WorkloadId},
    probe::Probes,
    report::{Problem, Report},
    unit::HumanDuration,
};
use url::Url;

use crate::{
    config::{DRAIN_TIMEOUT, IdentityFiles, PodToken, ProxyConfig, Source, Subject},
    limits::Limits,
};

/// Merlon's proxy: a workload's sidecar, or a gateway at the edge of the mesh.
///
/// Every flag can also be set as an environment variable or as a field of the `--config` file. A flag overrides the
/// environment, and the environment overrides the file.
#[derive(Debug, Default, Parser)]
#[command(name = "merlon-proxy", version, max_term_width = 100)]
pub struct Flags {
    /// YAML file with the same fields as these flags, in camelCase
    #[arg(long, env = "MERLON_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run without a control plane, with the resource files in this directory; changes apply live
    #[arg(long, env = "MERLON_STANDALONE", value_name = "DIR")]
    pub standalone: Option<PathBuf>,
    /// Identity of the workload that this proxy is the sidecar of
    #[arg(long, env = "MERLON_IDENTITY", value_name = "NAMESPACE/ACCOUNT")]
    pub identity: Option<WorkloadId>,
    /// Run as this Gateway
    #[arg(long, env = "MERLON_GATEWAY", value_name = "NAMESPACE/NAME")]
    pub gateway: Option<ServiceName>,
    /// Select one of several Workloads that have the same identity and different settings
    #[arg(long, env = "MERLON_WORKLOAD", value_name = "NAME")]
    pub workload: Option<ResourceName>,
    /// Address of the control plane
    #[arg(long, env = "MERLON_CONTROL_PLANE", value_name = "https://HOST:PORT")]
    pub control_plane: Option<Url>,
    /// Namespace of the control plane's identity [default: merlon-system]
    #[arg(long, env = "MERLON_ROOT_NAMESPACE", value_name = "NAMESPACE")]
    pub root_namespace: Option<Namespace>,
    /// One-time token for the first certificate (other users can read arguments: prefer the file or the environment)
    #[arg(
        long,
        env = "MERLON_JOIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub join_token: Option<String>,
    /// File that holds the join token
    #[arg(long, env = "MERLON_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// In a cluster, instead of a join token: file with the pod's projected token of the audience `merlon`, read at
    /// each use
    #[arg(long, env = "MERLON_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// With --token-file: file with the trust domain [default: `trust-domain` beside the trust bundle]
    #[arg(long, env = "MERLON_TRUST_DOMAIN_FILE", value_name = "FILE")]
    pub trust_domain_file: Option<PathBuf>,
    /// PEM file with the roots of the mesh, instead of the root that the join token pins
    #[arg(long, env = "MERLON_TRUST_BUNDLE", value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,
    /// With --standalone: PEM file with the certificate chain of this proxy
    #[arg(long, env = "MERLON_CERTIFICATE", value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// With --standalone: PEM file with the certificate's private key
    #[arg(long, env = "MERLON_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Directory where key, certificate and last snapshot are saved for a restart (mode 0700)
    #[arg(long, env = "MERLON_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory on a memory file system for the secrets that are granted to the program as files
    #[arg(long, env = "MERLON_SECRETS_DIR", value_name = "DIR")]
    pub secrets_dir: Option<PathBuf>,
    /// Listener for other proxies [default: 0.0.0.0:7561]
    #[arg(long, env = "MERLON_INBOUND", value_name = "ADDR")]
    pub inbound: Option<SocketAddr>,
    /// Listener for requests of the local program [default: 127.0.0.1:7560]
    #[arg(long, env = "MERLON_OUTBOUND", value_name = "ADDR")]
    pub outbound: Option<SocketAddr>,
    /// Accept connections that network rules, such as those of `merlon-intercept`, redirect to --inbound and --outbound
    #[arg(long, env = "MERLON_INTERCEPTION", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub interception: Option<bool>,
    /// Listener for /live, /ready and /metrics [default: 127.0.0.1:7562]
    #[arg(long, env = "MERLON_ADMIN", value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Listener for the kubelet's probes of the program; each is answered by making the same probe
    #[arg(long, env = "MERLON_PROBES_ADDRESS", value_name = "ADDR")]
    pub probes_address: Option<SocketAddr>,
    /// With --probes-address: the probes by path, as {"/probe/web/liveness": {"handler": {"httpGet": {"port": 8080}}}}
    #[arg(long, env = "MERLON_PROBES", value_name = "JSON", value_parser = probes)]
    pub probes: Option<JsonArg<Probes>>,
    /// Worker threads, 1 to 1024 [default: number of available CPUs]
    #[arg(long, env = "MERLON_WORKERS", value_name = "N")]
    pub workers: Option<u16>,
    /// Requests in the access log on standard output [default: all]
    #[arg(long, env = "MERLON_ACCESS_LOG", value_name = "WHICH")]
    pub access_log: Option<AccessLogArg>,
    /// How long open requests may take to finish during the shutdown [default: 30s]
    #[arg(long, env = "MERLON_DRAIN_TIMEOUT", value_name = "DURATION")]
    pub drain_timeout: Option<HumanDuration>,
    /// Write the bound addresses to this file, as JSON: `inbound`, `outbound`, `admin`, `probes`
    #[arg(long, value_name = "FILE")]
    pub addresses_file: Option<PathBuf>,
    /// For tests: JSON file with other bounds and time limits, the fields of [`Limits`] in camelCase
    #[cfg(debug_assertions)]
    #[arg(long, value_name = "FILE", hide = true)]
    pub test_limits: Option<PathBuf>,
    /// For tests: file with seconds that are added to the system clock, read again when it changes
    #[cfg(debug_assertions)]
    #[arg(long, value_name = "FILE", hide = true)]
    pub test_clock: Option<PathBuf>,
}

/// Requests in the access log.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AccessLogArg {
    /// All requests.
    All,
    /// Requests that Merlon refused.
    Refusals,
    /// No requests.
    Off,
}

impl Flags {
    /// The validated configuration.
    ///
    /// # Errors
    /// All problems of the file, or all missing and contradictory settings.
    pub fn into_config(self) -> Result<ProxyConfig, Report> {
        #[cfg(debug_assertions)]
        if let Some(file) = &self.test_clock {
            merlon_config::clock::follow(file)?;
        }
        #[cfg(debug_assertions)]
        let limits = self.test_limits.as_deref().map(test_limits).transpose()?;
        #[cfg(debug_assertions)]
        let limits = limits.unwrap_or_default();
        #[cfg(not(debug_assertions))]
        let limits = Limits::default();
        let file = match &self.config {
            Some(path) => ProxyBootstrap::load(path)?,
            None => ProxyBootstrap::default(),
        };
        let (start, workers) = (self.over(file), thread::available_parallelism());
        let mut report = Report::new();
        let subject = subject(&start, &mut report);
        let source = source(&start, &mut report);
        let workers = match start.workers {
            None => workers.unwrap_or(NonZeroUsize::MIN),
            Some(n @ 1..=1024) => NonZeroUsize::new(usize::from(n)).unwrap_or(NonZeroUsize::MIN),
            Some(n) => {
                report.push(wrong(format!("`--workers {n}` is not between 1 and 1024")));
                NonZeroUsize::MIN
            }
        };
        if start.probes.is_some() != start.probes_address.is_some() {
            report.push(wrong(
                "`--probes` and `--probes-address` must be set together",
            ));
        }
        let (Some(subject), Some(source)) = (subject, source) else {
            return Err(report);
        };
        if report.has_errors() {
            return Err(report);
        }
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(ProxyConfig {
            subject,
            source,
            state_dir: start.state_dir,
            secrets_dir: start.secrets_dir,
            inbound: start
                .inbound
                .unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 7561))),
            outbound: start.outbound.unwrap_or_else(|| local(7560)),
            interception: start.interception.unwrap_or_default(),
            admin: start.admin.unwrap_or_else(|| local(7562)),
            probes: start.probes_address.zip(start.probes),
            workers,
            access_log: start.access_log.unwrap_or_default(),
            drain_timeout: start
                .drain_timeout
                .map_or(DRAIN_TIMEOUT, |HumanDuration(time)| time),
            limits,
        })
    }

    /// Flags and environment override the file.
    fn over(self, file: ProxyBootstrap) -> ProxyBootstrap {
        let access_log = self.access_log.map(|which| match which {
            AccessLogArg::All => AccessLogMode::All,
            AccessLogArg::Refusals => AccessLogMode::Refusals,
            AccessLogArg::Off => AccessLogMode::Off,
        });
        // A token also overrides a token file of the file, and the other way round.
        let (join_token, join_token_file) = match (self.join_token, self.join_token_file) {
            (None, None) => (file.join_token, file.join_token_file),
            (token, path) => (token.map(Into::into), path),
        };
        let (standalone, control_plane) = match (self.standalone, self.control_plane) {
            (None, None) => (file.standalone, file.control_plane),
            given => given,
        };
        ProxyBootstrap {
            standalone,
            control_plane,
            join_token,
            join_token_file,
            access_log: access_log.or(file.access_log),
            identity: self.identity.or(file.identity),
            gateway: self.gateway.or(file.gateway),
            workload: self.workload.or(file.workload),
            root_namespace: self.root_namespace.or(file.root_namespace),
            token_file: self.token_file.or(file.token_file),
            trust_domain_file: self.trust_domain_file.or(file.trust_domain_file),
            trust_bundle: self.trust_bundle.or(file.trust_bundle),
            certificate: self.certificate.or(file.certificate),
            key: self.key.or(file.key),
            state_dir: self.state_dir.or(file.state_dir),
            secrets_dir: self.secrets_dir.or(file.secrets_dir),
            inbound: self.inbound.or(file.inbound),
            outbound: self.outbound.or(file.outbound),
            interception: self.interception.or(file.interception),
            admin: self.admin.or(file.admin),
            probes_address: self.probes_address.or(file.probes_address),
            probes: self.probes.map(|JsonArg(probes)| probes).or(file.probes),
            workers: self.workers.or(file.workers),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
        }
    }
}

/// Reads the file of `--test-limits`.
#[cfg(debug_assertions)]
fn test_limits(file: &Path) -> Result<Limits, Report> {
    let read = fs::read(file).map_err(|error| error.to_string());
    let limits = read.and_then(|text| {
        serde_json::from_slice(&text).map_err(|error| {
            format!("{error}; write for example {{\"inFlight\": 4, \"idleTimeout\": \"200ms\"}}")
        })
    });
    limits.map_err(|error| {
        let problem = Problem::error(file.display().to_string(), error);
        Report::from_iter([problem])
    })
}

/// An argument in JSON.
#[derive(Debug, Clone)]
pub struct JsonArg<T>(T);

fn probes(text: &str) -> Result<JsonArg<Probes>, String> {
    let probes = serde_json::from_str(text).map_err(|error| {
        format!(
            "{error}; write each probe under its path, for example \
             {{\"/probe/web/liveness\": {{\"handler\": {{\"tcpSocket\": {{\"port\": 8080}}}}, \"timeoutSeconds\": 1}}}}"
        )
    })?;
    Ok(JsonArg(probes))
}

fn wrong(message: impl AsRef<str>) -> Problem {
    Problem::error("command line", message)
}

fn subject(start: &ProxyBootstrap, report: &mut Report) -> Option<Subject> {
    match (&start.gateway, &start.identity) {
        (Some(gateway), identity) => {
            if start.workload.is_some() {
                report.push(wrong("`--workload` and `--gateway` exclude each other"));
            }
            Some(Subject::Gateway {
                name: gateway.clone(),
                identity: identity.clone().unwrap_or_else(|| WorkloadId {
                    namespace: gateway.namespace.clone(),
                    service_account: gateway.name.clone(),
                }),
            })
        }
        (None, Some(identity)) => Some(Subject::Sidecar {
            identity: identity.clone(),
            workload: start.workload.as_ref().map(ToString::to_string),
        }),
        (None, None) => {
            report.push(wrong("the identity of the proxy is missing").hint(
                "set `--identity shop/orders` for a sidecar, or `--gateway shop/edge` for a gateway",
            ));
            None
        }
    }
}

fn source(start: &ProxyBootstrap, report: &mut Report) -> Option<Source> {
    match (&start.standalone, &start.control_plane) {
        (Some(_), Some(_)) => {
            report.push(wrong(
                "`--standalone` and `--control-plane` exclude each other",
            ));
            None
        }
        (None, None) => {
            report.push(
                wrong("the source of the state is missing").hint(
                    "set `--control-plane https://host:7564`, or `--standalone DIR` to run without a control plane",
                ),
            );
            None
        }
        (Some(directory), None) => Some(Source::Standalone {
            directory: directory.clone(),
            identity: identity_files(start, report)?,
        }),
        (None, Some(address)) => control_plane(start, address, report),
    }
}

#[expect(
    clippy::option_option,
    reason = "outer: whether the flags are valid; inner: whether there is an identity"
)]
fn identity_files(start: &ProxyBootstrap, report: &mut Report) -> Option<Option<IdentityFiles>> {
    match (&start.certificate, &start.key, &start.trust_bundle) {
        (None, None, None) => Some(None),
        (Some(certificate), Some(key), Some(trust_bundle)) => Some(Some(IdentityFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            trust_bundle: trust_bundle.clone(),
        })),
        _ => {
            report.push(wrong(
                "`--certificate`, `--key` and `--trust-bundle` must be set together in standalone mode",
            ));
            None
        }
    }
}

fn control_plane(start: &ProxyBootstrap, address: &Url, report: &mut Report) -> Option<Source> {
    if address.scheme() != "https" || address.host().is_none() {
        report.push(
            wrong(format!("`{address}` is not a valid control plane address"))
                .hint("write it as `https://host:7564`"),
        );
    }
    if start.certificate.is_some() || start.key.is_some() {
        report.push(wrong(
            "`--certificate` and `--key` are valid with `--standalone` only: the control plane issues the certificate",
        ));
    }
    let root_namespace = match &start.root_namespace {
        Some(namespace) => namespace.clone(),
        None => "merlon-system".parse().ok()?,
    };
    let join_token = match (&start.join_token, &start.join_token_file) {
        (Some(token), _) => Some(parse_token(&reveal(token), "--join-token", report)?),
        (None, Some(path)) => token_file(path, start.state_dir.as_deref(), report)?,
        (None, None) => None,
    };
    let pod_token = pod_token(start, report);
    if join_token.is_none() && start.token_file.is_none() && start.state_dir.is_none() {
        report.push(
            wrong("a join token or a state directory is required to get a certificate").hint(
                "create a join token with `merlon token create`, and set `--join-token-file`",
            ),
        );
    }
    Some(Source::ControlPlane {
        address: address.clone(),
        root_namespace,
        join_token,
        pod_token,
        trust_bundle: start.trust_bundle.clone(),
    })
}

/// The pod's credentials, if `--token-file` is set.
fn pod_token(start: &ProxyBootstrap, report: &mut Report) -> Option<PodToken> {
    let Some(token) = start.token_file.clone() else {
        if start.trust_domain_file.is_some() {
            report.push(wrong(
                "`--trust-domain-file` is valid with `--token-file` only",
            ));
        }
        return None;
    };
    if start.join_token.is_some() || start.join_token_file.is_some() {
        report.push(wrong("a join token and `--token-file` exclude each other"));
    }
    let Some(trust_bundle) = start.trust_bundle.clone() else {
        report.push(
            wrong("`--token-file` requires `--trust-bundle`: a pod's token does not pin a root")
                .hint("mount the ConfigMap `merlon-trust-bundle`, and set `--trust-bundle FILE`"),
        );
        return None;
    };
    let beside = trust_bundle.with_file_name("trust-domain");
    Some(PodToken {
        token,
        trust_bundle,
        trust_domain: start.trust_domain_file.clone().unwrap_or(beside),
    })
}

fn reveal(token: &secrecy::SecretString) -> zeroize::Zeroizing<String> {
    use secrecy::ExposeSecret;
    token.expose_secret().to_owned().into()
}

fn parse_token(text: &str, from: &str, report: &mut Report) -> Option<JoinToken> {
    let token = text.parse();
    token
        .map_err(|error| report.push(wrong(format!("{from}: {error}"))))
        .ok()
}

/// A token is valid for one use, so its file may be missing at a restart, when the state directory has the certificate.
#[expect(
    clippy::option_option,
    reason = "outer: whether the file is valid; inner: whether there is a token"
)]
fn token_file(
    path: &Path,
    state_dir: Option<&Path>,
    report: &mut Report,
) -> Option<Option<JoinToken>> {
    match fs::read_to_string(path).map(zeroize::Zeroizing::new) {
        Ok(text) => parse_token(&text, &path.display().to_string(), report).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && state_dir.is_some() => {
            Some(None)
        }
        Err(error) => {
            report.push(wrong(format!(
                "cannot read the join token file `{}`: {error}",
                path.display()
            )));
            None
        }
    }
}

/// For `app::start` in tests and demos.
impl ProxyConfig {
    /// One worker, and every listener on port 0 of loopback.
    pub fn local(subject: Subject, source: Source) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            subject,
            source,
            state_dir: None,
            secrets_dir: None,
            inbound: any,
            outbound: any,
            interception: false,
            admin: any,
            probes: None,
            workers: NonZeroUsize::MIN,
            access_log: AccessLogMode::All,
            drain_timeout: Duration::from_secs(5),
            limits: Limits::default(),
        }
    }
}

#[cfg(test)]
mod tests;
