"""`make bench-peers`: Hexcomb beside the servers that people use today, on this machine, in one run.

    python -m tests.bench.peers [--quick] [--only NAME ...] [--scenario WORD ...] [--rounds N] [--seconds S]
    python -m tests.bench.peers --write-readme     the last run's tables and chart, into the READMEs

What was measured is written even if the run is ended before its time (Ctrl-C, SIGTERM).

Exits with 1 when an answer was wrong or a bar is missed. With fewer than three rounds the benches that measure pods of
one pool, and loads beside requests, run in their quick form; with --only or --scenario they are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.peers.artifacts import make_fleets
from tests.bench.peers.bars import bars_of
from tests.bench.peers.contestants import CONTESTANTS
from tests.bench.peers.measuring import Comparison
from tests.bench.peers.own_bars import left_out, own_bars
from tests.bench.peers.reporting import (
    about_this_run,
    draw,
    markdown_of,
    record_of,
    save,
    summary_of,
    write_between_marks,
)
from tests.bench.peers.scenarios import QUICK, WHOLE

ROOT = Path(__file__).parents[3]
HOME = ROOT / ".cache" / "bench" / "peers"
RECORD = ROOT / ".cache" / "bench-peers.json"
CHART = ROOT / ".cache" / "bench-peers.png"
KEPT_CHART = Path(__file__).parent / "results.png"
KEPT_TABLES = Path(__file__).parent / "RESULTS.md"
_ROUNDS, _ROUNDS_QUICK = 3, 1
_SECONDS, _SECONDS_QUICK = 5.0, 2.0
_WARM_UP_SHARE = 0.3
_CORES_MIN = 2


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--quick", action="store_true", help="fewer cells, one short round")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--scenario", nargs="+", metavar="WORD", help="only cells with one of these in their name")
    parser.add_argument("--rounds", type=int, help=f"default: {_ROUNDS}, or {_ROUNDS_QUICK}")
    parser.add_argument("--seconds", type=float, help=f"measured per cell; default: {_SECONDS:g}, {_SECONDS_QUICK:g}")
    parser.add_argument("--write-readme", action="store_true", help="measure nothing; publish the last run")
    given = parser.parse_args()
    # So that whoever ends this ends the server that is up, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if given.write_readme:
        _publish(json.loads(RECORD.read_text()))
        return 0
    if len(os.sched_getaffinity(0)) < _CORES_MIN:
        print("two cores are needed: one for the server, one for the load", file=sys.stderr)
        return 2
    record = _measure(given)
    save(record, RECORD)
    print(markdown_of(record))
    chart = f", as a chart in {CHART.relative_to(ROOT)}" if draw(record, CHART) else ""
    print(f"as JSON in {RECORD.relative_to(ROOT)}{chart}")
    wrong = any(figures.get("wrong") for cells in record["figures"].values() for figures in cells.values())
    return 1 if wrong or any(bar["is_met"] is False for bar in record["bars"]) else 0


def _measure(given: argparse.Namespace) -> dict[str, Any]:
    rounds = given.rounds or (_ROUNDS_QUICK if given.quick else _ROUNDS)
    duration_s = given.seconds or (_SECONDS_QUICK if given.quick else _SECONDS)
    cells = [
        cell
        for cell in (QUICK if given.quick else WHOLE)
        if not given.scenario or any(word in cell.name for word in given.scenario)
    ]
    contestants = [each for each in CONTESTANTS if not given.only or each.name in given.only]
    began_s, load_before = time.monotonic(), os.getloadavg()[0]
    comparison = Comparison(
        HOME,
        contestants,
        cells,
        make_fleets(HOME / "models"),
        warm_up_s=duration_s * _WARM_UP_SHARE,
        duration_s=duration_s,
        say=_say,
    )
    ended_early = False
    own = left_out("--only and --scenario leave it out" if given.only or given.scenario else "not reached")
    try:
        comparison.run(rounds)
        if not (given.only or given.scenario):
            own = own_bars(HOME.parent, quick=rounds < _ROUNDS, say=_say)
    except KeyboardInterrupt:
        ended_early = True
        comparison.give_up()
    results = comparison.results
    about = about_this_run(given.quick, rounds, duration_s, began_s, load_before, ended_early=ended_early)
    return record_of(contestants, cells, results, [*bars_of(results), *own], about)


def _publish(record: dict[str, Any]) -> None:
    KEPT_TABLES.write_text(f"# The last whole comparison\n\n{markdown_of(record)}")
    draw(record, KEPT_CHART)
    chart = f"![Requests a second on one core]({KEPT_CHART.relative_to(ROOT)})"
    more = f"All cells: [{KEPT_TABLES.relative_to(ROOT)}]({KEPT_TABLES.relative_to(ROOT)})."
    write_between_marks(ROOT / "README.md", f"{summary_of(record)}\n{chart}\n\n{more}\n")


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
