//! A listener of a Gateway and its certificate.

use std::sync::Arc;

use kube::ResourceExt as _;
use merlon_certs::provider;
use merlon_compile::StateResource;
use merlon_config::{
    name::ServiceName,
    resource::{CertificateRef, GatewayListener, ListenerTls},
    snapshot::CertificateState,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::{
    super::{
        api,
        report::{ConditionDraft, ListenerStatus},
    },
    GatewayObjects,
};
use crate::{cluster::gateway_api::GROUP, state::snapshot::Certificates};

pub(super) fn listener(
    written: &api::Listener,
    namespace: &str,
    seen: &GatewayObjects,
    certificates: &mut Certificates,
    details: &mut ListenerStatus,
) -> Option<GatewayListener> {
    if !["HTTP", "HTTPS"].contains(&written.protocol.as_str()) {
        let message = format!("`{}` is not supported; use HTTP or HTTPS", written.protocol);
        details.accepted = ConditionDraft::negative("UnsupportedProtocol", message);
        return None;
    }
    let routes = written.allowed_routes.as_ref();
    let kinds = routes.map_or(&[][..], |routes| &routes.kinds);
    let wrong = kinds.iter().find(|one| {
        one.kind != "HTTPRoute" || one.group.as_deref().is_some_and(|group| group != GROUP)
    });
    if let Some(wrong) = wrong {
        let message = format!(
            "routes of kind `{}` are not supported; use HTTPRoute",
            wrong.kind
        );
        details.resolved = ConditionDraft::negative("InvalidRouteKinds", message);
        return None;
    }
    let mut tls = None;
    if written.protocol == "HTTPS" {
        match certificate(written.tls.as_ref(), namespace, seen) {
            Ok((reference, state)) => {
                let resource = Arc::new(StateResource::certificate(&state));
                certificates.insert(state.name, resource);
                tls = Some(ListenerTls {
                    certificate_refs: vec![reference],
                    ..ListenerTls::default()
                });
            }
            Err(wrong) if wrong.reason == "UnsupportedValue" => details.accepted = wrong,
            Err(wrong) => details.resolved = wrong,
        }
        tls.as_ref()?;
    }
    let name = written.name.parse().map_err(|_| {
        let message = format!("`{}` is not a valid listener name", written.name);
        details.accepted = ConditionDraft::negative("UnsupportedValue", message);
    });
    Some(GatewayListener {
        name: name.ok()?,
        port: written.port,
        protocol: written.protocol.clone(),
        hostname: written.hostname.clone(),
        tls,
    })
}

fn certificate(
    tls: Option<&api::Tls>,
    namespace: &str,
    seen: &GatewayObjects,
) -> Result<(CertificateRef, CertificateState), ConditionDraft> {
    let unsupported = |message: &str| Err(ConditionDraft::negative("UnsupportedValue", message));
    let invalid = |message: String| ConditionDraft::negative("InvalidCertificateRef", message);
    let Some(tls) = tls else {
        return Err(invalid("HTTPS requires `tls.certificateRefs`".to_owned()));
    };
    if tls.mode.as_deref().is_some_and(|mode| mode != "Terminate") {
        return unsupported("tls.mode: must be `Terminate`, because a gateway authorizes requests");
    }
    if tls.frontend_validation.is_some() {
        return unsupported("tls.frontendValidation: client certificates are not supported");
    }
    let reference = match tls.certificate_refs.as_slice() {
        [] => return Err(invalid("`tls.certificateRefs` is empty".to_owned())),
        [one] => one,
        _ => {
            return unsupported(
                "tls.certificateRefs: only one per listener is supported; use one listener per host",
            );
        }
    };
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    if reference
        .group
        .as_deref()
        .is_some_and(|group| !group.is_empty())
        || kind != "Secret"
    {
        return Err(invalid(format!(
            "a certificate must be a Secret, not a `{kind}`"
        )));
    }
    if let Some(other) = reference.namespace.as_deref()
        && other != namespace
    {
        let message =
            format!("Merlon cannot read Secrets in `{other}`; create it in `{namespace}`");
        return Err(ConditionDraft::negative("RefNotPermitted", message));
    }
    let full = format!("{namespace}/{}", reference.name);
    let found = seen.secrets.iter().find(|secret| {
        secret.namespace().as_deref() == Some(namespace) && secret.name_any() == reference.name
    });
    let Some(secret) = found else {
        return Err(invalid(format!(
            "there is no Secret `{full}` of type kubernetes.io/tls"
        )));
    };
    let part = |name: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name));
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        text.ok_or_else(|| invalid(format!("the Secret `{full}` lacks `{name}`")))
    };
    let (chain, key) = (part("tls.crt")?, part("tls.key")?);
    usable(&chain, &key).map_err(|why| invalid(format!("the Secret `{full}`: {why}")))?;
    let wrong_name = |_| invalid(format!("`{full}` is not a valid Secret name"));
    let name: ServiceName = full.parse().map_err(wrong_name)?;
    let reference = CertificateRef {
        name: name.name.clone(),
    };
    Ok((reference, CertificateState { name, chain, key }))
}

/// Checks a certificate as the proxy does, because the proxy rejects its whole state if one is not valid.
fn usable(chain: &str, key: &str) -> Result<(), String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("tls.crt: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|error| format!("tls.key: {error}"))?;
    let pair = CertifiedKey::from_der(chain, key, provider());
    pair.map(|_| ()).map_err(|error| error.to_string())
}
