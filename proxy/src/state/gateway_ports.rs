//! The ports of a Gateway, as data.

use std::path::PathBuf;

use merlon_config::snapshot::GatewayState;

/// One port, with the settings of its socket. While these do not change, the socket stays open, also when routes, hosts
/// or pushed certificates change.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) port: u16,
    pub(crate) secure: bool,
    pub(crate) files: Vec<Files>,
    /// Names of its listeners, for messages.
    pub(crate) names: String,
}

impl PartialEq for Port {
    fn eq(&self, other: &Self) -> bool {
        (self.port, self.secure, &self.files) == (other.port, other.secure, &other.files)
    }
}

impl Port {
    /// All ports of a gateway.
    pub(crate) fn all(gateway: &GatewayState) -> Vec<Self> {
        let mut ports: Vec<Self> = Vec::new();
        for listener in &gateway.listeners {
            let name = format!("`{}`", listener.name);
            let known = ports.iter().position(|port| port.port == listener.port);
            if known.is_none() {
                ports.push(Self {
                    port: listener.port,
                    secure: listener.protocol.eq_ignore_ascii_case("HTTPS"),
                    files: Vec::new(),
                    names: String::new(),
                });
            }
            let index = known.unwrap_or(ports.len() - 1);
            let Some(port) = ports.get_mut(index) else {
                continue;
            };
            if !port.names.is_empty() {
                port.names.push_str(", ");
            }
            port.names.push_str(&name);
            if let Some(tls) = &listener.tls
                && let (Some(certificate), Some(key)) = (&tls.certificate_file, &tls.key_file)
            {
                port.files.push(Files {
                    host: listener.hostname.clone(),
                    certificate: certificate.clone(),
                    key: key.clone(),
                });
            }
        }
        ports
    }
}

/// The certificate files of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    /// The listener's host.
    pub(crate) host: Option<String>,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}
