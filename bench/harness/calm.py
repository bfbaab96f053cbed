"""How calm the machine is. A virtual one is slowed by its neighbours, for seconds or minutes, up to four times.

What is measured then says more about them, and a proxy that touches more memory suffers more than its peers.
"""

import json
import os
import random
import time

from harness import process
from harness.proxies import CACHE

COUNT, TIMES = 8_000, 12
VALUES = [number + 0.5 for number in range(COUNT)]
ORDER = random.Random(7).sample(range(COUNT), COUNT)


def fixed_work(core):
    """Seconds that some walks through half a MiB take on a core: what a neighbour takes of it and of its caches shows."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        started, total = time.perf_counter(), 0.0
        for _ in range(TIMES):
            for place in ORDER:
                total += VALUES[place]
        return time.perf_counter() - started
    finally:
        os.sched_setaffinity(0, allowed)


class Calm:
    """Holds turns until the machine is calm, for so many seconds in all; after that they count as they are.

    Calm is where the fixed work takes at most `factor` times the least that it ever took here. Of a factor of 0 every
    turn counts at once.
    """

    def __init__(self, factor, patience):
        self.factor, self.patience = factor, patience
        self.file = CACHE / "calm.json"
        self.least = json.loads(self.file.read_text()) if self.file.exists() else float("inf")

    def slowness(self):
        """How many times the least that it ever took the fixed work takes now, on the slower core."""
        took = [sorted(fixed_work(core) for _ in range(3))[1] for core in (process.PROXY_CORE, process.LOAD_CORE)]
        if min(took) < self.least:
            self.least = min(took)
            self.file.write_text(json.dumps(self.least))
        return max(took) / self.least

    def turn(self, measure):
        """What `measure` found while the machine was calm, or when patience was at its end; with its `slowness`."""
        while True:
            started = time.monotonic()
            before = self.slowness()
            while self.factor and self.factor < before and time.monotonic() - started < self.patience:
                time.sleep(0.5)
                before = self.slowness()
            self.patience -= time.monotonic() - started
            started = time.monotonic()
            found = measure()
            found["slowness"] = max(before, self.slowness())
            if not self.factor or found["slowness"] <= self.factor or self.patience <= 0:
                return found
            self.patience -= time.monotonic() - started
