"""A contestant beside itself: over the scenario's workers, and over many. The turns are so short that whatever slows the
machine slows both, and so near to each other that no connection to a worker stands idle for long."""

import statistics

from harness import client, load, process
from harness.proxies import Proxy, Workers
from harness.rounds import contestants, say, turn_of

# Turns of each for a round of the other scenarios.
TURNS = 8
WARM_UP_TURNS = 3


def over(name, count):
    """What the results call a contestant over so many workers."""
    return f"{name} over {count}"


def measure(scenario, names, options, machine, run_dir):
    """As `rounds.measure`."""
    results = {}
    few, many = Workers(scenario.workers), Workers(("",) * scenario.beside)
    try:
        for name in contestants(scenario, names):
            results |= measure_pair(scenario, name, (few, many), options, machine, run_dir)
        return results
    finally:
        few.stop()
        many.stop()


def measure_pair(scenario, name, pools, options, machine, run_dir):
    proxies = []
    try:
        for pool in pools:
            proxies.append(Proxy(name, scenario.mode, run_dir, pool.ports, scenario.folder))
            proxies[-1].wait_until_it_listens()  # its port is free until then
        names = (name, over(name, scenario.beside))
        results = {shown: {"rounds": [], "memory": {"idle": process.memory_kib(proxy.pid)}}
                   for shown, proxy in zip(names, proxies)}
        for proxy, pool in zip(proxies, pools):
            proxy.workers = pool.ports
            client.check_pool(proxy)
            for _ in range(WARM_UP_TURNS):
                load.run(scenario, proxy, [], 0, run_dir)
        turns = list(zip(names, proxies))
        for round_ in range(options.rounds * TURNS):
            found = machine.turn(lambda: pair_of_turns(scenario, turns[::-1] if round_ % 2 else turns, run_dir))
            for shown in names:
                results[shown]["rounds"].append(found[shown] | {"slowness": found["slowness"]})
        for shown, proxy in turns:
            results[shown]["memory"]["loaded"] = process.memory_kib(proxy.pid)
        medians = [statistics.median(turn["cpu_us"] for turn in results[shown]["rounds"]) for shown in names]
        say(f"{scenario.name:13} {name:28} {medians[0]:7.2f} and {medians[1]:7.2f} µs CPU")
        return results
    finally:
        for proxy in proxies:
            proxy.stop()


def pair_of_turns(scenario, turns, run_dir):
    return {shown: turn_of(scenario, proxy, [], 0, run_dir) for shown, proxy in turns}
