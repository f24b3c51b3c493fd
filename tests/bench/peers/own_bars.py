"""The bars that are about Hexcomb alone: several pods against one, and loads beside requests.

They are measured by the benches of `make bench` that are about them, in the same run, with the same load generator;
a bench that fails, or that cannot run here, is a bar that says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.figures import Figure, figure_from_json
from tests.bench.peers.bars import Bar
from tests.bench.running import BenchFailed, said_by
from tests.bench.worker import SETUP

BENCHES = ("forwarding", "loads_beside")


def own_bars(cache_dir: Path, *, quick: bool, say: Callable[[str], None]) -> list[Bar]:
    """Of all of them, one after the other."""
    bars: list[Bar] = []
    for name in (SETUP, *BENCHES):
        say(f"{name}: running")
        # Of the models these benches need the ones that are made quickly.
        for bar in _bars_of(name, cache_dir, quick or name == SETUP):
            bars.append(bar)
            say(
                f"{name}: {bar.what}: " + (f"not measured: {bar.missing}" if bar.value is None else f"{bar.value:,.2f}")
            )
    return bars


def left_out(reason: str) -> list[Bar]:
    """For a run that measures none of them."""
    return [_missing(f"all of the bench `{name}`", reason) for name in BENCHES]


def _bars_of(name: str, cache_dir: Path, quick: bool) -> Iterator[Bar]:
    try:
        with contextlib.closing(said_by(name, cache_dir, quick=quick)) as lines:
            for said in lines:
                if "skipped" in said and name != SETUP:
                    yield _missing(f"the bench `{name}`", said["skipped"])
                elif "figure" in said and (figure := figure_from_json(said["figure"])).bar is not None:
                    yield _bar(figure)
    except BenchFailed as error:
        yield _missing(
            f"what was left of the bench `{name}`", str(error).splitlines()[-1] if str(error) else "it ended"
        )


def _bar(figure: Figure) -> Bar:
    unit = "×" if figure.unit.startswith("times") else figure.unit
    what = f"{figure.name} ({figure.note})" if figure.note else figure.name
    return Bar(what, figure.value, (figure.value, figure.value), figure.bar, figure.at_least, unit)


def _missing(what: str, reason: str) -> Bar:
    return Bar(what, None, None, None, at_least=True, unit="", missing=reason)
