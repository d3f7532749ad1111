//! `--vault`: certificates from a real OpenBao or Vault.

use std::{
    env,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::rand;
use merlon_config::causes::chain;
use merlon_issuer::vault_setup::{self, Prepared};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    children::Children, folder::private_folder, resources::TRUST_DOMAIN, server::write_atomically,
    wire,
};
use crate::failure::Failure;

/// A server with a PKI for the demo.
#[derive(Debug)]
pub(crate) struct Vault {
    address: Url,
    /// The file with the token of the control plane, which may only sign and read roots.
    token_file: PathBuf,
    prepared: Prepared,
    administrator: SecretString,
    /// Whether the demo started the server.
    own: bool,
}

impl Vault {
    /// Uses the server at `VAULT_ADDR`, or starts one, and sets up its PKI.
    pub(crate) async fn prepare(folder: &Path, children: &mut Children) -> Result<Self, Failure> {
        let (address, administrator, own) = match setting("VAULT_ADDR", "BAO_ADDR") {
            Some(address) => {
                let token = setting("VAULT_TOKEN", "BAO_TOKEN").ok_or_else(|| {
                    Failure::usage("VAULT_ADDR is set but VAULT_TOKEN is not")
                        .hint("the demo needs a token that may create mounts, roles and policies for its own PKI")
                })?;
                let address = address
                    .parse()
                    .map_err(|error| Failure::usage(format!("VAULT_ADDR `{address}`: {error}")))?;
                (address, SecretString::from(token), false)
            }
            None => {
                let (address, token) = start(children).await?;
                (address, token.into(), true)
            }
        };
        // Unique names in a server of the user.
        let prefix = match own {
            true => "pki".to_owned(),
            false => format!("merlon-demo-{}", random(4)?),
        };
        let domain = TRUST_DOMAIN
            .parse()
            .map_err(|error| Failure::runtime(format!("{error}")))?;
        let prepared = vault_setup::prepare(&address, &administrator, &domain, &prefix).await;
        let prepared = prepared.map_err(|error| {
            Failure::runtime(chain(&error))
                .hint("the token must be allowed to create mounts, roles and policies")
        })?;
        let secrets = folder.join("vault");
        private_folder(&secrets)?;
        let token_file = secrets.join("control-plane-token");
        write_atomically(&token_file, prepared.token.expose_secret())?;
        Ok(Self {
            address,
            token_file,
            prepared,
            administrator,
            own,
        })
    }

    /// The `issuer` of `MeshConfig.spec.certificates`, as YAML lines.
    pub(crate) fn resource(&self) -> String {
        format!(
            "    issuer:
      vault:
        address: {}
        tokenFile: {}
        pkiMount: {}
        rootMount: {}
        role: {}
",
            self.address,
            self.token_file.display(),
            self.prepared.pki_mount,
            self.prepared.root_mount,
            self.prepared.role,
        )
    }

    /// Removes the PKI of the demo from a server of the user.
    pub(crate) async fn clean_up(&self) -> Result<(), Failure> {
        if self.own {
            return Ok(());
        }
        let removed = vault_setup::remove(&self.address, &self.administrator, &self.prepared).await;
        removed.map_err(|error| {
            Failure::runtime(format!(
                "cannot remove the demo's mounts from Vault: {}",
                chain(&error)
            ))
            .hint(format!(
                "remove the mounts `{}` and `{}` manually",
                self.prepared.pki_mount, self.prepared.root_mount
            ))
        })
    }

    /// The name of this issuer in the report.
    pub(crate) fn kind(&self) -> &'static str {
        if self.own { "openbao" } else { "vault" }
    }

    pub(crate) fn describe(&self) -> String {
        let what = if self.own {
            "its own OpenBao at"
        } else {
            "the server at"
        };
        format!(
            "{what} {} (mount {}, least-privilege token)",
            self.address, self.prepared.pki_mount
        )
    }
}

/// Starts `bao` in development mode: in memory, and stopped with the demo.
async fn start(children: &mut Children) -> Result<(Url, String), Failure> {
    const NAME: &str = "openbao";
    let binary = find_binary().ok_or_else(|| {
        Failure::usage("no OpenBao found: VAULT_ADDR is not set and there is no `bao` program")
            .hint("`make tools` installs one in `.tools/bin`; or add `bao` (or `vault`) to PATH")
    })?;
    let token = random(16)?;
    let address = free_address()?;
    let arguments = ["server", "-dev", "-dev-no-store-token"].map(OsString::from);
    let listen = OsString::from(format!("-dev-listen-address={address}"));
    let environment = [
        ("BAO_DEV_ROOT_TOKEN_ID", token.as_str()),
        ("VAULT_DEV_ROOT_TOKEN_ID", token.as_str()),
    ];
    children.start(
        NAME,
        &binary,
        arguments.into_iter().chain([listen]),
        &environment,
    )?;
    let started = Instant::now();
    loop {
        let request = wire::request("GET", "openbao", "/v1/sys/health", None, None);
        if wire::send(address, request)
            .await
            .is_ok_and(|reply| reply.status == 200)
        {
            break;
        }
        if let Some(exit) = children.unexpected_exit() {
            return Err(Failure::runtime(exit.to_string()));
        }
        if started.elapsed() > Duration::from_secs(60) {
            return Err(Failure::runtime(format!(
                "OpenBao does not answer at {address}; see its log {}",
                children.log(NAME).display()
            )));
        }
        sleep(Duration::from_millis(50)).await;
    }
    let url = format!("http://{address}").parse();
    Ok((
        url.map_err(|error| Failure::runtime(format!("{address}: {error}")))?,
        token,
    ))
}

/// Looks in PATH and in `.tools/bin` (where `make tools` installs it) of the working directory and of the checkout in
/// which this program was built.
fn find_binary() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.push(PathBuf::from(".tools/bin"));
    if let Ok(own) = env::current_exe() {
        folders.extend(own.ancestors().map(|folder| folder.join(".tools/bin")));
    }
    let candidates = folders
        .iter()
        .flat_map(|folder| ["bao", "vault"].map(|name| folder.join(name)));
    let mut candidates = candidates.filter_map(|path| path.canonicalize().ok());
    candidates.find(|path| path.is_file())
}

fn setting(name: &str, other: &str) -> Option<String> {
    let found = [name, other]
        .into_iter()
        .find_map(|name| env::var(name).ok());
    found.filter(|text| !text.is_empty())
}

/// OpenBao cannot choose a free port and report it, so this finds one for it.
fn free_address() -> Result<SocketAddr, Failure> {
    let bound =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound.map_err(|error| Failure::runtime(format!("no free port on 127.0.0.1: {error}")))
}

/// This many random bytes, in hexadecimal.
fn random(bytes: usize) -> Result<String, Failure> {
    let mut random = vec![0; bytes];
    rand::fill(&mut random)
        .map_err(|_| Failure::runtime("the system provides no random numbers"))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
