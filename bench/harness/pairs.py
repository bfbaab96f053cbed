"""Contestants in pairs, in turns that alternate and are so short that whatever slows the machine slows both, and so near
to each other that no connection to a worker stands idle for long."""

import statistics

from harness import client, load, process
from harness.proxies import Proxy, Workers
from harness.rounds import contestants, say, turn_of

# Turns of each for a round of the other scenarios.
TURNS = 8
# A strategy with chance has opened the last of its connections after so many.
WARM_UP_TURNS = 10
# After a pause that closed them it has opened most of them again.
SETTLING_TURNS = 2


def other(name, beside):
    """What the results call the other one of a contestant's pair."""
    return f"{name} over {beside}" if isinstance(beside, int) else f"{beside} beside {name}"


def measure(scenario, names, options, machine, run_dir):
    """As `rounds.measure`."""
    beside, results = scenario.beside, {}
    few = Workers(scenario.workers)
    many = Workers(("",) * beside) if isinstance(beside, int) else few
    try:
        for name in contestants(scenario, names):
            second = name if isinstance(beside, int) else beside
            pair = [(name, name, few), (other(name, beside), second, many)]
            results |= measure_pair(scenario, pair, options, machine, run_dir)
        return results
    finally:
        few.stop()
        if many is not few:
            many.stop()


def measure_pair(scenario, pair, options, machine, run_dir):
    """`pair`: what the results call each, the proxy's name, its workers."""
    proxies = {}
    try:
        for shown, name, pool in pair:
            proxies[shown] = proxy = Proxy(name, scenario.mode, run_dir, pool.ports, scenario.folder)
            proxy.wait_until_it_listens()  # its port is free until then
            proxy.workers = pool.ports
        results = {shown: {"rounds": [], "memory": {"idle": process.memory_kib(proxy.pid)}}
                   for shown, proxy in proxies.items()}
        for proxy in proxies.values():
            client.check_pool(proxy)
            for _ in range(WARM_UP_TURNS):
                load.run(scenario, proxy, [], 0, run_dir)
        turns = list(proxies.items())
        for number in range(options.rounds * TURNS):
            found = machine.turn(lambda: pair_of_turns(scenario, turns[::-1] if number % 2 else turns, run_dir))
            for shown in proxies:
                results[shown]["rounds"].append(found[shown] | {"slowness": found["slowness"]})
        for shown, proxy in turns:
            results[shown]["memory"]["loaded"] = process.memory_kib(proxy.pid)
        medians = [statistics.median(turn["cpu_us"] for turn in result["rounds"]) for result in results.values()]
        say(f"{scenario.name:13} {' and '.join(results)}: {medians[0]:.2f} and {medians[1]:.2f} µs CPU")
        return results
    finally:
        for proxy in proxies.values():
            proxy.stop()


def pair_of_turns(scenario, turns, run_dir):
    """What each did in a turn, after some that do not count: meanwhile the other one had the core and its caches, and a pause
    may have closed connections."""
    found = {}
    for shown, proxy in turns:
        for _ in range(SETTLING_TURNS):
            load.run(scenario, proxy, [], 0, run_dir)
        found[shown] = turn_of(scenario, proxy, [], 0, run_dir)
    return found
