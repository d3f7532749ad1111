use std::time::Duration;

use super::{checker::Checker, text::url_problem};
use crate::{
    name::Namespace,
    report::Problem,
    resource::{CertificateIssuer, MeshConfigSpec, Resource},
};

const MIN_LIFETIME: Duration = Duration::from_secs(30);
const SHORT_LIFETIME: Duration = Duration::from_secs(5 * 60);
const MAX_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3_600);

impl Checker<'_, '_> {
    pub(super) fn single_mesh_config(&mut self) {
        let declared = self.checked.declared;
        let mut meshes = declared.iter().filter(|one| one.kind == "MeshConfig");
        let Some(first) = meshes.next() else {
            if self.checked.complete {
                let hint = "start with `apiVersion: merlon.io/v1alpha1`, `kind: MeshConfig`, \
                            `metadata: { name: mesh, namespace: merlon-system }`, `spec: { trustDomain: example.org }`";
                let message = "there is no MeshConfig; exactly one is required";
                self.push(Problem::error(self.checked.place, message))
                    .hint(hint);
            }
            return;
        };
        for other in meshes {
            let hint = format!("the first is defined at {}", first.origin);
            let message = "there is more than one MeshConfig; exactly one is required";
            self.at(&other.origin, "kind", message).hint(hint);
        }
    }

    /// The namespace whose policies may apply to all others, if it is known.
    pub(super) fn root_namespace(&self) -> Option<&Namespace> {
        self.checked
            .resources
            .mesh()
            .map(|(_, mesh)| &mesh.root_namespace)
    }

    pub(super) fn mesh(&mut self, resource: &Resource, spec: &MeshConfigSpec) {
        if resource.namespace != spec.root_namespace {
            let message = format!(
                "the MeshConfig is in `{}`, but the root namespace is `{}`",
                resource.namespace, spec.root_namespace
            );
            let hint = format!("write `namespace: {}`", spec.root_namespace);
            self.error(resource, "metadata.namespace", message)
                .hint(hint);
        }
        let field = "spec.certificates.lifetime";
        let lifetime = spec.certificates.lifetime;
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&lifetime.0) {
            let message = format!(
                "a certificate's lifetime must be from 30s to 168h (7 days), not {lifetime}"
            );
            self.error(resource, field, message);
        } else if lifetime.0 < SHORT_LIFETIME {
            let message = format!(
                "with a lifetime of {lifetime}, certificates expire soon after the control plane becomes unavailable"
            );
            self.warning(resource, field, message)
                .hint("use less than 5m only for tests");
        }
        if let CertificateIssuer::Vault(vault) = &spec.certificates.issuer {
            let part = "spec.certificates.issuer.vault";
            if let Some(problem) = url_problem(&vault.address) {
                let message = format!("`{}` cannot be Vault's address: {problem}", vault.address);
                self.error(resource, &format!("{part}.address"), message);
            }
            let mut names = vec![
                ("pkiMount", &vault.pki_mount),
                ("rootMount", &vault.root_mount),
                ("role", &vault.role),
            ];
            if let Some(login) = &vault.kubernetes_auth {
                names.push(("kubernetesAuth.mount", &login.mount));
                names.push(("kubernetesAuth.role", &login.role));
                if vault.token_file.is_some() {
                    let message = "`tokenFile` and `kubernetesAuth` are mutually exclusive";
                    self.error(resource, &format!("{part}.kubernetesAuth"), message);
                }
            }
            for (field, name) in names {
                // The names become part of a URL's path.
                let plain = |part: &str| {
                    !matches!(part, "" | "." | "..")
                        && part
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                };
                if !name.split('/').all(plain) || (field.ends_with("role") && name.contains('/')) {
                    let message = format!("`{name}` is not a valid name in Vault");
                    let hint =
                        "use letters, digits, `-`, `_` and `.`; a mount may also contain `/`";
                    self.error(resource, &format!("{part}.{field}"), message)
                        .hint(hint);
                }
            }
        }
    }
}
