//! Fixtures shared by several of this crate's tests.

use std::{os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use merlon_certs::{
    CertificateDer, LEAF_BACKDATE, MeshTls, PrivateKey, TrustRoots, X509Svid, pem, unix_now,
};
use merlon_config::{
    bootstrap::AccessLogMode,
    live::Live,
    name::SpiffeId,
    snapshot::{Manifest, ManifestEntry, ResourceKey, ResourceKind, TrustBundle, Version},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyUsagePurpose, SanType,
};

use crate::{
    control::{
        assemble::{HeldResource, Resources},
        state_dir::StateDir,
    },
    limits::Limits,
    protocol::address_claims::Claims,
    state::{
        destinations::{Destinations, LookupRequest},
        jwks_cache::JwksCache,
        readiness::{Readiness, Unready},
        shared::Shared,
    },
    telemetry::{decision_log::DecisionLog, spans::Spans},
};

pub(crate) const ORDERS: &str = "spiffe://one.test/ns/shop/sa/orders";
pub(crate) const CONTROL_PLANE: &str = "spiffe://one.test/ns/merlon-system/sa/merlon-control-plane";

pub(crate) fn orders() -> SpiffeId {
    ORDERS.parse().unwrap()
}

/// A root CA of `one.test` that signs any certificate.
pub(crate) struct Authority {
    issuer: Issuer<'static, PrivateKey>,
    pub(crate) root: CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = PrivateKey::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            root,
        }
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle {
            trust_domain: "one.test".parse().unwrap(),
            roots: vec![pem::certificate(&self.root)],
        }
    }

    /// A leaf for `key` that is valid for `life` from now.
    pub(crate) fn sign(
        &self,
        key: &impl rcgen::PublicKeyData,
        id: &str,
        life: Duration,
    ) -> CertificateDer<'static> {
        self.sign_with_age(key, id, Duration::ZERO, life)
    }

    /// A leaf for `key` that was issued `age` ago and is valid for `left` from now.
    pub(crate) fn sign_with_age(
        &self,
        key: &impl rcgen::PublicKeyData,
        id: &str,
        age: Duration,
        left: Duration,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_owned().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = Duration::from_secs(unix_now().as_secs());
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + (now - age - LEAF_BACKDATE);
        params.not_after = epoch + (now + left);
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    pub(crate) fn svid(&self, id: &str, life: Duration) -> X509Svid {
        let key = PrivateKey::generate().unwrap();
        let leaf = self.sign(&key, id, life);
        let roots = TrustRoots::from_bundle(&self.bundle()).unwrap();
        X509Svid::parse(vec![leaf], key, &roots, unix_now()).unwrap()
    }

    pub(crate) fn tls(&self, id: &str, life: Duration) -> MeshTls {
        let roots = TrustRoots::from_bundle(&self.bundle()).unwrap();
        let svid = self.svid(id, life).with_root(self.root.clone());
        MeshTls::new(Arc::new(svid), Arc::new(roots)).unwrap()
    }
}

/// The state that workers share, without a snapshot or an identity.
pub(crate) fn shared(limits: Limits) -> (Arc<Shared>, tokio::sync::mpsc::Receiver<LookupRequest>) {
    let (destinations, lookups) = Destinations::new(&limits);
    let shared = Shared {
        snapshot: Live::new(None),
        identity: Live::new(None),
        has_identity: true,
        interception: false,
        keys: JwksCache::new(&limits).0,
        destinations,
        decisions: DecisionLog::new("test", &limits),
        egress: crate::telemetry::egress_log::EgressLog::default(),
        spans: Spans::default(),
        listeners: Claims::default(),
        readiness: Readiness::default(),
        access_log: AccessLogMode::Off,
        limits,
    };
    shared.readiness.add_reason(Unready::NoSnapshot, "none yet");
    (Arc::new(shared), lookups)
}

pub(crate) fn state_dir(path: &Path) -> Arc<StateDir> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    Arc::new(StateDir::open(path).unwrap())
}

pub(crate) fn key(kind: ResourceKind, name: &str) -> ResourceKey {
    ResourceKey {
        kind,
        name: name.to_owned(),
    }
}

/// The minimal state of `shop/orders`, plus destinations with these names.
pub(crate) fn resources(destinations: &[&str]) -> Resources {
    let mut resources = Resources::new();
    let mut add = |kind, name: &str, json: String| {
        let held = HeldResource {
            version: Version::of(json.as_bytes()),
            json: json.into(),
        };
        resources.insert(key(kind, name), held);
    };
    add(
        ResourceKind::Mesh,
        "mesh",
        r#"{"trustDomain":"one.test","rootNamespace":"merlon-system"}"#.to_owned(),
    );
    add(
        ResourceKind::Workload,
        "shop/orders",
        format!(r#"{{"identity":"{ORDERS}","services":["shop/orders"]}}"#),
    );
    add(
        ResourceKind::Service,
        "shop/orders",
        r#"{"name":"shop/orders","ports":[{"port":80,"targetPort":8080}]}"#.to_owned(),
    );
    for name in destinations {
        add(
            ResourceKind::Destination,
            name,
            format!(r#"{{"name":"{name}","ports":[{{"port":80}}],"endpoints":[]}}"#),
        );
    }
    resources
}

pub(crate) fn manifest(resources: &Resources) -> (Version, Manifest, Vec<u8>) {
    let entries = resources.iter().map(|(key, held)| ManifestEntry {
        key: key.clone(),
        version: held.version.clone(),
    });
    let manifest = Manifest {
        entries: entries.collect(),
    };
    let json = serde_json::to_vec(&manifest).unwrap();
    (Version::of(&json), manifest, json)
}
