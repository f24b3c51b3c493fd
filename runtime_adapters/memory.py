"""How much memory a load took.

How much a load took is read from the kernel (`RssAnon`: anonymous pages in RAM). That is exact only when one load runs
and nothing else grows, so `corrected_size` believes it only for models large enough to stand out from the noise, and
only where it clearly differs from what the adapter itself says, but not beyond reason; else the adapter's word stands.

`python -m runtime_adapters.memory probe` measures one model in a fresh process: the truth that estimates are held to.

Deliberately absent: GPU memory. The adapters that use a device know what they placed there.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from runtime_adapters.base import Device, LoadOptions, RuntimeAdapter, Size
from runtime_adapters.malloc import returning_freed_memory, trim, tune_allocator

MEASURED_MIN_BYTES = 5 << 20
"""Below this a copy's own growth drowns in that of the rest of the process: trust the adapter."""
MEASURED_NOISE = 0.25
"""Within this share of the adapter's figure the two agree, and the adapter's is the better one: its error is 4 %,
that of a measurement in a live heap, whose holes are filled first, up to 19 % (`tests/bench`, sizes)."""
MEASURED_NOISE_BYTES = 3 << 20
"""The same in bytes: a pod's other work grows and shrinks by some 2 MB while a model loads, whatever the model's size.
A LightGBM model of 7.4 MB was recorded as 9.4 for that (`tests/bench`, admission)."""
MEASURED_FACTOR_MAX = 2.0
"""A measurement this far from what the adapter says is something else's growth: a framework's import, for one."""
MEASURED_AGAIN_FACTOR_MAX = 8.0
"""The same where the framework is there already and a second look says so, too: weights that are packed for kernels
may take several times their file. Upwards only: what is believed too large costs room, what too small, the pod."""

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_FORGET_HIGH_WATER = "5"
_SMAPS_ROLLUP = Path("/proc/self/smaps_rollup")


def resident_bytes() -> int:
    """Everything of this process that is in RAM, shared libraries and mapped files included."""
    return _status_bytes("VmRSS")


def anonymous_bytes() -> int:
    """Anonymous pages of this process in RAM: heap, stacks, private writes. No mapped weights."""
    return _status_bytes("RssAnon")


def high_water_bytes() -> int:
    """The largest resident set since the process began, or since `/proc/self/clear_refs` was told to forget it."""
    return _status_bytes("VmHWM")


def forget_high_water() -> int | None:
    """Begin `high_water_bytes` anew; the resident set now, or None where the kernel does not let one."""
    try:
        _CLEAR_REFS.write_text(_FORGET_HIGH_WATER)
    except OSError:
        return None
    return resident_bytes()


def private_dirty_bytes() -> int:
    """Pages that only this process holds and that the kernel cannot drop. Exact and slow: walks the page tables."""
    try:
        return _kilobytes(_SMAPS_ROLLUP.read_text(), "Private_Dirty")
    except OSError:
        return anonymous_bytes()


def corrected_size(own: Size, grown_bytes: int | None, factor_max: float = MEASURED_FACTOR_MAX) -> Size:
    """The adapter's own figure, corrected by what the process grew while loading (None: not known).

    Only anonymous host memory is measured; mapped and device bytes stay as the adapter says. `factor_max`: more growth
    than so many times the adapter's figure is not the model's.
    """
    if grown_bytes is None or own.host_bytes < MEASURED_MIN_BYTES:
        return own
    if abs(grown_bytes - own.host_bytes) <= max(MEASURED_NOISE * own.host_bytes, MEASURED_NOISE_BYTES):
        return own
    if not own.host_bytes / MEASURED_FACTOR_MAX <= grown_bytes <= own.host_bytes * factor_max:
        return own
    return replace(own, host_bytes=grown_bytes)


class MemoryProbe:
    """How much this process grew inside a `with` block, in which malloc keeps nothing that is freed. Not known when
    blocks of several threads overlap.

    with MemoryProbe() as probe:
        model = adapter.load(...)
        model.warm_up()
    size = corrected_size(model.size(), probe.grown_bytes)
    """

    _lock = threading.Lock()
    _open_now = 0
    _opened_ever = 0

    def __init__(self, *, settled: bool = False) -> None:
        """`settled`: trim before both readings. Without it a large load may fill room that the heap had kept, and so
        seem small, or leave its scratch behind, and so seem large: 19 % off in a busy pod."""
        self._settled = settled
        self.grown_bytes: int | None = None
        self._before_bytes = 0
        self._ordinal = 0
        self._began_alone = False
        self._returning = returning_freed_memory()

    def __enter__(self) -> MemoryProbe:
        with MemoryProbe._lock:
            self._began_alone = MemoryProbe._open_now == 0
            MemoryProbe._open_now += 1
            MemoryProbe._opened_ever += 1
            self._ordinal = MemoryProbe._opened_ever
        self._returning.__enter__()
        if self._settled:
            trim()
        self._before_bytes = anonymous_bytes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._settled:
            trim()
        after_bytes = anonymous_bytes()
        self._returning.__exit__(None, None, None)
        with MemoryProbe._lock:
            MemoryProbe._open_now -= 1
            alone = self._began_alone and MemoryProbe._opened_ever == self._ordinal
        if alone and error is None:
            self.grown_bytes = max(0, after_bytes - self._before_bytes)

    def look_again(self) -> None:
        """After the block, and a moment: growth that has gone meanwhile was somebody else's."""
        if self.grown_bytes is not None:
            trim()
            self.grown_bytes = max(0, min(self.grown_bytes, anonymous_bytes() - self._before_bytes))


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What one model took in a process of its own. Times in milliseconds, the rest in bytes."""

    format: str
    estimate_bytes: int
    size_bytes: int
    mapped_bytes: int
    grown_bytes: int
    """Anonymous growth over the measured load and warm-up, plus the bytes mapped."""
    left_bytes: int
    """Anonymous growth that is still there after unload."""
    first_load_ms: float
    load_ms: float
    unload_ms: float


def probe(adapter: RuntimeAdapter, artifact: Path, options: LoadOptions, warm_with: Path | None = None) -> ProbeReport:
    """Load the framework's own baggage first (with `warm_with`, or the artifact itself), then measure a load."""
    started_s = time.perf_counter()
    first = adapter.load(warm_with or artifact, options)
    first_load_ms = (time.perf_counter() - started_s) * 1e3
    first.warm_up()
    first.unload()
    del first
    gc.collect()
    trim()
    before_bytes = anonymous_bytes()
    started_s = time.perf_counter()
    model = adapter.load(artifact, options)
    load_ms = (time.perf_counter() - started_s) * 1e3
    model.warm_up()
    size = model.size()
    grown_bytes = anonymous_bytes() - before_bytes + size.mapped_bytes
    started_s = time.perf_counter()
    model.unload()
    unload_ms = (time.perf_counter() - started_s) * 1e3
    del model
    gc.collect()
    trim()
    return ProbeReport(
        format=adapter.format,
        estimate_bytes=adapter.estimate(artifact, options).total_bytes,
        size_bytes=size.total_bytes,
        mapped_bytes=size.mapped_bytes,
        grown_bytes=grown_bytes,
        left_bytes=anonymous_bytes() - before_bytes,
        first_load_ms=round(first_load_ms, 3),
        load_ms=round(load_ms, 3),
        unload_ms=round(unload_ms, 3),
    )


def main(arguments: list[str] | None = None) -> None:
    """`probe --format F --artifact P [--warm-with P] [--trusted] [--parameter K=V]...`: one JSON object on stdout."""
    tune_allocator()
    parser = argparse.ArgumentParser(prog="python -m runtime_adapters.memory")
    command = parser.add_subparsers(required=True).add_parser("probe", help="measure one model in this fresh process")
    command.add_argument("--format", required=True)
    command.add_argument("--artifact", required=True, type=Path)
    command.add_argument("--warm-with", type=Path, help="another artifact of the format, loaded first")
    command.add_argument("--trusted", action="store_true", help="the artifact may run code")
    command.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    command.add_argument("--parameter", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    from runtime_adapters.registry import adapter_for

    options = LoadOptions(
        model_id="probe",
        device=Device(given.device),
        trusted=given.trusted,
        parameters=dict(pair.split("=", 1) for pair in given.parameter),
    )
    report = probe(adapter_for(given.format, include_fake=True), given.artifact, options, given.warm_with)
    sys.stdout.write(json.dumps({name: getattr(report, name) for name in ProbeReport.__slots__}) + "\n")


def _status_bytes(field: str) -> int:
    try:
        return _kilobytes(_STATUS.read_text(), field)
    except OSError:  # no /proc: macOS, and only development happens there
        import psutil

        return int(psutil.Process().memory_info().rss)


def _kilobytes(text: str, field: str) -> int:
    """`VmRSS:     123 kB` -> 125952."""
    start = text.index(f"{field}:") + len(field) + 1
    return int(text[start : text.index("kB", start)]) << 10


if __name__ == "__main__":
    main()
