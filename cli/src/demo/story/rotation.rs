//! Rotation of keys and certificates under traffic.

use std::{cell::Cell, sync::Arc, time::Duration};

use futures_util::future::join_all;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde_json::json;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    super::{
        mesh::{Mesh, Workload},
        report::Outcome,
        wire::{self, Connection, request},
    },
    calls::ORDERS,
    shared::Shared,
};
use crate::failure::Failure;

pub(super) async fn rotate(mesh: &Mesh<'_>, shared: &Shared) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::expecting(
        "the sidecars of web and orders use new certificates, and no request is lost",
    );
    let traffic = Traffic::default();
    let rotating = async {
        let rotated = rotate_both(mesh, &traffic).await;
        traffic.end.set(true);
        rotated
    };
    let (rotated, ..) = tokio::join!(
        rotating,
        join_all((0..6).map(|index| traffic.flow(mesh, shared, index)))
    );
    let (sent, lost) = (traffic.answered.get(), traffic.lost.take());
    outcome.fact("requests", sent);
    outcome.fact("lost", lost.len());
    match rotated {
        Ok(rotated) => {
            outcome.observed(format!(
                "2 certificates replaced during {sent} requests, {} of them lost",
                lost.len()
            ));
            for RotatedCertificate {
                name,
                old,
                new,
                during,
            } in rotated
            {
                outcome.must(old != new, || {
                    format!("the sidecar of {name} still uses {old}")
                });
                outcome.note(format!(
                    "{name}: serial {} before, {} after",
                    short(&old),
                    short(&new)
                ));
                outcome.fact(
                    name,
                    json!({"old_serial": old, "new_serial": new, "requests_meanwhile": during}),
                );
            }
            outcome.note("read from TLS handshakes with each sidecar; the keys are new, too");
        }
        Err(failure) => {
            outcome.observed("no new certificates");
            outcome.problem(failure.message());
        }
    }
    outcome.must(sent > 50, || format!("only {sent} requests were sent"));
    if let Some(first) = lost.first() {
        outcome.problem(format!(
            "{} requests were lost, the first: {first}",
            lost.len()
        ));
    }
    Ok(outcome)
}

struct RotatedCertificate {
    name: &'static str,
    old: String,
    new: String,
    /// Number of requests answered during the rotation.
    during: u64,
}

async fn rotate_both(
    mesh: &Mesh<'_>,
    traffic: &Traffic,
) -> Result<Vec<RotatedCertificate>, Failure> {
    let proxies = mesh.proxies().await?;
    let mut all = Vec::new();
    for workload in [&mesh.orders, &mesh.web] {
        // Traffic before, between and after the rotations.
        traffic.more(100).await;
        let Some(proxy) = proxies
            .iter()
            .find(|proxy| proxy.identity == workload.identity())
        else {
            return Err(Failure::runtime(format!(
                "the sidecar of {} is not connected",
                workload.name
            )));
        };
        let before = traffic.answered.get();
        let old = served_serial(workload).await?;
        mesh.control_plane.rotate(&proxy.id).await?;
        let new = await_other_serial(workload, &old).await?;
        all.push(RotatedCertificate {
            name: workload.name,
            old,
            new,
            during: traffic.answered.get().saturating_sub(before),
        });
    }
    traffic.more(100).await;
    Ok(all)
}

/// Requests on reused and on new connections during the rotation.
#[derive(Default)]
struct Traffic {
    answered: Cell<u64>,
    lost: Cell<Vec<String>>,
    end: Cell<bool>,
}

impl Traffic {
    async fn flow(&self, mesh: &Mesh<'_>, shared: &Shared, index: usize) {
        let mut idle = None;
        while !self.end.get() {
            let request = request("GET", ORDERS, "/orders/7", Some(&shared.token), None);
            let reply = if index.is_multiple_of(2) {
                wire::send(mesh.web.outbound, request).await
            } else {
                let mut connection = match idle.take() {
                    Some(connection) => connection,
                    None => match Connection::open(mesh.web.outbound).await {
                        Ok(connection) => connection,
                        Err(error) => {
                            self.lose(error.to_string());
                            return;
                        }
                    },
                };
                let reply = connection.send(request).await;
                idle = Some(connection);
                reply
            };
            match reply {
                Ok(reply) if reply.status == 200 => self.answered.set(self.answered.get() + 1),
                Ok(reply) => self.lose(format!("{} {}", reply.status, reply.json())),
                Err(error) => {
                    self.lose(error.to_string());
                    idle = None;
                }
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn lose(&self, why: String) {
        let mut lost = self.lost.take();
        lost.push(why);
        self.lost.set(lost);
    }

    /// Waits until `many` more requests were answered, at most two seconds.
    async fn more(&self, many: u64) {
        let (goal, began) = (self.answered.get().saturating_add(many), Instant::now());
        while self.answered.get() < goal && began.elapsed() < Duration::from_secs(2) {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn await_other_serial(workload: &Workload, old: &str) -> Result<String, Failure> {
    let began = Instant::now();
    loop {
        let serial = served_serial(workload).await?;
        if serial != old || began.elapsed() > Duration::from_secs(10) {
            return Ok(serial);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// The serial number of the certificate that a sidecar sends in a handshake.
async fn served_serial(workload: &Workload) -> Result<String, Failure> {
    let failed =
        |why: String| Failure::runtime(format!("TLS with the sidecar of {}: {why}", workload.name));
    let handshake = async {
        let stream = TcpStream::connect(workload.inbound).await?;
        let connector =
            TlsConnector::from(Arc::new(client_config().map_err(std::io::Error::other)?));
        let name = ServerName::from(workload.inbound.ip());
        // The sidecar refuses the connection without a client certificate, after it has sent its own certificate.
        connector.connect(name, stream).await
    };
    let stream = timeout(Duration::from_secs(30), handshake)
        .await
        .map_err(|_| failed("no answer".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    let (_, connection) = stream.get_ref();
    let leaf = connection
        .peer_certificates()
        .and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| failed("it sent no certificate".to_owned()))?;
    let (_, leaf) =
        x509_parser::parse_x509_certificate(leaf).map_err(|error| failed(error.to_string()))?;
    Ok(leaf
        .raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn client_config() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"merlon-h2/1".to_vec()];
    Ok(config)
}

/// Accepts any certificate: only its serial number is read, and nothing is sent to the peer. The signature of the
/// handshake is still verified.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General(
            "only TLS 1.3 is supported".to_owned(),
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            leaf,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The first half of a serial number, for text output.
fn short(serial: &str) -> &str {
    serial.get(..16).unwrap_or(serial)
}
