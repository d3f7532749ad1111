//! The resource files of the demo's mesh. They are written once; then the user may edit them.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::server::write_atomically;
use crate::failure::Failure;

/// The folder of resource files that the control plane watches.
#[derive(Debug)]
pub(crate) struct Resources {
    folder: PathBuf,
}

/// The values of this run in the files.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    /// The `iss` of the token issuer.
    pub(crate) issuer: &'a str,
    /// The lines of the `issuer:` section of `MeshConfig`; empty for the embedded CA.
    pub(crate) certificates: &'a str,
    /// The addresses of each workload.
    pub(crate) web: WorkloadAddresses,
    pub(crate) orders: WorkloadAddresses,
    pub(crate) payments: WorkloadAddresses,
}

/// The addresses of one workload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkloadAddresses {
    /// The sidecar's address in the mesh.
    pub(crate) mesh: SocketAddr,
    /// The program's port on loopback.
    pub(crate) port: u16,
}

impl Resources {
    /// Writes all files.
    pub(crate) fn write(folder: PathBuf, values: &Values<'_>) -> Result<Self, Failure> {
        let this = Self { folder };
        for namespace in ["shop", "payments"] {
            let folder = this.folder.join(namespace);
            fs::create_dir_all(&folder).map_err(|error| {
                Failure::runtime(format!("cannot create {}: {error}", folder.display()))
            })?;
        }
        this.put(MESH, &mesh(values))?;
        this.put(WORKLOADS, &workloads(values))?;
        this.put(SERVICES, &services(values))?;
        this.put(TOKENS, &tokens(values))?;
        this.put(REQUESTS, REQUESTS_TEXT)?;
        this.put(GUARDRAILS, GUARDRAILS_TEXT)?;
        this.put(ORDERS_CEDAR, ORDERS_CEDAR_TEXT)?;
        this.put(PAYMENTS_CEDAR, PAYMENTS_CEDAR_TEXT)?;
        Ok(this)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The current text of a file, with the user's changes.
    pub(crate) fn read(&self, file: &str) -> Result<String, Failure> {
        let path = self.folder.join(file);
        fs::read_to_string(&path)
            .map_err(|error| Failure::runtime(format!("cannot read {}: {error}", path.display())))
    }

    /// Replaces a file atomically, as editors do.
    pub(crate) fn put(&self, file: &str, text: &str) -> Result<(), Failure> {
        write_atomically(&self.folder.join(file), text)
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

fn mesh(values: &Values<'_>) -> String {
    format!(
        "\
# Settings of the whole mesh.
apiVersion: merlon.io/v1alpha1
kind: MeshConfig
metadata: {{name: mesh, namespace: merlon-system}}
spec:
  trustDomain: {TRUST_DOMAIN}
  certificates:
    lifetime: 1h
{certificates}",
        certificates = values.certificates
    )
}

fn workloads(values: &Values<'_>) -> String {
    let workload = |namespace: &str, name: &str, addresses: WorkloadAddresses| {
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
            addresses.mesh
        )
    };
    format!(
        "# The workloads: each program runs under its own identity, with its own sidecar.\n{}{}{}",
        workload("shop", "web", values.web),
        workload("shop", "orders", values.orders),
        workload("payments", "payments", values.payments),
    )
}

fn services(values: &Values<'_>) -> String {
    let service = |namespace: &str, name: &str, addresses: WorkloadAddresses| {
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
            addresses.port
        )
    };
    format!(
        "# The names of services: http://orders.shop leads to the workloads with `app: orders`.\n{}{}{}",
        service("shop", "web", values.web),
        service("shop", "orders", values.orders),
        service("payments", "payments", values.payments),
    )
}

fn tokens(values: &Values<'_>) -> String {
    format!(
        "\
# The issuer and the audience of tokens that orders accepts.
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
        issuer = values.issuer
    )
}

const REQUESTS_TEXT: &str = "\
# The valid requests to orders. Policies refer to these paths as `context.route`.
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
# The rate limit of payments for each caller.
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
# Rules that no team can lift: policies in the root namespace apply to every service.
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
// Who may do what with orders. Requests that no policy permits are refused.

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
// Payments only accepts calls from orders.

@id(\"charge\") @owner(\"team-payments\") @reason(\"Orders are charged.\")
permit (principal == Workload::\"shop/orders\", action == Action::\"POST\", resource == Service::\"payments/payments\")
when { context.path == \"/charges\" };

@id(\"only-orders\") @owner(\"team-payments\") @reason(\"Only orders may call payments.\")
forbid (principal, action, resource == Service::\"payments/payments\")
unless { principal is Workload && principal == Workload::\"shop/orders\" };
";
