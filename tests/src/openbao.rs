//! The OpenBao server, set up for Merlon.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

pub use merlon_test_support::openbao::{OpenBao, Response};
use secrecy::{ExposeSecret as _, SecretString};

/// Sets a server up for Merlon with new mounts, as an administrator would. Returns the file of the control plane's token and
/// the lines of the `MeshConfig`'s `spec`, indented by two spaces.
pub async fn prepare_for_merlon(bao: &OpenBao, folder: &Path) -> (PathBuf, String) {
    static MOUNTS: AtomicU32 = AtomicU32::new(0);
    let prefix = format!("pki-{}", MOUNTS.fetch_add(1, Ordering::Relaxed));
    let prepared = merlon_issuer::vault_setup::prepare(
        &bao.address().parse().expect("a URL"),
        &SecretString::from(bao.root_token()),
        &crate::mesh::TRUST_DOMAIN.parse().expect("a trust domain"),
        &prefix,
    )
    .await
    .expect("OpenBao is set up");
    let file = folder.join("openbao-token");
    std::fs::write(&file, prepared.token.expose_secret()).expect("a file");
    let spec = format!(
        "  certificates:\n    lifetime: 1h\n    issuer:\n      vault:\n        address: {}\n        \
         tokenFile: {}\n        pkiMount: {}\n        rootMount: {}\n        role: {}\n",
        bao.address(),
        file.display(),
        prepared.pki_mount,
        prepared.root_mount,
        prepared.role,
    );
    (file, spec)
}
