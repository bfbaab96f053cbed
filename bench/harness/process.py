"""Processes pinned to a core, and what the kernel knows about them."""

import os
import subprocess
from pathlib import Path

PROXY_CORE, LOAD_CORE = 0, 1


def start(command, core, **options):
    return subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, {core}), **options)


def stop(process):
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def family(pid):
    """The process and its descendants."""
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children += (task / "children").read_text().split()
    return [pid] + [p for child in children for p in family(int(child))]


def cpu_seconds(pid):
    """CPU time of every thread, in nanosecond steps: /proc/PID/stat counts in steps of 10 ms."""
    schedstats = (task / "schedstat" for p in family(pid) for task in Path(f"/proc/{p}/task").iterdir())
    return sum(int(file.read_text().split()[0]) for file in schedstats) / 1e9


def core_busy_seconds(core):
    """Time the core was not idle, whoever used it; time stolen by the hypervisor included."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    raise RuntimeError(f"there is no core {core}: two are needed")


def memory_kib(pid):
    """Resident and proportional set size, over the process and its descendants."""
    totals = {"Rss": 0, "Pss": 0}
    for p in family(pid):
        for line in Path(f"/proc/{p}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in totals:
                totals[name] += int(rest.split()[0])
    return {"rss": totals["Rss"], "pss": totals["Pss"]}
