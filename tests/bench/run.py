#!/usr/bin/env python3
"""Measures CPU per request and memory of pairs of proxies, side by side in one run. See README.md beside this file."""

import argparse
import base64
import contextlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
POLICIES = 50
HOST = "orders.shop"
PATH = "/orders/1"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, **options).stdout


def wait_for(port, what, process=None):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            sys.exit(f"{what} exited with status {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    sys.exit(f"{what} does not listen on port {port}")


def wait_ready(port, what, process):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"{what} exited with status {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1):
            return
        time.sleep(0.05)
    sys.exit(f"{what} does not become ready")


class Lab:
    """The certificates, the token and its issuer, and the running processes."""

    def __init__(self, work, cores):
        self.work, self.cores, self.processes = work, cores, []
        self.certificates()
        self.issuer_port = free_port()
        self.issuer = f"http://127.0.0.1:{self.issuer_port}"
        self.token_issuer()

    def certificates(self):
        key = ["-pkeyopt", "ec_paramgen_curve:P-256", "-newkey", "ec", "-nodes"]
        w = self.work
        run("openssl", "req", "-x509", *key, "-keyout", w / "ca.key", "-out", w / "ca.pem", "-days", "2", "-subj", "/CN=bench")
        for name, account in (("client", "web"), ("server", "orders")):
            run("openssl", "req", *key, "-keyout", w / f"{name}.key", "-out", w / f"{name}.csr", "-subj", "/")
            (w / f"{name}.ext").write_text(
                f"subjectAltName=critical,URI:spiffe://bench.test/ns/shop/sa/{account},DNS:server\n"
                "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n")
            run("openssl", "x509", "-req", "-in", w / f"{name}.csr", "-CA", w / "ca.pem", "-CAkey", w / "ca.key",
                "-CAcreateserial", "-out", w / f"{name}.pem", "-days", "2", "-extfile", w / f"{name}.ext")
            (w / f"{name}.both").write_text((w / f"{name}.pem").read_text() + (w / f"{name}.key").read_text())

    def token_issuer(self):
        key, public = self.work / "token.key", self.work / "token.pub"
        run("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", key)
        run("openssl", "ec", "-in", key, "-pubout", "-out", public)
        point = run("openssl", "ec", "-in", key, "-pubout", "-outform", "DER")[-64:]
        jwk = {"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "bench",
               "x": b64(point[:32]), "y": b64(point[32:])}
        self.jwks = {"keys": [jwk]}
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": "user-1234", "aud": "orders", "exp": now + 7200, "iat": now - 5,
                  "scope": "read write", "client_id": "bench", "jti": "bench-1"}
        head = {"alg": "ES256", "typ": "at+jwt", "kid": "bench"}
        signed = b64(json.dumps(head).encode()) + "." + b64(json.dumps(claims).encode())
        der = run("openssl", "dgst", "-sha256", "-sign", key, input=signed.encode())
        self.token = signed + "." + b64(raw_signature(der))
        documents = {
            "/.well-known/openid-configuration": {"issuer": self.issuer, "jwks_uri": self.issuer + "/jwks"},
            "/jwks": self.jwks,
        }

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                document = documents.get(self.path)
                body = json.dumps(document or {}).encode()
                self.send_response(200 if document else 404)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", self.issuer_port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def start(self, name, *command, core, **options):
        log = open(self.work / f"{name}.log", "wb")
        pinned = ["taskset", "-c", str(core), *map(str, command)] if self.cores > 1 else list(map(str, command))
        process = subprocess.Popen(pinned, stdout=options.pop("stdout", log), stderr=log, **options)
        self.processes.append(process)
        return process

    def stop(self, *processes):
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def raw_signature(der):
    """Converts an ECDSA signature from DER to the JOSE form: r and s, 32 bytes each (RFC 7518 §3.4)."""
    at, parts = 2, []
    for _ in range(2):
        length = der[at + 1]
        parts.append(int.from_bytes(der[at + 2:at + 2 + length], "big").to_bytes(32, "big"))
        at += 2 + length
    return b"".join(parts)


def cpu_microseconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1_000_000 / TICKS


def resident_megabytes(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


# --- pairs: each starts two processes and returns (outbound, inbound, port of the outbound proxy, other processes) ---

def bare(lab, profile, app):
    if profile == "full":
        return None
    inner, outer = free_port(), free_port()
    program = lab.examples / "bare_pair"
    inbound = lab.start("bare-in", program, "in", lab.work, f"127.0.0.1:{inner}", f"127.0.0.1:{app}", core=1)
    wait_for(inner, "the bare inbound proxy", inbound)
    outbound = lab.start("bare-out", program, "out", lab.work, f"127.0.0.1:{outer}", f"127.0.0.1:{inner}", core=1)
    wait_for(outer, "the bare outbound proxy", outbound)
    return outbound, inbound, outer, []


def merlon(lab, profile, app):
    full = profile == "full"
    directory = lab.work / f"merlon-{profile}"
    resources = directory / "resources"
    resources.mkdir(parents=True)
    mesh_in = free_port()
    text = [
        "kind: MeshConfig\nmetadata: {name: mesh, namespace: merlon-system}\nspec: {trustDomain: bench.test}\n",
        "kind: Workload\nmetadata: {name: web, namespace: shop, labels: {app: web}}\nspec: {serviceAccount: web}\n",
        "kind: Workload\nmetadata: {name: orders, namespace: shop, labels: {app: orders}}\n"
        f"spec: {{serviceAccount: orders, meshAddress: '127.0.0.1:{mesh_in}'}}\n",
        "kind: Service\nmetadata: {name: orders, namespace: shop}\n"
        f"spec: {{selector: {{app: orders}}, ports: [{{port: 80, targetPort: {app}}}]}}\n",
    ]
    if full:
        policies = []
        for n in range(POLICIES - 1):
            policies.append(f'@id("other-{n}") permit (principal == Workload::"shop/web", action == Action::"GET", '
                            f'resource == Service::"shop/orders") when {{ context.path like "/other-{n}/*" }};')
        policies.append('@id("read-orders") permit (principal == Workload::"shop/web", action == Action::"GET", '
                        'resource == Service::"shop/orders") when { context.path like "/orders/*" && context has user };')
        text += [
            "kind: RequestAuthentication\nmetadata: {name: orders, namespace: shop}\nspec:\n"
            "  targetRefs: [{kind: Service, name: orders}]\n"
            f"  issuers: [{{name: bench, issuer: '{lab.issuer}', audiences: [orders], algorithms: [ES256]}}]\n",
            "kind: RateLimit\nmetadata: {name: orders, namespace: shop}\nspec:\n"
            "  targetRefs: [{kind: Service, name: orders}]\n"
            "  limits: [{name: per-caller, rate: {requests: 1000000, per: 1s}}]\n",
        ]
    else:
        policies = ['@id("all") @reason("The benchmark forwards everything.") permit (principal, action, resource);']
    body = "\n".join("    " + line for line in policies)
    text.append("kind: AuthorizationPolicy\nmetadata: {name: orders, namespace: shop}\nspec:\n"
                "  targetRefs: [{kind: Service, name: orders}]\n  policies: |\n" + body + "\n")
    (resources / "mesh.yaml").write_text("---\n".join("apiVersion: merlon.io/v1alpha1\n" + part for part in text))

    control, metrics, sock = free_port(), free_port(), directory / "control-plane.sock"
    plane = lab.start(f"merlon-{profile}-control-plane", lab.programs / "merlon-control-plane", "--config", resources,
                      "--listen", f"127.0.0.1:{control}", "--admin", f"127.0.0.1:{metrics}", "--admin-socket", sock,
                      "--state-dir", directory / "control-plane", core=0)
    wait_for(control, "the control plane", plane)
    proxies, outer = [], free_port()
    for name, ports in (("orders", {"--inbound": mesh_in, "--outbound": free_port()}),
                        ("web", {"--inbound": free_port(), "--outbound": outer})):
        joined = run(lab.programs / "merlon", "token", "create", "--identity", f"shop/{name}",
                     "--control-plane-socket", sock).decode().strip()
        admin = free_port()
        proxy = lab.start(f"merlon-{profile}-{name}", lab.programs / "merlon-proxy", "--identity", f"shop/{name}",
                          "--control-plane", f"https://127.0.0.1:{control}", "--join-token", joined,
                          "--state-dir", directory / name, "--admin", f"127.0.0.1:{admin}", "--workers", "1",
                          "--access-log", "all" if full else "off",
                          *[part for flag, port in ports.items() for part in (flag, f"127.0.0.1:{port}")],
                          core=1, stdout=subprocess.DEVNULL)
        wait_ready(admin, f"the proxy of {name}", proxy)
        proxies.append(proxy)
    return proxies[1], proxies[0], outer, [plane]


def envoy_tls(lab, side):
    return {"common_tls_context": {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificates": [{"certificate_chain": {"filename": str(lab.work / f"{side}.pem")},
                              "private_key": {"filename": str(lab.work / f"{side}.key")}}],
        "validation_context": {"trusted_ca": {"filename": str(lab.work / "ca.pem")}}}}


def envoy_cluster(name, port, **more):
    return {"name": name, "connect_timeout": "2s", "type": "STATIC", **more, "load_assignment": {
        "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
            "socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]}}


def envoy_listener(port, filters, cluster, codec, transport=None, log=False):
    base = "type.googleapis.com/envoy.extensions."
    manager = {
        "@type": base + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench", "codec_type": codec,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}]},
        "http_filters": [*filters, {"name": "router", "typed_config": {"@type": base + "filters.http.router.v3.Router"}}]}
    if log:
        manager["access_log"] = [{"name": "file", "typed_config": {
            "@type": base + "access_loggers.file.v3.FileAccessLog", "path": "/dev/null", "log_format": {"json_format": {
                "ts": "%START_TIME%", "method": "%REQ(:METHOD)%", "path": "%REQ(:PATH)%", "status": "%RESPONSE_CODE%",
                "src": "%DOWNSTREAM_PEER_URI_SAN%", "duration": "%DURATION%", "bytes": "%BYTES_SENT%"}}}}]
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    if transport:
        chain["transport_socket"] = {"name": "tls", "typed_config": {
            "@type": base + "transport_sockets.tls.v3.DownstreamTlsContext", "require_client_certificate": True, **transport}}
    return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}, "filter_chains": [chain]}


def envoy_checks(lab):
    base = "type.googleapis.com/envoy.extensions.filters.http."
    web = {"authenticated": {"principal_name": {"exact": "spiffe://bench.test/ns/shop/sa/web"}}}
    policies = {f"other-{n:02}": {"permissions": [{"and_rules": {"rules": [
        {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
        {"url_path": {"path": {"prefix": f"/other-{n}/"}}}]}}], "principals": [web]} for n in range(POLICIES - 1)}
    policies["read-orders"] = {"permissions": [{"and_rules": {"rules": [
        {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
        {"url_path": {"path": {"prefix": "/orders/"}}}]}}], "principals": [web]}
    bucket = {"max_tokens": 1_000_000, "tokens_per_fill": 1_000_000, "fill_interval": "1s"}
    whole = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return [
        {"name": "limit", "typed_config": {"@type": base + "local_ratelimit.v3.LocalRateLimit", "stat_prefix": "limit",
                                           "token_bucket": bucket, "filter_enabled": whole, "filter_enforced": whole}},
        {"name": "jwt", "typed_config": {"@type": base + "jwt_authn.v3.JwtAuthentication", "providers": {"bench": {
            "issuer": lab.issuer, "audiences": ["orders"], "local_jwks": {"inline_string": json.dumps(lab.jwks)},
            "jwt_cache_config": {"jwt_cache_size": 100}}},
            "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}]}},
        {"name": "rbac", "typed_config": {"@type": base + "rbac.v3.RBAC", "rules": {"action": "ALLOW", "policies": policies}}},
    ]


def envoy(lab, profile, app):
    if not lab.envoy:
        return None
    inner, outer, full = free_port(), free_port(), profile == "full"
    h2 = {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}}}
    tls = {"transport_socket": {"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        **envoy_tls(lab, "client")}}}
    configurations = {
        "in": {"listeners": [envoy_listener(inner, envoy_checks(lab) if full else [], "app", "HTTP2",
                                            envoy_tls(lab, "server"), log=full)],
               "clusters": [envoy_cluster("app", app)]},
        "out": {"listeners": [envoy_listener(outer, [], "peer", "HTTP1", log=full)],
                "clusters": [envoy_cluster("peer", inner, **h2, **tls)]},
    }
    processes = {}
    for n, (side, resources) in enumerate(configurations.items()):
        file = lab.work / f"envoy-{profile}-{side}.json"
        file.write_text(json.dumps({"static_resources": resources}))
        processes[side] = lab.start(f"envoy-{profile}-{side}", lab.envoy, "-c", file, "--concurrency", "1",
                                    "--log-level", "warn", "--base-id", os.getpid() % 30_000 * 4 + n, core=1)
        wait_for(inner if side == "in" else outer, f"envoy ({side})", processes[side])
    return processes["out"], processes["in"], outer, []


def haproxy(lab, profile, app):
    if not lab.haproxy:
        return None
    inner, outer, full = free_port(), free_port(), profile == "full"
    common = ("global\n  nbthread 1\n  log /dev/null local0\ndefaults\n  mode http\n  timeout connect 2s\n"
              "  timeout client 60s\n  timeout server 60s\n  http-reuse always\n")
    checks = ""
    if full:
        checks = ("  stick-table type ip size 10k expire 10s store http_req_rate(1s)\n  http-request track-sc0 src\n"
                  "  http-request deny deny_status 429 if { sc_http_req_rate(0) gt 1000000 }\n"
                  "  http-request set-var(txn.alg) http_auth_bearer,jwt_header_query('$.alg')\n"
                  "  http-request set-var(txn.iss) http_auth_bearer,jwt_payload_query('$.iss')\n"
                  "  http-request set-var(txn.aud) http_auth_bearer,jwt_payload_query('$.aud')\n"
                  "  http-request deny deny_status 401 unless { var(txn.alg) -m str ES256 }\n"
                  f"  http-request deny deny_status 401 unless {{ var(txn.iss) -m str {lab.issuer} }}\n"
                  "  http-request deny deny_status 401 unless { var(txn.aud) -m str orders }\n"
                  "  http-request deny deny_status 401 unless { http_auth_bearer,"
                  f"jwt_verify(txn.alg,\"{lab.work}/token.pub\") -m int 1 }}\n")
        checks += "".join(f"  acl permitted path_beg /other-{n}/\n" for n in range(POLICIES - 1))
        checks += "  acl permitted path_beg /orders/\n  http-request deny deny_status 403 unless METH_GET permitted\n"
    log = "  option httplog\n  log global\n" if full else ""
    configurations = {
        "in": common + f"frontend in\n  bind 127.0.0.1:{inner} ssl crt {lab.work}/server.both ca-file {lab.work}/ca.pem "
              f"verify required alpn h2 ssl-min-ver TLSv1.3\n{log}{checks}  default_backend app\n"
              f"backend app\n  server app 127.0.0.1:{app}\n",
        "out": common + f"frontend out\n  bind 127.0.0.1:{outer}\n{log}  default_backend peer\n"
               f"backend peer\n  server peer 127.0.0.1:{inner} ssl crt {lab.work}/client.both ca-file {lab.work}/ca.pem "
               "verify required alpn h2 ssl-min-ver TLSv1.3\n",
    }
    processes = {}
    for side, text in configurations.items():
        file = lab.work / f"haproxy-{profile}-{side}.cfg"
        file.write_text(text)
        processes[side] = lab.start(f"haproxy-{profile}-{side}", lab.haproxy, "-db", "-f", file, core=1)
        wait_for(inner if side == "in" else outer, f"haproxy ({side})", processes[side])
    return processes["out"], processes["in"], outer, []


PAIRS = {"merlon": merlon, "bare": bare, "envoy": envoy, "haproxy": haproxy}


# --- measurement -----------------------------------------------------------------------------------------------------

def load(lab, port, seconds, connections):
    """Sends requests for `seconds`; returns the number of 200 responses and wrk's output."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", f"Host: {HOST}",
               "-H", f"Authorization: Bearer {lab.token}", f"http://127.0.0.1:{port}{PATH}"]
    if lab.cores > 1:
        command = ["taskset", "-c", "0", *command]
    output = run(*command).decode()
    requests = next(int(line.split()[0]) for line in output.splitlines() if "requests in" in line)
    if "Non-2xx" in output or "Socket errors" in output:
        sys.exit(f"some requests failed, so the measurement is invalid:\n{output}")
    return requests, output


def measure(lab, name, profile, app, rounds, seconds, connections):
    started = PAIRS[name](lab, profile, app)
    if started is None:
        return None
    outbound, inbound, port, others = started
    probe = run("curl", "-sS", "-i", "-m", "10", "-H", f"Host: {HOST}", "-H", f"Authorization: Bearer {lab.token}",
                f"http://127.0.0.1:{port}{PATH}").decode()
    if " 200 " not in probe.splitlines()[0]:
        sys.exit(f"{name} ({profile}) does not answer with 200; logs are in {lab.work}:\n{probe}")
    idle = [resident_megabytes(p.pid) for p in (outbound, inbound)]
    load(lab, port, 2, connections)
    rows = []
    for _ in range(rounds):
        before = [cpu_microseconds(p.pid) for p in (outbound, inbound)]
        requests, output = load(lab, port, seconds, connections)
        spent = [(cpu_microseconds(p.pid) - b) / requests for p, b in zip((outbound, inbound), before)]
        latency = {line.split()[0]: line.split()[1] for line in output.splitlines() if line.strip().startswith(("50%", "99%"))}
        rows.append((sum(spent), *spent, requests / seconds, latency.get("50%"), latency.get("99%")))
    busy = [resident_megabytes(p.pid) for p in (outbound, inbound)]
    lab.stop(outbound, inbound, *others)
    middle = sorted(rows)[len(rows) // 2]
    return {"pair": name, "profile": profile, "out_us": middle[1], "in_us": middle[2], "sum_us": middle[0],
            "spread": [min(r[0] for r in rows), max(r[0] for r in rows)], "rps": statistics.median(r[3] for r in rows),
            "p50": middle[4], "p99": middle[5], "idle_mb": idle, "busy_mb": busy}


def table(results):
    lines = ["| profile | pair | CPU µs per request, out + in = sum (lowest–highest round) | requests/s | p50 / p99 | memory MB out / in, idle | after load |",
             "|---|---|---|---|---|---|---|"]
    for r in results:
        lines.append(f"| {r['profile']} | {r['pair']} | {r['out_us']:.1f} + {r['in_us']:.1f} = **{r['sum_us']:.1f}** "
                     f"({r['spread'][0]:.1f}–{r['spread'][1]:.1f}) | {r['rps']:,.0f} | {r['p50']} / {r['p99']} "
                     f"| {r['idle_mb'][0]:.1f} / {r['idle_mb'][1]:.1f} | {r['busy_mb'][0]:.1f} / {r['busy_mb'][1]:.1f} |")
    return "\n".join(lines)


def machine():
    cpu = next((l.split(":")[1].strip() for l in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if "model name" in l), "?")
    return f"{cpu}, {os.cpu_count()} cores, Linux {os.uname().release}"


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--programs", type=pathlib.Path, required=True, help="folder with merlon, merlon-proxy and merlon-control-plane")
    options.add_argument("--envoy", help="path of the envoy program (default: skip Envoy)")
    options.add_argument("--pairs", default=",".join(PAIRS))
    options.add_argument("--profiles", default="forward,full")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=int, default=8)
    options.add_argument("--connections", type=int, default=64)
    options.add_argument("--json", type=pathlib.Path, help="also write the results to this file")
    options.add_argument("--keep", action="store_true", help="keep the working folder with the logs")
    chosen = options.parse_args()
    for tool in ("wrk", "openssl", "curl", "taskset"):
        if not shutil.which(tool):
            sys.exit(f"{tool} is not installed; on Debian: apt-get install wrk openssl curl util-linux")
    work = pathlib.Path(tempfile.mkdtemp(prefix="merlon-bench-"))
    lab = Lab(work, os.cpu_count())
    lab.programs, lab.examples = chosen.programs.resolve(), chosen.programs.resolve() / "examples"
    lab.envoy, lab.haproxy = chosen.envoy, shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    results, good = [], False
    try:
        app = free_port()
        lab.start("app", lab.examples / "bench_app", app, core=0)
        wait_for(app, "the program")
        for profile in chosen.profiles.split(","):
            for name in chosen.pairs.split(","):
                row = measure(lab, name, profile, app, chosen.rounds, chosen.seconds, chosen.connections)
                if row:
                    results.append(row)
                    print(f"{profile:8} {name:8} {row['sum_us']:6.1f} µs per request", file=sys.stderr, flush=True)
        good = True
    finally:
        lab.stop(*lab.processes)
        if good and not chosen.keep:
            shutil.rmtree(work)
        else:
            print(f"logs are in {work}", file=sys.stderr)
    print(f"Machine: {machine()}. {chosen.rounds} rounds of {chosen.seconds} s, {chosen.connections} connections.\n")
    print(table(results))
    if chosen.json:
        chosen.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
