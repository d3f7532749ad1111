//! Asks for certificates as a pod's proxy does.

use std::{fs, path::Path, sync::Arc};

use hyper_util::rt::TokioIo;
use merlon_api::{
    control_plane_id,
    identity::{Evidence, IssueRequest, identity_client::IdentityClient},
};
use merlon_certs::{Bootstrap, H2, LeafFacts, PrivateKey, TrustRoots};
use merlon_config::{name::TrustDomain, snapshot::TrustBundle};
use tonic::{Status, transport::Endpoint};
use tower::service_fn;

use super::{Pod, Replica};
use crate::mesh::handshake;

impl Replica {
    /// Asks for a certificate for a pod with a token, knowing the mesh by the files in `trust`; gives the name in it.
    ///
    /// # Errors
    /// What the control plane says.
    pub async fn issue(&self, trust: &Path, pod: &Pod, token: &str) -> Result<String, Status> {
        let read = |file: &str| fs::read_to_string(trust.join(file)).expect("a mounted file");
        let domain: TrustDomain = read("trust-domain").parse().expect("a trust domain");
        let bundle = TrustBundle {
            trust_domain: domain.clone(),
            roots: vec![read("bundle.pem")],
        };
        let roots = Arc::new(TrustRoots::from_bundle(&bundle).expect("roots"));
        let server = control_plane_id(&domain, &"merlon-system".parse().expect("a namespace"));
        let tls = Bootstrap::Roots(roots).client_config(&server, &[H2]);
        let (tls, to) = (tls.expect("TLS"), self.address());
        let connector = service_fn(move |_| {
            let tls = Arc::clone(&tls);
            async move { handshake(to, tls).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://control-plane")
            .connect_with_connector(connector)
            .await
            .expect("a connection");
        let identity = format!("{}/{}", pod.namespace, pod.account);
        let id = domain.spiffe_id(&identity.parse().expect("an identity"));
        let key = PrivateKey::generate().expect("a key");
        let request = IssueRequest {
            csr: key.csr(&id).expect("a request"),
            evidence: Some(Evidence::Token(token.to_owned())),
            node_id: pod.name.clone(),
        };
        let issued = IdentityClient::new(channel).issue(request).await?;
        let chain = issued.into_inner().chain;
        let leaf = chain.first().expect("a certificate");
        let facts = LeafFacts::parse(leaf).expect("a leaf");
        Ok(facts.id.to_string())
    }
}
