"""The demo's figures: memory at every moment against baseline and capacity, answers against the frameworks' own.

Nothing is measured here; `hexcomb demo --json` is run as a user runs it, and its figures are held to their bars. The
resident set is sampled from outside while 20,000 requests make 300 models compete for a fifth of the memory they need.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from tests.bench.figures import Reporter

TOTAL_BAR_S = 180.0


def run(bench: Reporter) -> None:
    """Not in quick mode: it takes minutes."""
    if bench.quick:
        bench.skip("hexcomb demo", "not in a quick run")
        return
    bench.progress(0, 1, "hexcomb demo")
    command = [sys.executable, "-m", "mesh.cli.main", "demo", "--json"]
    began = time.perf_counter()
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if not answer.stdout.strip():
        raise RuntimeError(f"the demo gave no figures: {answer.stderr[-2000:]}")
    found = json.loads(answer.stdout)
    bench.figure(
        "resident set at its highest",
        found["peak_rss_bytes"] / 2**20,
        "MiB",
        bar=found["rss_limit_bytes"] / 2**20,
        note=f"1.1 x (baseline {found['baseline_rss_bytes'] / 2**20:.0f} + capacity "
        f"{found['capacity_bytes'] / 2**20:.0f} MiB)",
    )
    bench.figure("wrong answers", found["wrong"], "answers", bar=0.0, note=f"of {found['requests']:,}")
    bench.figure("errors", found["errors"], "errors", bar=0.0, note="; ".join(map(str, found["failures"][:2]))[:300])
    bench.figure("the whole demo", seconds, "s", bar=TOTAL_BAR_S, note=f"training {found['training_s']:.0f} s of it")
    bench.figure("warm, p50", found["warm_p50_ms"], "ms", note=f"p99 {found['warm_p99_ms']:.1f}, 8 in flight")
    bench.figure(
        "cold, p50",
        found["cold_p50_ms"],
        "ms",
        note=f"p99 {found['cold_p99_ms']:.1f}; {found['misses']} misses, {found['evictions']} evictions",
    )
    bench.progress(1, 1)
