"""One bench in this fresh process: `python -m tests.bench.worker NAME CACHE_DIR [quick]`, JSON lines on stdout.

malloc is set as a pod sets it, before any framework is imported, so that memory behaves here as it does there.
"""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

from runtime_adapters.malloc import tune_allocator
from tests.bench.figures import Reporter

SETUP = "models"
TINY_COUNT, TINY_COUNT_QUICK = 10_000, 1_000


def main() -> None:
    """The bench's module has a `run(bench)`."""
    tune_allocator()
    signal.signal(signal.SIGTERM, _interrupt)
    logging.basicConfig(level=logging.ERROR)
    name, cache_dir, *rest = sys.argv[1:]
    bench = Reporter(name, quick="quick" in rest, cache_dir=Path(cache_dir))
    module = importlib.import_module(f"tests.bench.{name}")
    if name == SETUP:
        module.make_all(bench, bench.choose(TINY_COUNT, TINY_COUNT_QUICK))
    else:
        module.run(bench)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM leaves through every `finally`, which is where pods are stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
