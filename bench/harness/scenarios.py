"""What is measured: each scenario is one kind of traffic, the same for every proxy."""

from dataclasses import dataclass

H2_CONNECTIONS, H2_STREAMS = 16, 4
# Requests of a turn that is over before the machine changes.
SHORT_TURN = 6000

# Our strategies, as a policy says them. Where the default waits for minutes a turn would be over.
STRATEGIES = {
    "RoundRobin": "{type: RoundRobin}",
    "Random": "{type: Random}",
    "LeastRequest": "{type: LeastRequest}",
    "PeakEwma": "{type: PeakEwma}",
    "Predictive": "{type: Predictive}",
    "BackendUtilization": "{type: BackendUtilization, backendUtilization: {blackoutPeriod: 1s}}",
    "ConsistentHash": "{type: ConsistentHash, consistentHash: {type: Header, header: X-Client-Id}}",
    "CostAware": "{type: CostAware}",
}
# What a policy can say of workers that falter: all of it, and none.
GUARDS = {
    "with": """
  circuitBreaker:
    worker: {consecutiveFailures: 5, failureRateThreshold: 50, slidingWindowSize: 10s, waitDurationInOpenState: 5s}
    route: {failureRateThreshold: 50, slowCallRateThreshold: 80, slowCallDurationThreshold: 5s}
    service: {failureRateThreshold: 50, slidingWindowType: CountBased, slidingWindowSize: 1000}
  retry:
    numRetries: 2
    retryOn: {triggers: [ConnectFailure, Reset, GatewayError]}
    budget: {percent: 20, interval: 10s}
  healthCheck:
    active: {path: /healthz, interval: 2s, timeout: 1s, unhealthyThreshold: 3, healthyThreshold: 1}""",
    "without": """
  retry: {numRetries: 0}""",
}
OURS = tuple(f"outrigger:{name}" for name in STRATEGIES)
OF_POOLS = tuple(f"outrigger:{name}" for name in
                 ("RoundRobin", "Random", "LeastRequest", "PeakEwma", "Predictive", "BackendUtilization"))
PEERS = ("haproxy:leastconn", "haproxy:random(2)", "envoy:LEAST_REQUEST", "envoy:RANDOM")
# A process with one thread: 1 ms for a request, 15 ms for one in 33.
WELL = ":1000"
# wrk counts an answer that takes longer than two of its connection's mean intervals as several: these are long.
PACED = "1,000 requests/s by 256 connections that pause, half of what three of them can do"


@dataclass(frozen=True)
class Scenario:
    name: str
    what: str
    mode: str  # what the proxy's listener speaks: h1, h2c or tls
    tool: str  # wrk, h2load, h2load-h1 or idle
    path: str = "/"
    pause: int = 0  # mean pause of a connection between requests, in ms
    connections: int = 64
    workers: tuple = ("",) * 4  # how each answers: bench/worker/worker.c
    contestants: tuple = ()  # proxies and what each balances by; none: every proxy, as bench/proxies has it
    least_seconds: int = 0  # a turn is at least so long
    folder: str = "pool"  # where the contestants' configurations are: bench/proxies/FOLDER
    # Measured in pairs, in turns too short for the machine to change: each contestant beside this one, or beside itself over
    # so many workers.
    beside: str | int | None = None

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
    Scenario("pool-healthy", f"four workers that answer one request at a time, 1 ms each and 15 ms one time in 33; {PACED}",
             "h1", "wrk", pause=250, connections=256, workers=(WELL,) * 4, contestants=OF_POOLS + PEERS),
    Scenario("pool-slow", "the same, and one of the four 10 times slower",
             "h1", "wrk", pause=250, connections=256, workers=(WELL,) * 3 + (":10000",), contestants=OF_POOLS + PEERS),
    Scenario("pool-full", "the four alike, and 8 connections without a pause: what the pool can do (wrk counts an answer that "
             "takes long as many, so p99 is not what requests saw)",
             "h1", "wrk", connections=8, workers=(WELL,) * 4, contestants=OF_POOLS + PEERS),
    Scenario("pool-degrading", "as pool-healthy, and one of the four takes 10 % of a millisecond longer each second",
             "h1", "wrk", pause=250, connections=256, workers=(WELL,) * 3 + (":1000:10",), least_seconds=15,
             contestants=("outrigger:Predictive", "outrigger:PeakEwma", "outrigger:LeastRequest", "outrigger:RoundRobin")),
    Scenario("strategies-4", f"each strategy beside round robin, over 4 workers, in turns of {SHORT_TURN:,} requests that "
             "alternate; HTTP/1.1, 64 connections, 30-byte bodies", "h1", "h2load-h1", beside=OURS[0], contestants=OURS[1:]),
    Scenario("workers-256", f"each strategy over 4 workers and over 256, in turns of {SHORT_TURN:,} requests that alternate; "
             "HTTP/1.1, 64 connections, 30-byte bodies", "h1", "h2load-h1", beside=256,
             contestants=OURS + ("haproxy:roundrobin", "haproxy:leastconn", "haproxy:random(1)")),
    Scenario("breakers", "breakers at three levels, retries within a budget and health checks, and none of it; "
             "HTTP/1.1, 64 keep-alive connections, 30-byte bodies", "h1", "wrk", folder="breakers",
             contestants=("outrigger:without", "outrigger:with", "haproxy:observe layer7", "envoy:outlier detection")),
    Scenario("idle", "memory: just started, and with idle keep-alive connections", "h1", "idle"),
    Scenario("idle-tls", "memory: just started, and with idle keep-alive TLS connections", "tls", "idle"),
]
