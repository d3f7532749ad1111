#!/bin/sh
# Prepares a Vault or OpenBao for Merlon in a Kubernetes cluster, once: a root, an intermediate, a role that signs, a policy
# that only permits signing and reading secrets below one prefix, and a login for the control plane's service account.
#
#   TRUST_DOMAIN=prod.example.org certs/issuer/vault/setup.sh
#
# It calls `bao` or `vault`, which must be logged in as an administrator (VAULT_ADDR, VAULT_TOKEN; for `bao` also BAO_…).
# Each step is printed. It stops at a mount that already exists: nothing is overwritten. Settings (environment variables):
#
#   TRUST_DOMAIN      trust domain of the mesh; required
#   NAMESPACE         namespace of the control plane                      merlon-system
#   SERVICE_ACCOUNT   service account of the control plane                merlon-control-plane
#   ROOT_MOUNT        mount of the root                                   pki-root
#   PKI_MOUNT         mount that signs leaves                             pki-int
#   KV_MOUNT          mount of the secrets in SecretGrants                secret
#   KV_PREFIX         prefix of their paths                               merlon
#   AUTH_MOUNT        mount of the Kubernetes login, below auth/          kubernetes
#   KUBERNETES_HOST   address of the API server for Vault                 https://kubernetes.default.svc
#   AUDIENCE          audience of the control plane's projected token     vault
#
# Vault verifies the token with a TokenReview. A Vault outside the cluster needs your own set-up of `auth/kubernetes/config`;
# inside it, the service account of Vault needs the cluster role `system:auth-delegator`.
set -eu
fail() { printf 'error: %s\nhint: %s\n' "$1" "$2" >&2; exit 1; }
say() { printf '%s\n' "- $*"; }

[ -n "${TRUST_DOMAIN:-}" ] || fail "TRUST_DOMAIN is not set" "TRUST_DOMAIN=prod.example.org $0"
NAMESPACE=${NAMESPACE:-merlon-system}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-merlon-control-plane}
ROOT_MOUNT=${ROOT_MOUNT:-pki-root}
PKI_MOUNT=${PKI_MOUNT:-pki-int}
KV_MOUNT=${KV_MOUNT:-secret}
KV_PREFIX=${KV_PREFIX:-merlon}
AUTH_MOUNT=${AUTH_MOUNT:-kubernetes}
KUBERNETES_HOST=${KUBERNETES_HOST:-https://kubernetes.default.svc}
AUDIENCE=${AUDIENCE:-vault}
role=svid
policy=$(dirname "$0")/merlon-control-plane.hcl
[ -r "$policy" ] || fail "$policy does not exist" "run the script from its own folder of the repository"
vault=$(command -v bao || command -v vault) ||
  fail "neither \`bao\` nor \`vault\` is on PATH" "install the command line of your server"
write() { "$vault" write "$@" >/dev/null; }

say "create a root, valid for ten years, in $ROOT_MOUNT/"
"$vault" secrets enable -path="$ROOT_MOUNT" -max-lease-ttl=87600h pki >/dev/null
write "$ROOT_MOUNT/root/generate/internal" common_name="$TRUST_DOMAIN root 1" uri_sans="spiffe://$TRUST_DOMAIN" \
  issuer_name=root-1 key_name=root-1 key_type=ec key_bits=256 ttl=87600h not_before_duration=24h

say "create an intermediate, valid for one year, in $PKI_MOUNT/"
"$vault" secrets enable -path="$PKI_MOUNT" -max-lease-ttl=8760h pki >/dev/null
csr=$("$vault" write -field=csr "$PKI_MOUNT/issuers/generate/intermediate/internal" \
  common_name="$TRUST_DOMAIN intermediate 1" uri_sans="spiffe://$TRUST_DOMAIN" key_name=int-1 \
  key_type=ec key_bits=256 add_basic_constraints=true)
certificate=$("$vault" write -field=certificate "$ROOT_MOUNT/issuer/root-1/sign-intermediate" csr="$csr" \
  use_csr_values=true ttl=8760h max_path_length=0 not_before_duration=1h format=pem)
write "$PKI_MOUNT/intermediate/set-signed" certificate="$certificate"
# It is the only issuer of this mount.
write "$PKI_MOUNT/issuer/default" issuer_name=int-1

say "create the role $PKI_MOUNT/roles/$role, which only signs names of workloads of $TRUST_DOMAIN"
write "$PKI_MOUNT/roles/$role" allowed_uri_sans="spiffe://$TRUST_DOMAIN/ns/*/sa/*" \
  use_csr_sans=false use_csr_common_name=false require_cn=false \
  key_type=ec key_bits=256 key_usage=DigitalSignature server_flag=true client_flag=true \
  allow_localhost=false allow_ip_sans=false allow_any_name=false allow_wildcard_certificates=false \
  ttl=1h max_ttl=168h not_before_duration=5m not_after_bound=forbid not_before_bound=forbid \
  no_store=true generate_lease=false basic_constraints_valid_for_non_ca=true issuer_ref=default

if ! "$vault" secrets list -format=json | grep -q "\"$KV_MOUNT/\""; then
  say "enable the KV engine $KV_MOUNT/, version 2; the secrets of a namespace are below $KV_PREFIX/<namespace>/"
  "$vault" secrets enable -path="$KV_MOUNT" -version=2 kv >/dev/null
fi

say "write the policy merlon-control-plane"
sed -e "s|{{trust_domain}}|$TRUST_DOMAIN|g; s|{{pki_mount}}|$PKI_MOUNT|g; s|{{root_mount}}|$ROOT_MOUNT|g; s|{{role}}|$role|g; s|{{kv_mount}}|$KV_MOUNT|g; s|{{kv_prefix}}|$KV_PREFIX|g" \
  "$policy" | "$vault" policy write merlon-control-plane - >/dev/null

if ! "$vault" auth list -format=json | grep -q "\"$AUTH_MOUNT/\""; then
  say "enable the login auth/$AUTH_MOUNT"
  "$vault" auth enable -path="$AUTH_MOUNT" kubernetes >/dev/null
  write "auth/$AUTH_MOUNT/config" kubernetes_host="$KUBERNETES_HOST"
fi
say "allow the login of $NAMESPACE/$SERVICE_ACCOUNT"
write "auth/$AUTH_MOUNT/role/merlon-control-plane" \
  bound_service_account_names="$SERVICE_ACCOUNT" bound_service_account_namespaces="$NAMESPACE" audience="$AUDIENCE" \
  token_policies=merlon-control-plane token_no_default_policy=true token_ttl=1h token_max_ttl=24h

cat <<VALUES

Values for the chart \`merlon\`:

  mesh:
    trustDomain: $TRUST_DOMAIN
  certificates:
    issuer: vault
  vault:
    address: ${VAULT_ADDR:-${BAO_ADDR:-https://vault.example.org:8200}}
    pkiMount: $PKI_MOUNT
    rootMount: $ROOT_MOUNT
    role: $role
    kvMount: $KV_MOUNT
    kvPrefix: $KV_PREFIX
    kubernetesAuth: { mount: $AUTH_MOUNT, role: merlon-control-plane, audience: $AUDIENCE }
VALUES
