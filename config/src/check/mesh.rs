use std::time::Duration;

use super::{Checker, text::url_problem};
use crate::{
    name::Namespace,
    report::Problem,
    resource::{CertificateIssuer, MeshConfigSpec, Resource},
};

const LEAST: Duration = Duration::from_secs(30);
const USUAL: Duration = Duration::from_secs(5 * 60);
const MOST: Duration = Duration::from_secs(7 * 24 * 3_600);

impl Checker<'_, '_> {
    pub(super) fn one_mesh(&mut self) {
        let claims = self.checked.claims;
        let mut meshes = claims.iter().filter(|claim| claim.kind == "MeshConfig");
        let Some(first) = meshes.next() else {
            if self.checked.complete {
                let hint = "begin with `apiVersion: merlon.io/v1alpha1`, `kind: MeshConfig`, \
                            `metadata: { name: mesh, namespace: merlon-system }`, `spec: { trustDomain: example.org }`";
                let message = "there is no MeshConfig, and there must be one";
                self.say(Problem::error(self.checked.place, message))
                    .hint(hint);
            }
            return;
        };
        for other in meshes {
            let hint = format!("the first is at {}", first.origin);
            self.at(
                &other.origin,
                "kind",
                "there is a second MeshConfig, and there must be one",
            )
            .hint(hint);
        }
    }

    /// The namespace whose policies reach all others, when it is known.
    pub(super) fn root_namespace(&self) -> Option<&Namespace> {
        self.checked
            .resources
            .mesh()
            .map(|(_, mesh)| &mesh.root_namespace)
    }

    pub(super) fn mesh(&mut self, resource: &Resource, spec: &MeshConfigSpec) {
        if resource.namespace != spec.root_namespace {
            let message = format!(
                "the MeshConfig stands in `{}`, but the root namespace is `{}`",
                resource.namespace, spec.root_namespace
            );
            let hint = format!("write `namespace: {}`", spec.root_namespace);
            self.error(resource, "metadata.namespace", message)
                .hint(hint);
        }
        let field = "spec.certificates.lifetime";
        let lifetime = spec.certificates.lifetime;
        if !(LEAST..=MOST).contains(&lifetime.0) {
            let message = format!(
                "a certificate's lifetime must be from 30s to 168h (7 days), not {lifetime}"
            );
            self.error(resource, field, message);
        } else if lifetime.0 < USUAL {
            let message = format!(
                "a lifetime of {lifetime} leaves little time when the control plane is away"
            );
            self.warning(resource, field, message)
                .hint("below 5m is for tests");
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
                    let message = "the control plane has a token (`tokenFile`) or gets one by `kubernetesAuth`, not both";
                    self.error(resource, &format!("{part}.kubernetesAuth"), message);
                }
            }
            for (field, name) in names {
                // They become parts of a URL's path.
                let plain = |part: &str| {
                    !matches!(part, "" | "." | "..")
                        && part
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                };
                if !name.split('/').all(plain) || (field.ends_with("role") && name.contains('/')) {
                    let message = format!("`{name}` is not a name in Vault");
                    let hint =
                        "letters, digits, `-`, `_` and `.`, in a mount also `/` between them";
                    self.error(resource, &format!("{part}.{field}"), message)
                        .hint(hint);
                }
            }
        }
    }
}
