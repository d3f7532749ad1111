// The OpenID provider for a pod: one issuer over TLS with one client, and a new key at each start.
//
// Usage: node pod.mjs ISSUER PORT FOLDER-WITH-tls.crt-AND-tls.key; node_modules must be beside this file.

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import * as jose from "jose";
import { Provider } from "oidc-provider";

const [issuer, port, folder] = process.argv.slice(2);
const { privateKey } = await jose.generateKeyPair("ES256", { extractable: true });
const key = { ...(await jose.exportJWK(privateKey)), kid: randomUUID(), alg: "ES256", use: "sig" };
const provider = new Provider(issuer, {
  jwks: { keys: [key] },
  clients: [
    {
      client_id: "alice",
      client_secret: "alice-secret",
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
      id_token_signed_response_alg: "ES256",
    },
  ],
  scopes: ["orders:read"],
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (ctx, resource) => ({
        scope: "orders:read",
        audience: resource,
        accessTokenTTL: 3600,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "ES256" } },
      }),
    },
  },
});
const [cert, secret] = ["tls.crt", "tls.key"].map((name) => readFileSync(`${folder}/${name}`));
createServer({ cert, key: secret }, provider.callback()).listen(Number(port));
