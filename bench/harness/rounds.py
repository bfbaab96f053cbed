"""One scenario: every proxy started afresh, then rounds in which each takes its turn."""

import sys
import time

from harness import client, load, process
from harness.proxies import Proxy

WARM_UP_SECONDS = 1


def say(text):
    print(text, file=sys.stderr, flush=True)


def measure(scenario, names, options, run_dir, workers):
    """{proxy name: {"rounds": [...], "memory": {...}}}"""
    proxies = []
    try:
        for name in names:
            if name != "relay" or scenario.relayed:
                proxies.append(Proxy(name, scenario.mode, run_dir, workers.ports))
        for proxy in proxies:
            proxy.wait_until_it_listens()
        time.sleep(2)  # the first health checks
        idle = {proxy.name: process.memory_kib(proxy.pid) for proxy in proxies}
        results = {proxy.name: {"rounds": [], "memory": {"idle": idle[proxy.name]}} for proxy in proxies}
        of_scenario = hold_connections if scenario.tool == "idle" else run_rounds
        of_scenario(scenario, proxies, options, run_dir, results)
        return results
    finally:
        for proxy in proxies:
            proxy.stop()


def hold_connections(scenario, proxies, options, _run_dir, results):
    for proxy in proxies:
        memory = results[proxy.name]["memory"]
        held = client.hold_idle(proxy, options.idle_connections, lambda: process.memory_kib(proxy.pid))
        memory["held"] = held
        memory["per_connection"] = (held["pss"] - memory["idle"]["pss"]) / options.idle_connections
        say(f"{scenario.name:13} {proxy.name:10} {memory['per_connection']:6.2f} KiB per idle connection")


def run_rounds(scenario, proxies, options, run_dir, results):
    cookies = {}
    for proxy in proxies:
        cookies[proxy.name] = client.cookies(proxy)
        client.check(proxy, cookies[proxy.name])
        load.run(scenario, proxy, cookies[proxy.name], WARM_UP_SECONDS, run_dir)
    for turn in range(options.rounds):
        first = turn % len(proxies)
        for proxy in proxies[first:] + proxies[:first]:
            found = one_turn(scenario, proxy, cookies[proxy.name], options.seconds, run_dir)
            results[proxy.name]["rounds"].append(found)
            say(f"{scenario.name:13} {proxy.name:10} {found['rps']:8.0f} requests/s {found['cpu_us']:7.2f} µs CPU"
                f"  core {found['core']:.0%}, others on it {found['others']:.0%}")
    for proxy in proxies:
        results[proxy.name]["memory"]["loaded"] = process.memory_kib(proxy.pid)


def one_turn(scenario, proxy, cookies, seconds, run_dir):
    started = time.monotonic()
    cpu, busy = process.cpu_seconds(proxy.pid), process.core_busy_seconds(process.PROXY_CORE)
    found = load.run(scenario, proxy, cookies, seconds, run_dir)
    cpu = process.cpu_seconds(proxy.pid) - cpu
    busy = process.core_busy_seconds(process.PROXY_CORE) - busy
    wall = time.monotonic() - started
    if found["errors"]:
        raise RuntimeError(f"{proxy.name}, {scenario.name}: {found['errors']} of {found['requests']} requests failed")
    return found | {
        "rps": found["requests"] / found["seconds"],
        "cpu_us": cpu / found["requests"] * 1e6,
        "core": cpu / found["seconds"],
        "others": max(0.0, (busy - cpu) / wall),
    }
