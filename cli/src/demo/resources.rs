//! The files that the demo's mesh is made of: written once, then the user's to edit.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::server::write_whole;
use crate::failure::Failure;

/// The folder of resource files that the control plane watches.
#[derive(Debug)]
pub(crate) struct Resources {
    folder: PathBuf,
}

/// What the files have to say of this run.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// The `iss` of the token issuer.
    pub(crate) issuer: &'a str,
    /// The `issuer:` section of `MeshConfig`, in lines of their own; empty for the embedded CA.
    pub(crate) certificates: &'a str,
    /// Where each sidecar takes calls of the mesh, and where its program listens: web, orders, payments.
    pub(crate) web: Place,
    pub(crate) orders: Place,
    pub(crate) payments: Place,
}

/// Addresses of one workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The sidecar's address in the mesh.
    pub(crate) mesh: SocketAddr,
    /// The program's port on loopback.
    pub(crate) port: u16,
}

impl Resources {
    /// Writes all files.
    pub(crate) fn write(folder: PathBuf, facts: &Facts<'_>) -> Result<Self, Failure> {
        let this = Self { folder };
        for namespace in ["shop", "payments"] {
            let folder = this.folder.join(namespace);
            fs::create_dir_all(&folder).map_err(|error| {
                Failure::runtime(format!("cannot make {}: {error}", folder.display()))
            })?;
        }
        this.put(MESH, &mesh(facts))?;
        this.put(WORKLOADS, &workloads(facts))?;
        this.put(SERVICES, &services(facts))?;
        this.put(TOKENS, &tokens(facts))?;
        this.put(REQUESTS, REQUESTS_TEXT)?;
        this.put(GUARDRAILS, GUARDRAILS_TEXT)?;
        this.put(ORDERS_CEDAR, ORDERS_CEDAR_TEXT)?;
        this.put(PAYMENTS_CEDAR, PAYMENTS_CEDAR_TEXT)?;
        Ok(this)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file's text as it is now, with what the user made of it.
    pub(crate) fn read(&self, file: &str) -> Result<String, Failure> {
        let path = self.folder.join(file);
        fs::read_to_string(&path)
            .map_err(|error| Failure::runtime(format!("cannot read {}: {error}", path.display())))
    }

    /// Replaces a file as a whole, as editors do.
    pub(crate) fn put(&self, file: &str, text: &str) -> Result<(), Failure> {
        write_whole(&self.folder.join(file), text)
    }
}

pub(crate) const MESH: &str = "mesh.yaml";
pub(crate) const WORKLOADS: &str = "workloads.yaml";
pub(crate) const SERVICES: &str = "services.yaml";
pub(crate) const TOKENS: &str = "tokens.yaml";
pub(crate) const REQUESTS: &str = "requests.yaml";
pub(crate) const GUARDRAILS: &str = "guardrails.yaml";
pub(crate) const ORDERS_CEDAR: &str = "shop/orders.cedar";
pub(crate) const PAYMENTS_CEDAR: &str = "payments/payments.cedar";

/// The trust domain of the demo.
pub(crate) const TRUST_DOMAIN: &str = "demo.merlon.test";

fn mesh(facts: &Facts<'_>) -> String {
    format!(
        "\
# What holds for the whole mesh.
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: {{name: mesh, namespace: merlon-system}}
spec:
  trustDomain: {TRUST_DOMAIN}
  certificates:
    lifetime: 1h
{certificates}",
        certificates = facts.certificates
    )
}

fn workloads(facts: &Facts<'_>) -> String {
    let workload = |namespace: &str, name: &str, place: Place| {
        format!(
            "\
---
apiVersion: merlon.io/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}
spec:
  serviceAccount: {name}
  meshAddress: {}
",
            place.mesh
        )
    };
    format!(
        "# Who there is: each program runs under an identity of its own, with a sidecar beside it.\n{}{}{}",
        workload("shop", "web", facts.web),
        workload("shop", "orders", facts.orders),
        workload("payments", "payments", facts.payments),
    )
}

fn services(facts: &Facts<'_>) -> String {
    let service = |namespace: &str, name: &str, place: Place| {
        format!(
            "\
---
apiVersion: merlon.io/v1alpha1
kind: Service
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{app: {name}}}
  ports:
    - {{port: 80, targetPort: {}}}
",
            place.port
        )
    };
    format!(
        "# Under which names they are called: http://orders.shop leads to the workloads with `app: orders`.\n{}{}{}",
        service("shop", "web", facts.web),
        service("shop", "orders", facts.orders),
        service("payments", "payments", facts.payments),
    )
}

fn tokens(facts: &Facts<'_>) -> String {
    format!(
        "\
# Whose tokens orders accepts, and for whom they must be meant.
apiVersion: merlon.io/v1alpha1
kind: RequestAuthentication
metadata: {{name: customers, namespace: shop}}
spec:
  targetRefs: [{{kind: Service, name: orders}}]
  required: true
  issuers:
    - name: customers
      issuer: {issuer}
      audiences: [orders]
      algorithms: [ES256]
      clockSkew: 30s
",
        issuer = facts.issuer
    )
}

const REQUESTS_TEXT: &str = "\
# What a request to orders looks like. Policies name these paths as `context.route`.
apiVersion: merlon.io/v1alpha1
kind: RequestValidation
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  routes:
    - path: /orders/{id}
      methods: [GET, DELETE]
    - path: /orders
      methods: [POST]
      contentTypes: [application/json]
      maxBody: 4KiB
      body:
        type: object
        required: [item, quantity]
        additionalProperties: false
        properties:
          item: {type: string, maxLength: 40}
          quantity: {type: integer, minimum: 1, maximum: 100}
---
# How often each caller may come to payments.
apiVersion: merlon.io/v1alpha1
kind: RateLimit
metadata: {name: payments, namespace: payments}
spec:
  targetRefs: [{kind: Service, name: payments}]
  limits:
    - name: per-caller
      per: principal
      rate: {requests: 50, per: 1s}
      burst: 10
";

const GUARDRAILS_TEXT: &str = "\
# What no team can lift: written in the root namespace, it reaches every service.
apiVersion: merlon.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: guardrails, namespace: merlon-system}
spec:
  targetRefs: [{kind: Mesh}]
  policies: |
    @id(\"members-only\") @owner(\"security\") @reason(\"Only workloads of the mesh may call its services.\")
    forbid (principal is Anonymous, action, resource);
";

const ORDERS_CEDAR_TEXT: &str = "\
// Who may do what with orders. Whatever no policy permits is refused.

@id(\"read-orders\") @owner(\"team-orders\") @reason(\"Customers read orders through the shop's pages.\")
permit (principal == Workload::\"shop/web\", action in Action::\"read\", resource == Service::\"shop/orders\")
when {
  context has route && context.route == \"/orders/{id}\" &&
  context has user && context.user.scopes.contains(\"orders:read\")
};

@id(\"place-orders\") @owner(\"team-orders\") @reason(\"Customers order through the shop's pages.\")
permit (principal == Workload::\"shop/web\", action == Action::\"POST\", resource == Service::\"shop/orders\")
when {
  context has route && context.route == \"/orders\" &&
  context has user && context.user.scopes.contains(\"orders:write\")
};
";

const PAYMENTS_CEDAR_TEXT: &str = "\
// Payments answers orders and nobody else.

@id(\"charge\") @owner(\"team-payments\") @reason(\"Orders are charged.\")
permit (principal == Workload::\"shop/orders\", action == Action::\"POST\", resource == Service::\"payments/payments\")
when { context.path == \"/charges\" };

@id(\"only-orders\") @owner(\"team-payments\") @reason(\"Only orders may talk to payments.\")
forbid (principal, action, resource == Service::\"payments/payments\")
unless { principal is Workload && principal == Workload::\"shop/orders\" };
";
