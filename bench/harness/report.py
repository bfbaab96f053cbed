"""The tables, in Markdown, and the targets."""

import platform
import statistics
import subprocess
from pathlib import Path

from harness.pairs import other
from harness.proxies import OURS
from harness.scenarios import SCENARIOS, STRATEGIES

# (scenario, figure, peer, ours may be at most this times the peer's; or without a peer, at most this)
TARGETS = [
    ("h1-small", "cpu_us", "haproxy", 1.05),
    ("h1-small", "cpu_us", "envoy", 0.4),
    ("h1-100k", "cpu_us", "haproxy", 1.0),
    ("idle", "rss_mib", None, 12),
    ("idle", "per_connection", None, 8),
]
# (scenario, contestant, figure, scenario it is held against, contestant of that, at most so many times its)
COMPARISONS = [
    *[("pool-slow", f"outrigger:{name}", "p99", "pool-healthy", f"outrigger:{name}", 2.0)
      for name in ("PeakEwma", "LeastRequest", "Predictive", "BackendUtilization")],
    *[("strategies-4", f"outrigger:{name}", "cpu_us",
       "strategies-4", other(f"outrigger:{name}", "outrigger:RoundRobin"), 1.05)
      for name in STRATEGIES if name != "RoundRobin"],
    *[("workers-256", other(f"outrigger:{name}", 256), "cpu_us", "workers-256", f"outrigger:{name}", 1.10)
      for name in STRATEGIES],
    ("breakers", "outrigger:with", "cpu_us", "breakers", "outrigger:without", 1.05),
]


def target_count():
    return len(TARGETS) + len(COMPARISONS)


def figures(result, figure):
    """One number a round; memory has one in all."""
    if figure == "rss_mib":
        return [result["memory"]["idle"]["rss"] / 1024]
    if figure == "per_connection":
        return [result["memory"]["per_connection"]]
    return [turn[figure] for turn in result["rounds"]]


def ratio(one, other, figure):
    """The median over the rounds of one/other in the same round: what drifts between rounds cancels out."""
    return statistics.median(a / b for a, b in zip(figures(one, figure), figures(other, figure)))


def spread(values, digits=0):
    shown = [f"{v:.{digits}f}" for v in (statistics.median(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def load_table(results):
    rows = []
    for name, result in results.items():
        cells = [name, spread(figures(result, "rps")), spread(figures(result, "cpu_us"), 1)]
        cells += [spread([v / 1000 for v in figures(result, figure)], 2) for figure in ("p50", "p99")]
        cells.append(f"{statistics.median(figures(result, 'core')):.0%}")
        cells.append(f"{result['memory']['loaded']['pss'] / 1024:.1f}")
        if OURS in results:
            cells.append(f"{ratio(result, results[OURS], 'rps'):.2f}")
            cells.append(f"{ratio(results[OURS], result, 'cpu_us'):.2f}")
        rows.append(cells)
    header = ["proxy", "requests/s", "CPU µs/request", "p50 ms", "p99 ms", "of its core", "PSS MiB after"]
    return table(header + (["its requests/s ÷ ours", "our CPU ÷ its"] if OURS in results else []), rows)


def memory_table(results):
    rows = []
    for name, result in results.items():
        memory = result["memory"]
        rows.append([name, f"{memory['idle']['rss'] / 1024:.1f}", f"{memory['idle']['pss'] / 1024:.1f}",
                     f"{memory['held']['pss'] / 1024:.1f}", f"{memory['per_connection']:.1f}"])
    return table(["proxy", "RSS MiB idle", "PSS MiB idle", "PSS MiB holding", "KiB per idle connection"], rows)


def shares_table(results):
    rows = []
    for name, result in results.items():
        turns = [turn["shares"] for turn in result["rounds"]]
        seconds = zip(*turns)
        rows.append([name, *[f"{statistics.median(shares):.0%}" for shares in seconds]])
    return table(["proxy", *map(str, range(1, max(len(row) for row in rows)))], rows)


def markdown(all_results, options):
    parts = [machine(), f"Load: {options.rounds} rounds of {options.seconds} s a proxy; median (lowest–highest)."]
    if options.calm:
        parts.append(f"Turns count while the machine was at most {options.calm} times slower than it ever was, "
                     f"as long as {options.patience} s of waiting for that last.")
    for scenario in SCENARIOS:
        if scenario.name in all_results:
            results = all_results[scenario.name]
            shown = memory_table(results) if scenario.tool == "idle" else load_table(results)
            if scenario.least_seconds:
                shown += "\n\nShare of the degrading worker, second by second:\n\n" + shares_table(results)
            parts.append(f"### {scenario.name}\n\n{scenario.what}\n\n{shown}")
    turns = [turn for results in all_results.values() for r in results.values() for turn in r["rounds"]]
    if turns:
        others, slowness = [[turn[figure] for turn in turns] for figure in ("others", "slowness")]
        parts.append(f"Other programs took {statistics.median(others):.1%} of the proxies' core (median), "
                     f"{max(others):.1%} in the worst turn. The machine was {statistics.median(slowness):.1f} times slower "
                     f"than it ever was (median), {max(slowness):.1f} times in the worst turn.")
    return "\n\n".join(parts)


def machine():
    cpu = next((line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    versions = []
    for command, pattern in ((["haproxy", "-v"], 2), (["nginx", "-v"], 2)):
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        versions.append((shown.stdout + shown.stderr).split()[pattern])
    return f"{cpu}, Linux {platform.release()}, HAProxy {versions[0]}, {versions[1]}, Envoy 1.40.0."


def targets(all_results):
    """[(what, found, bound, met)] of every target whose scenario and proxies were measured."""
    found = []
    for scenario, figure, peer, bound in TARGETS:
        results = all_results.get(scenario, {})
        if OURS not in results or (peer and peer not in results):
            continue
        ours = results[OURS]
        value = ratio(ours, results[peer], figure) if peer else figures(ours, figure)[0]
        what = f"{scenario}: {figure}" + (f" ÷ {peer}'s" if peer else "")
        found.append((what, value, bound, value <= bound))
    for scenario, name, figure, other_scenario, other_name, bound in COMPARISONS:
        one, other = all_results.get(scenario, {}).get(name), all_results.get(other_scenario, {}).get(other_name)
        if one and other:
            if scenario == other_scenario:
                value = ratio(one, other, figure)
            else:
                value = statistics.median(figures(one, figure)) / statistics.median(figures(other, figure))
            what = f"{scenario}: {figure} of {name} ÷ {other_scenario}'s of {other_name}"
            found.append((what, value, bound, value <= bound))
    return found
