"""The proxies: rendering their configuration, starting and stopping them.

A proxy is `bench/proxies/NAME.sh`, or for a contestant `NAME:HOW` of a scenario `bench/proxies/FOLDER/NAME.sh` with the
scenario's folder, which is executed with the settings in its environment and must stay in the foreground. Every other file of that directory is a configuration: `@NAME@` in it is replaced by the setting.
"""

import os
import re
import socket
import subprocess
import time
from pathlib import Path

from harness import process
from harness.scenarios import GUARDS, STRATEGIES

BENCH = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("OUTRIGGER_BENCH_CACHE", Path.home() / ".cache/outrigger-bench"))

OURS = "outrigger"
NAMES = [OURS, "haproxy", "nginx", "envoy", "relay"]

ENVOY_TLS = """transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_params: {tls_maximum_protocol_version: TLSv1_3}
            tls_certificates:
            - certificate_chain: {filename: "%s"}
              private_key: {filename: "%s"}"""


def our_binary():
    target = os.environ.get("CARGO_TARGET_DIR", BENCH.parent / "target")
    return os.environ.get("OUTRIGGER_PROXY", f"{target}/release/outrigger-proxy")


given = set()


def free_ports(count):
    """Ports on which nobody listens, and none that was given before: two proxies on one would share its requests."""
    sockets = []
    while len(sockets) < count:
        sockets.append(socket.create_server(("127.0.0.1", 0)))
        if sockets[-1].getsockname()[1] in given:
            sockets.pop().close()
    ports = [s.getsockname()[1] for s in sockets]
    given.update(ports)
    for s in sockets:
        s.close()
    return ports


ENVOY_ENDPOINT = "\n        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}"


def pool(how, workers):
    """What the configurations of contestants say: how they treat the workers, and the workers."""
    return {
        "BALANCE": STRATEGIES.get(how, how),
        "GUARD": GUARDS.get(how, ""),
        "OUR_WORKERS": ",".join(f"worker-{i}=127.0.0.1:{port}" for i, port in enumerate(workers, 1)),
        "HAPROXY_SERVERS": "\n".join(f"    server worker-{i} 127.0.0.1:{port}" for i, port in enumerate(workers, 1)),
        "ENVOY_ENDPOINTS": "".join(ENVOY_ENDPOINT % port for port in workers),
    }


def settings(mode, run_dir, workers):
    port, admin_port = free_ports(2)
    tls = mode == "tls"
    certificate, key = CACHE / "tls.crt", CACHE / "tls.key"
    found = {
        "RUN_DIR": run_dir, "BENCH_CACHE": CACHE, "OUTRIGGER_PROXY": our_binary(),
        "PORT": port, "ADMIN_PORT": admin_port,
        "TLS": int(tls), "TLS_CERT": certificate, "TLS_KEY": key,
        "HAPROXY_TLS": f"ssl crt {CACHE}/tls.pem alpn h2,http/1.1" if tls else "",
        "NGINX_LISTEN": {"h1": "", "h2c": "http2", "tls": "ssl http2"}[mode],
        "ENVOY_TLS": ENVOY_TLS % (certificate, key) if tls else "",
    }
    found.update({f"WORKER_{letter}": worker for letter, worker in zip("ABCD", workers)})
    return {name: str(value) for name, value in found.items()}


class Proxy:
    """A running proxy."""

    def __init__(self, name, mode, run_dir, workers, folder):
        base, _, how = name.partition(":")
        run_dir = Path(run_dir) / f"{re.sub('[^A-Za-z0-9]', '-', name)}-{mode}-{len(workers)}"
        run_dir.mkdir(exist_ok=True)
        run_dir.chmod(0o755)  # nginx's worker runs as another user
        env = settings(mode, run_dir, workers) | pool(how, workers)
        templates = BENCH / "proxies" / (folder if how else "")
        for template in templates.glob(f"{base}.*"):
            rendered = re.sub(r"@([A-Z_]+)@", lambda match: env[match[1]], template.read_text())
            (run_dir / template.name).write_text(rendered)
        self.name, self.mode, self.port, self.admin_port = name, mode, int(env["PORT"]), int(env["ADMIN_PORT"])
        self.log = run_dir / "log"
        with self.log.open("wb") as log:
            self.process = process.start(["sh", templates / f"{base}.sh"], process.PROXY_CORE,
                                         env=os.environ | env, stdout=log, stderr=subprocess.STDOUT)

    @property
    def pid(self):
        return self.process.pid

    def wait_until_it_listens(self, seconds=15):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"{self.name} does not listen:\n{self.log.read_text()[-2000:]}")

    def stop(self):
        process.stop(self.process)


class Workers:
    """The workers: one process, a port each, on the load generator's core."""

    def __init__(self, manners):
        self.ports = free_ports(len(manners))
        ports = [f"{port}{manner}" for port, manner in zip(self.ports, manners)]
        self.process = process.start([CACHE / "worker", *ports], process.LOAD_CORE)

    def stop(self):
        process.stop(self.process)
