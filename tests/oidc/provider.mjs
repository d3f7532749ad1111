// A certified OpenID provider for tests: any number of issuers in one process, each with keys and clients of its own.
//
// Each issuer is served by `oidc-provider` at `<base>/<name>`: discovery, JWKS, token endpoint with client_credentials,
// JWT access tokens (RFC 9068) for a resource (RFC 8707). Tests control it under `/control/`: create an issuer, rotate
// its keys, sign invalid tokens, and make it misbehave.
//
// Usage: node provider.mjs FOLDER-WITH-NODE-MODULES; prints its base address on one line.

import { createRequire } from "node:module";
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";
import path from "node:path";

const require = createRequire(path.resolve(process.argv[2], "package.json"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const { Provider } = await load("oidc-provider");
const jose = await load("jose");

let base;
const issuers = new Map();

class Issuer {
  constructor(name, { alg = "ES256", clients = [] }) {
    Object.assign(this, { name, alg, clients, mode: "ok", keys: [], retired: [], fetched: { discovery: 0, jwks: 0 } });
  }

  get url() {
    return `${base}/${this.name}`;
  }

  // Replaces the keys; with `overlap` the old ones stay published after the new one.
  async rotate(alg = this.alg, overlap = false) {
    const { publicKey, privateKey } = await jose.generateKeyPair(alg, { extractable: true });
    const kid = `${this.name}-${this.keys.length + this.retired.length + 1}`;
    const key = { kid, alg, privateKey, publicKey, jwk: { ...(await jose.exportJWK(privateKey)), kid, alg, use: "sig" } };
    if (!overlap) this.retired.push(...this.keys.splice(0));
    this.keys.unshift(key);
    this.alg = alg;
    this.provider = this.build();
  }

  build() {
    const clients = this.clients;
    const claims = new Map(clients.map((client) => [client.id, client.claims ?? {}]));
    return new Provider(this.url, {
      jwks: { keys: this.keys.map((key) => key.jwk) },
      clients: clients.map(({ id }) => ({
        client_id: id,
        client_secret: `${id}-secret`,
        grant_types: ["client_credentials"],
        redirect_uris: [],
        response_types: [],
        id_token_signed_response_alg: this.alg,
      })),
      scopes: ["openid", "orders:read", "orders:write"],
      features: {
        clientCredentials: { enabled: true },
        devInteractions: { enabled: false },
        resourceIndicators: {
          enabled: true,
          defaultResource: () => "https://orders.example",
          getResourceServerInfo: (ctx, resource) => ({
            scope: "orders:read orders:write",
            audience: resource,
            accessTokenTTL: 3600,
            accessTokenFormat: "jwt",
            jwt: { sign: { alg: this.alg } },
          }),
        },
      },
      extraTokenClaims: (ctx, token) => claims.get(token.clientId),
    });
  }

  async serve(request, response) {
    if (request.url.includes("/.well-known/")) this.fetched.discovery += 1;
    if (request.url.includes("/jwks")) this.fetched.jwks += 1;
    switch (this.mode) {
      case "error":
        response.writeHead(500).end("out of order");
        return;
      case "html":
        response.writeHead(200, { "content-type": "text/html" }).end("<html>Sign in</html>");
        return;
      case "silent": // accepts and never answers
        return;
      case "huge":
        response.writeHead(200, { "content-type": "application/json" });
        response.end(`{"keys":[${'{"kty":"EC"},'.repeat(1_000_000)}{}]}`);
        return;
      case "down":
        request.socket.destroy();
        return;
    }
    // Frameworks that mount the provider under a path (Connect, Express) pass the prefix this way.
    request.originalUrl = request.url;
    request.baseUrl = `/${this.name}`;
    request.url = request.url.slice(this.name.length + 1) || "/";
    this.provider.callback()(request, response);
  }
}

const body = async (request) => {
  let text = "";
  for await (const chunk of request) text += chunk;
  return text ? JSON.parse(text) : {};
};

async function control(request) {
  const [, , name, action] = request.url.split("/");
  const options = await body(request);
  if (!action) {
    const issuer = new Issuer(name, options);
    await issuer.rotate();
    issuers.set(name, issuer);
    return { issuer: issuer.url };
  }
  const issuer = issuers.get(name);
  switch (action) {
    case "rotate":
      await issuer.rotate(options.alg, options.overlap);
      return { kid: issuer.keys[0].kid };
    case "mode":
      issuer.mode = options.mode;
      return {};
    case "fetched":
      return issuer.fetched;
    // Signs any claims and header, with the issuer's current key, its last retired key, or a key that it never published.
    case "sign": {
      const key =
        options.key === "unknown" ? { ...issuer.keys[0], ...(await jose.generateKeyPair(issuer.alg)) }
        : options.key === "retired" ? issuer.retired.at(-1)
        : issuer.keys[0];
      const header = { alg: key.alg, kid: key.kid, typ: "at+jwt", ...options.header };
      for (const name of Object.keys(header)) if (header[name] === null) delete header[name];
      const now = Math.floor(Date.now() / 1000);
      const claims = { iss: issuer.url, sub: "alice", aud: "https://orders.example", iat: now, exp: now + 600, ...options.claims };
      for (const name of Object.keys(claims)) if (claims[name] === null) delete claims[name];
      // Compact serialization, because the JWT API would reject invalid claims such as a textual `exp`.
      const payload = new TextEncoder().encode(options.payload ?? JSON.stringify(claims));
      // The signer accepts only critical extensions that it is given as known ones.
      const crit = Object.fromEntries((header.crit ?? []).map((name) => [name, true]));
      return { token: await new jose.CompactSign(payload).setProtectedHeader(header).sign(key.privateKey, { crit }) };
    }
    case "public-key":
      return { pem: await jose.exportSPKI(issuer.keys[0].publicKey), kid: issuer.keys[0].kid };
  }
  throw new Error(`no such control: ${request.url}`);
}

const server = createServer(async (request, response) => {
  try {
    if (request.url.startsWith("/control/")) {
      const answer = JSON.stringify(await control(request));
      response.writeHead(200, { "content-type": "application/json" }).end(answer);
      return;
    }
    const issuer = issuers.get(request.url.split("/")[1]);
    if (issuer) await issuer.serve(request, response);
    else response.writeHead(404).end();
  } catch (error) {
    response.writeHead(500).end(String(error?.stack ?? error));
  }
});
server.listen(0, "127.0.0.1", () => {
  base = `http://127.0.0.1:${server.address().port}`;
  console.log(`base ${base}`);
});
