# What Merlon's control plane may do in Vault or OpenBao: sign leaves through one role, see issuers, read the secrets below
# one prefix, keep its own token. `{{trust_domain}}`, `{{pki_mount}}`, `{{root_mount}}`, `{{role}}`, `{{kv_mount}}` and
# `{{kv_prefix}}` are filled in by whoever installs it.

# The name comes from the request, never from the CSR (role: use_csr_sans=false), and only names of this trust domain.
path "{{pki_mount}}/sign/{{role}}" {
  capabilities        = ["update"]
  required_parameters = ["csr", "uri_sans"]
  allowed_parameters  = { "csr" = [], "uri_sans" = ["spiffe://{{trust_domain}}/ns/*"], "ttl" = [], "format" = ["pem"] }
}

# Every root, so that a second one is known before it signs; the role, to be looked at before it is used.
path "{{root_mount}}/issuers"       { capabilities = ["list"] }
path "{{root_mount}}/issuer/+"      { capabilities = ["read"] }
path "{{root_mount}}/issuer/+/json" { capabilities = ["read"] }
path "{{pki_mount}}/issuers"        { capabilities = ["list"] }
path "{{pki_mount}}/issuer/+"       { capabilities = ["read"] }
path "{{pki_mount}}/issuer/+/json"  { capabilities = ["read"] }
path "{{pki_mount}}/config/issuers" { capabilities = ["read"] }
path "{{pki_mount}}/roles/{{role}}" { capabilities = ["read"] }

# What SecretGrants name. Each namespace of the cluster has a path of its own below the prefix, and reaches no other's.
path "{{kv_mount}}/data/{{kv_prefix}}/*" { capabilities = ["read"] }

# Its own token; the role or call that makes it leaves the default policy out.
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }

# A deny beats whatever other policy the same token carries.
path "{{root_mount}}/root"           { capabilities = ["deny"] }
path "{{root_mount}}/root/*"         { capabilities = ["deny"] }
path "{{pki_mount}}/sign-verbatim*"  { capabilities = ["deny"] }
path "{{pki_mount}}/issue/*"         { capabilities = ["deny"] }
path "{{pki_mount}}/key*"            { capabilities = ["deny"] }
