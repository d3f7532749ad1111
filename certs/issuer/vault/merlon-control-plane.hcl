# The permissions of Merlon's control plane in Vault or OpenBao: sign leaves through one role, read issuers, read the secrets
# below one prefix, renew its own token. The installation replaces `{{trust_domain}}`, `{{pki_mount}}`, `{{root_mount}}`,
# `{{role}}`, `{{kv_mount}}` and `{{kv_prefix}}`.

# The name comes from the request, never from the CSR (role: use_csr_sans=false), and must be in this trust domain.
path "{{pki_mount}}/sign/{{role}}" {
  capabilities        = ["update"]
  required_parameters = ["csr", "uri_sans"]
  allowed_parameters  = { "csr" = [], "uri_sans" = ["spiffe://{{trust_domain}}/ns/*"], "ttl" = [], "format" = ["pem"] }
}

# Every root, so that proxies trust a second one before it signs; the role, which is checked before it is used.
path "{{root_mount}}/issuers"       { capabilities = ["list"] }
path "{{root_mount}}/issuer/+"      { capabilities = ["read"] }
path "{{root_mount}}/issuer/+/json" { capabilities = ["read"] }
path "{{pki_mount}}/issuers"        { capabilities = ["list"] }
path "{{pki_mount}}/issuer/+"       { capabilities = ["read"] }
path "{{pki_mount}}/issuer/+/json"  { capabilities = ["read"] }
path "{{pki_mount}}/config/issuers" { capabilities = ["read"] }
path "{{pki_mount}}/roles/{{role}}" { capabilities = ["read"] }

# The secrets in SecretGrants. Each namespace of the cluster has its own path below the prefix, and cannot read others.
path "{{kv_mount}}/data/{{kv_prefix}}/*" { capabilities = ["read"] }

# Its own token, which is created without the default policy.
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self"  { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }

# A deny overrides any other policy of the same token.
path "{{root_mount}}/root"           { capabilities = ["deny"] }
path "{{root_mount}}/root/*"         { capabilities = ["deny"] }
path "{{pki_mount}}/sign-verbatim*"  { capabilities = ["deny"] }
path "{{pki_mount}}/issue/*"         { capabilities = ["deny"] }
path "{{pki_mount}}/key*"            { capabilities = ["deny"] }
