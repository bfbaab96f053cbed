"""A plain client: checks that a proxy does what is measured, collects cookies, holds idle connections."""

import http.client
import re
import socket
import ssl
import subprocess
import time

CLIENTS = 16
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def get(proxy, path="/", client=1, cookie=None):
    """Status, headers and body of one GET, in the protocol the proxy's listener speaks."""
    headers = {"X-Client-Id": f"client-{client}", "traceparent": TRACEPARENT}
    if cookie:
        headers["Cookie"] = cookie
    if proxy.mode == "h2c":
        return get_by_curl(proxy, path, headers)
    if proxy.mode == "tls":
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", proxy.port, timeout=5, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def get_by_curl(proxy, path, headers):
    arguments = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    command = ["curl", "-si", "--max-time", "5", "--http2-prior-knowledge", *arguments,
               f"http://127.0.0.1:{proxy.port}{path}"]
    head, _, body = subprocess.run(command, check=True, capture_output=True).stdout.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    found = http.client.HTTPMessage()
    for field in fields:
        name, _, value = field.partition(": ")
        found[name] = value
    return int(status.split()[1]), found, body


def cookies(proxy):
    """The session cookie of each client; empty where the proxy gives none."""
    found = []
    for client in range(1, CLIENTS + 1):
        header = get(proxy, client=client)[1]["Set-Cookie"]
        if header:
            found.append(header.split(";")[0])
    return found


def check(proxy, given):
    """Fails unless the proxy does what every proxy here must: a benchmark of a broken one is worth nothing."""
    def demand(holds, what):
        if not holds:
            raise RuntimeError(f"{proxy.name} ({proxy.mode}): {what}")
    status, _, body = get(proxy)
    demand(status == 200 and len(body) == 30, f"answers {status} with {len(body)} bytes")
    demand(len(get(proxy, "/large")[2]) == 100 * 1024, "does not answer 100 KiB")
    if proxy.name == "relay":
        return
    seen = get(proxy, "/echo")[2].decode().lower()
    # Envoy writes its own address where the client is on loopback: any will do.
    for header in ("x-forwarded-for: ", "x-forwarded-proto: http", "x-request-id: ", f"traceparent: {TRACEPARENT}"):
        demand(f"\r\n{header}" in seen, f"the worker does not see {header}")
    demand(len(given) == CLIENTS, f"gave {len(given)} cookies to {CLIENTS} new clients")
    homes = [{get(proxy, cookie=cookie)[2] for _ in range(3)} for cookie in given[:8]]
    demand(all(len(home) == 1 for home in homes), "does not keep a session on its worker")
    demand(len(set.union(*homes)) > 1, "keeps every session on one worker")
    metrics = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=5)
    metrics.request("GET", "/stats" if proxy.name == "envoy" else "/metrics")
    demand(metrics.getresponse().status == 200, "has no metrics")
    metrics.close()


def check_pool(proxy):
    """Fails unless a proxy of a pool answers as its workers do."""
    for one in range(8):
        status, _, body = get(proxy, client=one)
        if status != 200 or len(body) != 30:
            raise RuntimeError(f"{proxy.name}: answers {status} with {len(body)} bytes")


def restart(ports):
    """Lets the workers that change with time begin anew."""
    for port in ports:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/restart", headers={"Connection": "close"})
        connection.getresponse().read()
        connection.close()


def worker_requests(proxy):
    """Answers of each worker, as our metrics count them."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.admin_port, timeout=5)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    counts = {}
    for name, count in re.findall(r'^outrigger_worker_requests_total\{worker="([^"]+)",code="\d+"\} (\d+)', text, re.M):
        counts[name] = counts.get(name, 0) + int(count)
    return counts


def hold_idle(proxy, count, measure):
    """Calls `measure` while `count` connections, each of which made one request, are open and idle."""
    request = b"GET / HTTP/1.1\r\nHost: bench\r\nX-Client-Id: client-1\r\n\r\n"
    context = ssl._create_unverified_context() if proxy.mode == "tls" else None
    held = []
    try:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", proxy.port), 5)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            held.append(connection)
            if context:
                held[-1] = connection = context.wrap_socket(connection)
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b".\n"):
                part = connection.recv(4096)
                if not part:
                    raise RuntimeError(f"{proxy.name} closed idle connection {len(held)}")
                answer += part
        time.sleep(1)
        return measure()
    finally:
        for connection in held:
            connection.close()
