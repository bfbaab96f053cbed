"""The load generators, one thread each on the load core, and what they report in one shape."""

import json
import re
import subprocess
from pathlib import Path

from harness import client, process
from harness.proxies import BENCH
from harness.scenarios import H2_CONNECTIONS, H2_STREAMS, SHORT_TURN


def run(scenario, proxy, cookies, seconds, run_dir):
    """{"requests", "seconds", "p50" and "p99" in microseconds, "errors"}"""
    tool = {"wrk": wrk, "h2load": h2load, "h2load-h1": short}[scenario.tool]
    return tool(scenario, proxy, cookies, seconds, run_dir)


def output(command, seconds):
    running = process.start(command, process.LOAD_CORE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        text, _ = running.communicate(timeout=seconds + 30)
    finally:
        if running.poll() is None:
            process.stop(running)
    if running.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{text}")
    return text


def wrk(scenario, proxy, cookies, seconds, _run_dir):
    command = ["wrk", "-t1", f"-c{scenario.connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(BENCH / "load.lua"),
               f"{scenario.scheme}://127.0.0.1:{proxy.port}", "--", scenario.path,
               str(scenario.pause), *cookies]
    return json.loads(output(command, seconds).strip().splitlines()[-1])


def h2load(scenario, proxy, cookies, seconds, run_dir):
    """One client id and one cookie: h2load sends the same headers with every request."""
    command = [f"-D{seconds}", f"-c{H2_CONNECTIONS}", f"-m{H2_STREAMS}"]
    return run_h2load(command, scenario, proxy, cookies, seconds, run_dir)


def short(scenario, proxy, cookies, _seconds, run_dir):
    """So many requests over HTTP/1.1, however long they take."""
    command = ["--h1", f"-n{SHORT_TURN}", f"-c{scenario.connections}", "-H", "user-agent: bench", "-H", "accept: */*"]
    return run_h2load(command, scenario, proxy, cookies, 0, run_dir)


def run_h2load(options, scenario, proxy, cookies, seconds, run_dir):
    log = Path(run_dir) / "h2load.log"
    log.unlink(missing_ok=True)
    command = ["h2load", "-t1", *options, f"--log-file={log}",
               "-H", "x-client-id: client-1", "-H", f"traceparent: {client.TRACEPARENT}"]
    if cookies:
        command += ["-H", f"cookie: {cookies[0]}"]
    url = f"{scenario.scheme}://127.0.0.1:{proxy.port}{scenario.path}"
    text = output([*command, url], seconds)
    done, failed = re.search(r"(\d+) done, \d+ succeeded, (\d+) failed", text).groups()
    not_2xx = sum(map(int, re.search(r"status codes: \d+ 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text).groups()))
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    latencies = sorted(int(line[2]) for line in lines)
    took = (max(int(line[0]) + int(line[2]) for line in lines) - min(int(line[0]) for line in lines)) / 1e6
    return {
        "requests": int(done), "seconds": float(seconds) or took, "errors": int(failed) + not_2xx,
        "p50": latencies[len(latencies) // 2], "p99": latencies[len(latencies) * 99 // 100],
    }
