"""What is measured: each scenario is one kind of traffic, the same for every proxy."""

from dataclasses import dataclass

CONNECTIONS = 64
H2_CONNECTIONS, H2_STREAMS = 16, 4


@dataclass(frozen=True)
class Scenario:
    name: str
    what: str
    mode: str  # what the proxy's listener speaks: h1, h2c or tls
    tool: str  # wrk, h2load, or idle
    path: str = "/"
    pause: int = 0  # mean pause of a connection between requests, in ms

    @property
    def scheme(self):
        return "https" if self.mode == "tls" else "http"

    @property
    def relayed(self):
        """Whether a raw relay can carry it: the workers speak plain HTTP/1.1 only."""
        return self.mode == "h1"


SCENARIOS = [
    Scenario("h1-small", "HTTP/1.1, 64 keep-alive connections, 30-byte bodies", "h1", "wrk"),
    Scenario("h1-100k", "HTTP/1.1, 64 keep-alive connections, 100 KiB bodies", "h1", "wrk", "/large"),
    Scenario("tls-h1-small", "TLS 1.3, HTTP/1.1, 64 keep-alive connections, 30-byte bodies", "tls", "wrk"),
    Scenario("h2c-small", "HTTP/2 without TLS, 16 connections with 4 streams, 30-byte bodies", "h2c", "h2load"),
    Scenario("h2-tls-small", "HTTP/2 over TLS 1.3, 16 connections with 4 streams, 30-byte bodies", "tls", "h2load"),
    Scenario("h1-paced", "HTTP/1.1, 64 connections that each pause for 1–15 ms between requests, 30-byte bodies",
             "h1", "wrk", pause=8),
    Scenario("idle", "memory: just started, and with idle keep-alive connections", "h1", "idle"),
    Scenario("idle-tls", "memory: just started, and with idle keep-alive TLS connections", "tls", "idle"),
]
