"""One scenario: every proxy started afresh, then rounds in which each takes its turn."""

import sys
import threading
import time

from harness import client, load, process
from harness.proxies import Proxy, Workers

WARM_UP_SECONDS = 1
# A pool must have been learned before it is measured.
POOL_WARM_UP_SECONDS = 4


def say(text):
    print(text, file=sys.stderr, flush=True)


def contestants(scenario, names):
    """The proxies of a scenario, of those that were asked for, by their names or with all that they can be set to."""
    return [name for name in scenario.contestants or names if {name, name.partition(":")[0]} & set(names)]


def measure(scenario, names, options, machine, run_dir):
    """{proxy name: {"rounds": [...], "memory": {...}}}"""
    proxies = []
    workers = Workers(scenario.workers)
    try:
        time.sleep(0.2)
        for name in contestants(scenario, names):
            if name != "relay" or scenario.relayed:
                proxies.append(Proxy(name, scenario.mode, run_dir, workers.ports, scenario.folder))
        for proxy in proxies:
            proxy.wait_until_it_listens()
        time.sleep(2)  # the first health checks
        idle = {proxy.name: process.memory_kib(proxy.pid) for proxy in proxies}
        results = {proxy.name: {"rounds": [], "memory": {"idle": idle[proxy.name]}} for proxy in proxies}
        for proxy in proxies:
            proxy.workers = workers.ports
        if scenario.tool == "idle":
            hold_connections(scenario, proxies, options, results)
        else:
            run_rounds(scenario, proxies, options, machine, run_dir, results)
        return results
    finally:
        for proxy in proxies:
            proxy.stop()
        workers.stop()


def hold_connections(scenario, proxies, options, results):
    for proxy in proxies:
        memory = results[proxy.name]["memory"]
        held = client.hold_idle(proxy, options.idle_connections, lambda: process.memory_kib(proxy.pid))
        memory["held"] = held
        memory["per_connection"] = (held["pss"] - memory["idle"]["pss"]) / options.idle_connections
        say(f"{scenario.name:13} {proxy.name:10} {memory['per_connection']:6.2f} KiB per idle connection")


def run_rounds(scenario, proxies, options, machine, run_dir, results):
    cookies = {}
    for proxy in proxies:
        if scenario.contestants:
            cookies[proxy.name] = []
            client.check_pool(proxy)
        else:
            cookies[proxy.name] = client.cookies(proxy)
            client.check(proxy, cookies[proxy.name])
            load.run(scenario, proxy, cookies[proxy.name], WARM_UP_SECONDS, run_dir)
    for turn in range(options.rounds):
        first = turn % len(proxies)
        for proxy in proxies[first:] + proxies[:first]:
            found = machine.turn(lambda: one_turn(scenario, proxy, cookies[proxy.name], options.seconds, run_dir))
            results[proxy.name]["rounds"].append(found)
            say(f"{scenario.name:13} {proxy.name:10} {found['rps']:8.0f} requests/s {found['cpu_us']:7.2f} µs CPU"
                f"  p99 {found['p99'] / 1000:.1f} ms  core {found['core']:.0%}, others on it {found['others']:.0%}"
                f", machine {found['slowness']:.1f} times slower")
    for proxy in proxies:
        results[proxy.name]["memory"]["loaded"] = process.memory_kib(proxy.pid)


def one_turn(scenario, proxy, cookies, seconds, run_dir):
    if scenario.contestants:
        client.restart(proxy.workers)
        if not scenario.least_seconds:
            load.run(scenario, proxy, [], min(POOL_WARM_UP_SECONDS, seconds), run_dir)
    return turn_of(scenario, proxy, cookies, max(seconds, scenario.least_seconds), run_dir)


def turn_of(scenario, proxy, cookies, seconds, run_dir):
    started = time.monotonic()
    cpu, busy = process.cpu_seconds(proxy.pid), process.core_busy_seconds(process.PROXY_CORE)
    with Shares(proxy, scenario.least_seconds != 0) as shares:
        found = load.run(scenario, proxy, cookies, seconds, run_dir)
    cpu = process.cpu_seconds(proxy.pid) - cpu
    busy = process.core_busy_seconds(process.PROXY_CORE) - busy
    wall = time.monotonic() - started
    if found["errors"]:
        raise RuntimeError(f"{proxy.name}, {scenario.name}: {found['errors']} of {found['requests']} requests failed")
    return found | shares.found() | {
        "rps": found["requests"] / found["seconds"],
        "cpu_us": cpu / found["requests"] * 1e6,
        "core": cpu / found["seconds"],
        "others": max(0.0, (busy - cpu) / wall),
    }


class Shares:
    """The share of the last worker in each second, as our metrics count it."""

    def __init__(self, proxy, wanted):
        self.proxy, self.wanted, self.counts, self.over = proxy, wanted, [], threading.Event()
        self.thread = threading.Thread(target=self.sample)

    def sample(self):
        while True:
            self.counts.append(client.worker_requests(self.proxy))
            if self.over.wait(1):
                return

    def __enter__(self):
        if self.wanted:
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        if self.wanted:
            self.thread.join()

    def found(self):
        last = f"worker-{len(self.proxy.workers)}"
        seconds = []
        for before, after in zip(self.counts, self.counts[1:]):
            done = {name: count - before.get(name, 0) for name, count in after.items()}
            seconds.append(done.get(last, 0) / max(1, sum(done.values())))
        return {"shares": seconds} if self.wanted else {}
