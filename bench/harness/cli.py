"""The command line of `bench/run`."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from harness import calm, pairs, proxies, report, rounds, scenarios


def parse():
    names = [scenario.name for scenario in scenarios.SCENARIOS]
    parser = argparse.ArgumentParser(prog="bench/run", description="Measures outrigger-proxy beside its peers.")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which every proxy takes its turn (5)")
    parser.add_argument("--seconds", type=int, default=4, help="length of a turn (4)")
    parser.add_argument("--only", default=",".join(names), help=f"scenarios, of {','.join(names)}")
    parser.add_argument("--proxies", default=",".join(proxies.NAMES),
                        help=f"of {','.join(proxies.NAMES)}, or of a scenario's contestants, as in outrigger:Random")
    parser.add_argument("--idle-connections", type=int, default=2000, help="held in the idle scenarios (2000)")
    parser.add_argument("--calm", type=float, default=0, metavar="FACTOR",
                        help="let turns count only while the machine is at most so many times slower than it ever was "
                             "(0: always)")
    parser.add_argument("--patience", type=int, default=600, help="seconds to wait for that, in all (600)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 where a target is missed or was not measured")
    options = parser.parse_args()
    options.only = choose(parser, "--only", options.only, names)
    contestants = {name for scenario in scenarios.SCENARIOS for name in scenario.contestants}
    options.proxies = choose(parser, "--proxies", options.proxies, [*proxies.NAMES, *sorted(contestants)])
    return options


def choose(parser, option, text, known):
    chosen = text.split(",")
    for name in chosen:
        if name not in known:
            parser.error(f"{option}: no {name!r} among {', '.join(known)}")
    return chosen


def missing(options):
    if not (proxies.CACHE / "worker").exists():
        return "run bench/install first"
    ours = any(name.partition(":")[0] == proxies.OURS for name in options.proxies)
    if ours and not Path(proxies.our_binary()).exists():
        return f"no {proxies.our_binary()}: cargo build --release -p outrigger-proxy, or name the others with --proxies"
    return None


def measure_all(options):
    run_dir = Path(tempfile.mkdtemp(prefix="outrigger-bench-"))
    run_dir.chmod(0o755)
    machine = calm.Calm(options.calm, options.patience)
    try:
        found = {}
        for scenario in scenarios.SCENARIOS:
            if scenario.name in options.only:
                way = pairs if scenario.beside else rounds
                found[scenario.name] = way.measure(scenario, options.proxies, options, machine, run_dir)
        return found
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def main():
    options = parse()
    # So that the proxies are stopped on a TERM too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    problem = missing(options)
    if problem:
        print(f"bench/run: {problem}", file=sys.stderr)
        return 2
    results = measure_all(options)
    print(report.markdown(results, options))
    targets = report.targets(results)
    print("\n### Targets\n" if targets else "")
    for what, value, bound, met in targets:
        print(f"- {'met' if met else 'MISSED'}: {what} {value:.2f}, at most {bound}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    all_met = len(targets) == report.target_count() and all(met for *_, met in targets)
    return 1 if options.check and not all_met else 0
