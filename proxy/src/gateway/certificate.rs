//! Certificates of the gateway's listeners: pushed by the control plane, or read from files and reloaded when they
//! change. The client's SNI selects the certificate of a port.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use merlon_certs::{provider, time_provider};
use merlon_config::{live::Live, name::ServiceName};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::routes;
use crate::state::{gateway_ports::Files, shared::Shared};

/// How often certificate files are checked for changes.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

impl Files {
    fn load(&self) -> Result<Arc<CertifiedKey>, String> {
        let name =
            |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|error| name(&self.certificate, &error))?;
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| name(&self.key, &error))?;
        let pair = CertifiedKey::from_der(chain, key, provider());
        pair.map(Arc::new)
            .map_err(|error| name(&self.certificate, &error))
    }

    async fn changed_at(&self) -> [Option<SystemTime>; 2] {
        let at = async |path: &Path| {
            tokio::fs::metadata(path)
                .await
                .and_then(|file| file.modified())
                .ok()
        };
        [at(&self.certificate).await, at(&self.key).await]
    }
}

/// The certificates of one port.
#[derive(Debug)]
pub(crate) struct CertificateResolver {
    port: u16,
    shared: Arc<Shared>,
    files: Vec<(Files, Live<Arc<CertifiedKey>>)>,
}

impl CertificateResolver {
    /// # Errors
    /// A file that cannot be read, by name.
    pub(crate) fn open(
        port: u16,
        files: &[Files],
        shared: &Arc<Shared>,
    ) -> Result<Arc<Self>, String> {
        let files = files
            .iter()
            .map(|one| Ok((one.clone(), Live::new(one.load()?))));
        Ok(Arc::new(Self {
            port,
            shared: Arc::clone(shared),
            files: files.collect::<Result<_, String>>()?,
        }))
    }

    /// TLS 1.2 and 1.3 at the edge; HTTP/2 first.
    ///
    /// # Errors
    /// Only internal errors of the TLS library.
    pub(crate) fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, String> {
        let mut config =
            ServerConfig::builder_with_details(Arc::clone(provider()), time_provider())
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_no_client_auth()
                .with_cert_resolver(Arc::<Self>::clone(self));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// Reloads changed files. With invalid files the old certificate stays in use.
    pub(crate) async fn watch_files(&self) {
        let mut known = Vec::new();
        for (files, _) in &self.files {
            known.push(files.changed_at().await);
        }
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            for ((files, live), known) in self.files.iter().zip(&mut known) {
                let now = files.changed_at().await;
                if now == *known {
                    continue;
                }
                *known = now;
                match files.load() {
                    Ok(pair) => live.publish(pair),
                    Err(problem) => {
                        tracing::warn!(error = %problem, "gateway.certificate_rejected")
                    }
                }
            }
        }
    }
}

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let snapshot = self.shared.snapshot.load_full();
        let snapshot = snapshot.as_ref().as_ref()?;
        let gateway = snapshot.workload.gateway.as_ref()?;
        let listener = routes::listener(gateway, Some(self.port), hello.server_name())?;
        if let Some(secret) = listener.tls.as_ref()?.certificate_refs.first() {
            let name = ServiceName {
                namespace: gateway.name.namespace.clone(),
                name: secret.name.clone(),
            };
            return snapshot.certificates.get(&name).cloned();
        }
        let mut files = self.files.iter();
        let (_, live) = files.find(|(files, _)| files.host == listener.hostname)?;
        Some(Arc::clone(&live.load_full()))
    }
}
