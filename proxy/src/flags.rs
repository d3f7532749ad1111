//! Arguments, environment and file become a [`ProxyConfig`], or a report of all that is wrong.

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

use crate::config::{DRAIN_TIMEOUT, IdentityFiles, PodToken, ProxyConfig, Source, Subject};

/// Merlon's proxy: a sidecar beside a workload, or a gateway at the edge.
///
/// Every flag may also be an environment variable, or a field of the file that `--config` names; a flag beats the
/// environment, and the environment beats the file.
#[derive(Debug, Default, Parser)]
#[command(name = "merlon-proxy", version, max_term_width = 100)]
pub struct Flags {
    /// YAML file with the same fields as these flags, in camelCase
    #[arg(long, env = "MERLON_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run without a control plane, from the resource files in this directory; changes are taken over live
    #[arg(long, env = "MERLON_STANDALONE", value_name = "DIR")]
    pub standalone: Option<PathBuf>,
    /// Whom the workload beside this proxy runs as
    #[arg(long, env = "MERLON_IDENTITY", value_name = "NAMESPACE/ACCOUNT")]
    pub identity: Option<WorkloadId>,
    /// The Gateway that this proxy is
    #[arg(long, env = "MERLON_GATEWAY", value_name = "NAMESPACE/NAME")]
    pub gateway: Option<ServiceName>,
    /// Which Workload, where several with different settings run as the same identity
    #[arg(long, env = "MERLON_WORKLOAD", value_name = "NAME")]
    pub workload: Option<ResourceName>,
    /// Address of the control plane
    #[arg(long, env = "MERLON_CONTROL_PLANE", value_name = "https://HOST:PORT")]
    pub control_plane: Option<Url>,
    /// The namespace of the control plane's identity [default: merlon-system]
    #[arg(long, env = "MERLON_ROOT_NAMESPACE", value_name = "NAMESPACE")]
    pub root_namespace: Option<Namespace>,
    /// One-time token for the first certificate (others can read arguments: prefer the file or the environment)
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
    /// PEM file with the mesh's roots, instead of the one that the join token pins
    #[arg(long, env = "MERLON_TRUST_BUNDLE", value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,
    /// With --standalone: PEM file with the own certificate chain
    #[arg(long, env = "MERLON_CERTIFICATE", value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// With --standalone: PEM file with the certificate's private key
    #[arg(long, env = "MERLON_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Where key, certificate and last snapshot are kept over a restart; only its owner may enter it (0700)
    #[arg(long, env = "MERLON_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where the program finds the secrets that it was granted as files; a memory file system
    #[arg(long, env = "MERLON_SECRETS_DIR", value_name = "DIR")]
    pub secrets_dir: Option<PathBuf>,
    /// Where other proxies reach this one [default: 0.0.0.0:7561]
    #[arg(long, env = "MERLON_INBOUND", value_name = "ADDR")]
    pub inbound: Option<SocketAddr>,
    /// Where the program finds services [default: 127.0.0.1:7560]
    #[arg(long, env = "MERLON_OUTBOUND", value_name = "ADDR")]
    pub outbound: Option<SocketAddr>,
    /// Rules, as those of `merlon-intercept`, lead connections to --inbound and --outbound
    #[arg(long, env = "MERLON_INTERCEPTION", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub interception: Option<bool>,
    /// /live, /ready and /metrics [default: 127.0.0.1:7562]
    #[arg(long, env = "MERLON_ADMIN", value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Where a Kubernetes node's probes of the program are answered, each by the very same probe at the program
    #[arg(long, env = "MERLON_PROBES_ADDRESS", value_name = "ADDR")]
    pub probes_address: Option<SocketAddr>,
    /// With --probes-address: those probes, by path, as {"/probe/web/liveness": {"handler": {"httpGet": {"port": 8080}}}}
    #[arg(long, env = "MERLON_PROBES", value_name = "JSON", value_parser = probes)]
    pub probes: Option<Given<Probes>>,
    /// Threads that carry requests, 1 to 1024 [default: the CPUs that may be used]
    #[arg(long, env = "MERLON_WORKERS", value_name = "N")]
    pub workers: Option<u16>,
    /// Which requests are logged on standard output [default: all]
    #[arg(long, env = "MERLON_ACCESS_LOG", value_name = "WHICH")]
    pub access_log: Option<Logged>,
    /// How long open requests may take to finish at the end [default: 30s]
    #[arg(long, env = "MERLON_DRAIN_TIMEOUT", value_name = "DURATION")]
    pub drain_timeout: Option<HumanDuration>,
    /// File that is written with the addresses that were bound, as JSON: `inbound`, `outbound`, `admin`
    #[arg(long, value_name = "FILE")]
    pub addresses_file: Option<PathBuf>,
}

/// Which requests are logged.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Logged {
    /// Each one.
    All,
    /// Those that Merlon refused.
    Refusals,
    /// None.
    Off,
}

impl Flags {
    /// The checked configuration.
    ///
    /// # Errors
    /// Everything that is wrong in the file, or everything that is missing or contradictory.
    pub fn into_config(self) -> Result<ProxyConfig, Report> {
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
                report.push(wrong(format!("`--workers {n}`: there are 1 to 1024")));
                NonZeroUsize::MIN
            }
        };
        if start.probes.is_some() != start.probes_address.is_some() {
            report.push(wrong("`--probes` and `--probes-address` belong together"));
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
        })
    }

    /// What was given here beats what stands in the file.
    fn over(self, file: ProxyBootstrap) -> ProxyBootstrap {
        let access_log = self.access_log.map(|which| match which {
            Logged::All => AccessLogMode::All,
            Logged::Refusals => AccessLogMode::Refusals,
            Logged::Off => AccessLogMode::Off,
        });
        // A token given here also beats a token file there, and the other way round.
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
            probes: self.probes.map(|Given(probes)| probes).or(file.probes),
            workers: self.workers.or(file.workers),
            drain_timeout: self.drain_timeout.or(file.drain_timeout),
        }
    }
}

/// What was given as JSON text.
#[derive(Debug, Clone)]
pub struct Given<T>(T);

fn probes(text: &str) -> Result<Given<Probes>, String> {
    let probes = serde_json::from_str(text).map_err(|error| {
        format!(
            "{error}; write each probe under its path, as \
             {{\"/probe/web/liveness\": {{\"handler\": {{\"tcpSocket\": {{\"port\": 8080}}}}, \"timeoutSeconds\": 1}}}}"
        )
    })?;
    Ok(Given(probes))
}

fn wrong(message: impl AsRef<str>) -> Problem {
    Problem::error("command line", message)
}

fn subject(start: &ProxyBootstrap, report: &mut Report) -> Option<Subject> {
    match (&start.gateway, &start.identity) {
        (Some(gateway), identity) => {
            if start.workload.is_some() {
                report.push(wrong(
                    "a proxy stands beside a `--workload` or is a `--gateway`, not both",
                ));
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
            report.push(wrong("it is not said whose proxy this is").hint(
                "`--identity shop/orders` beside a workload, `--gateway shop/edge` at the edge",
            ));
            None
        }
    }
}

fn source(start: &ProxyBootstrap, report: &mut Report) -> Option<Source> {
    match (&start.standalone, &start.control_plane) {
        (Some(_), Some(_)) => {
            report.push(wrong(
                "a proxy is `--standalone` or follows a `--control-plane`, not both",
            ));
            None
        }
        (None, None) => {
            report.push(
                wrong("it is not said where the state comes from").hint(
                    "`--control-plane https://host:7564`, or `--standalone DIR` without a control plane",
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
    reason = "outer: whether it is right; inner: whether there is an identity"
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
                "`--certificate`, `--key` and `--trust-bundle` belong together in standalone mode",
            ));
            None
        }
    }
}

fn control_plane(start: &ProxyBootstrap, address: &Url, report: &mut Report) -> Option<Source> {
    if address.scheme() != "https" || address.host().is_none() {
        report.push(
            wrong(format!("`{address}` is not the address of a control plane"))
                .hint("write it as `https://host:7564`"),
        );
    }
    if start.certificate.is_some() || start.key.is_some() {
        report.push(wrong(
            "the control plane issues this proxy's certificate: `--certificate` and `--key` are only for `--standalone`",
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
            wrong("without a join token and without a state directory there is no way to a certificate")
                .hint("get one by `merlon certs join-token`, and give it by `--join-token-file`"),
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

/// What proves a pod, if it is to be proved so.
fn pod_token(start: &ProxyBootstrap, report: &mut Report) -> Option<PodToken> {
    let Some(token) = start.token_file.clone() else {
        if start.trust_domain_file.is_some() {
            report.push(wrong("`--trust-domain-file` is for `--token-file` only"));
        }
        return None;
    };
    if start.join_token.is_some() || start.join_token_file.is_some() {
        report.push(wrong(
            "a certificate is asked for by a join token or by the pod's `--token-file`, not by both",
        ));
    }
    let Some(trust_bundle) = start.trust_bundle.clone() else {
        report.push(
            wrong("a pod's token pins no root, so `--token-file` needs the mesh's roots")
                .hint("mount the ConfigMap `merlon-trust-bundle`, and write `--trust-bundle FILE`"),
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

/// The token is good for one use; so its file may be gone at a restart, when the state directory has the certificate.
#[expect(
    clippy::option_option,
    reason = "outer: whether it is right; inner: whether there is a token"
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
                "the join token file `{}`: {error}",
                path.display()
            )));
            None
        }
    }
}

/// For `app::start` in tests and demos: everything on loopback, on ports that the system chooses.
impl ProxyConfig {
    /// A proxy for `subject` with state from `source`, on port 0 of loopback everywhere, with one worker.
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
        }
    }
}

#[cfg(test)]
mod tests;
