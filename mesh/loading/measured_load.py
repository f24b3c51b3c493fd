"""One load, as it runs on its thread: load, warm up, and find out what it takes and what a run costs.

Everything here blocks. Deliberately absent: when to load, and what happens to the result.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TypeVar

from mesh.room import ReadMemory, check_room, room_for
from mesh.settings import Settings
from mesh.staging import Staged
from runtime_adapters.base import LoadedModel, Size
from runtime_adapters.errors import BadArtifact, OutOfMemory
from runtime_adapters.isolation import Cancellation, load_isolated
from runtime_adapters.memory import (
    MEASURED_AGAIN_FACTOR_MAX,
    MEASURED_FACTOR_MAX,
    MEASURED_MIN_BYTES,
    MemoryProbe,
    corrected_size,
    forget_high_water,
    high_water_bytes,
)
from runtime_adapters.python_models import OwnLimits, PythonModels, limits_of

Number = TypeVar("Number", int, float)
SLOW_RUN_S = 0.01
"""A first run longer than this needs no second one to tell that the model belongs on a worker thread."""


@dataclass(frozen=True, slots=True)
class MeasuredLoad:
    """A model that is loaded and warm. Times in seconds; `run_s` is one run."""

    model: LoadedModel
    size: Size
    run_s: float
    load_s: float
    warm_up_s: float
    peak_bytes: int = 0
    """What the load took at its highest; 0: not known."""


LOADING_FACTOR = 4
"""Of what stays: what a load is taken to need at its highest, until one was measured. Two to four times is usual."""
AS_FETCHED_FACTOR = 3
"""The same of a load of what was fetched, which is not measured: 1.5 for ONNX of 25 MB, 3.0 for XGBoost of 13 MB."""


def load_and_measure(
    staged: Staged, read_memory: ReadMemory | None = None, somebody_waits: bool = False
) -> MeasuredLoad:
    """Raises AdapterError; nothing of the model remains then. `somebody_waits`: whose run may be the first one."""
    with room_for(_needed_bytes(staged), read_memory):
        return _load_and_measure(staged, somebody_waits)


def _needed_bytes(staged: Staged) -> int:
    factor = AS_FETCHED_FACTOR if staged.options.as_fetched else LOADING_FACTOR
    return max(staged.peak_bytes or factor * staged.estimate.host_bytes, staged.estimate.host_bytes)


def _load_and_measure(staged: Staged, somebody_waits: bool) -> MeasuredLoad:
    model: LoadedModel | None = None
    try:
        # What is known, too small to be measured, or gone in a moment, is not worth the milliseconds of a trim.
        as_fetched = staged.options.as_fetched
        to_measure = not (as_fetched or (staged.measured and somebody_waits))
        settled = to_measure and staged.estimate.host_bytes >= MEASURED_MIN_BYTES
        # The request that waits for it is its first run, unless something is to be learned from that.
        their_run = somebody_waits and not settled and (as_fetched or staged.run_s is not None)
        with MemoryProbe(settled=settled) as probe:
            before_bytes = forget_high_water() if settled else None
            load_began = time.perf_counter()
            model = staged.adapter.load(staged.path, staged.options)
            load_s = time.perf_counter() - load_began
            warm_began = time.perf_counter()
            if not their_run:
                model.warm_up()
            warm_up_s = time.perf_counter() - warm_began
            highest_bytes = 0 if before_bytes is None else high_water_bytes() - before_bytes
        size = model.size()
        if to_measure:
            size = _measured_size(model, probe, staged.adapter.format)
        elif staged.measured:  # as it was the last time
            size = corrected_size(size, staged.estimate.host_bytes, MEASURED_AGAIN_FACTOR_MAX)
        if their_run or staged.run_s is not None:  # a copy that comes back answers sooner by one run
            run_s = SLOW_RUN_S if staged.run_s is None else staged.run_s
            loaded = MeasuredLoad(model, size, run_s=run_s, load_s=load_s, warm_up_s=warm_up_s)
        else:
            loaded = _measured(model, size, load_s, warm_up_s)
        if probe.grown_bytes is None:  # others loaded beside it: whose peak it was is not known
            return loaded
        return replace(loaded, peak_bytes=max(0, highest_bytes - size.mapped_bytes))
    except BaseException as error:
        if model is not None:
            model.unload()
        if isinstance(error, MemoryError):
            raise OutOfMemory(f"no memory was left while {staged.adapter.format} loaded the model") from error
        raise


_imported: set[str] = set()
"""Formats of which this process has loaded a model: their frameworks' own memory is there already."""
_SECOND_LOOK_S = 0.05
"""Longer than most runs: what they took is gone by then."""


def _measured_size(model: LoadedModel, probe: MemoryProbe, format_name: str) -> Size:
    own, grown_bytes = model.size(), probe.grown_bytes
    factor_max = MEASURED_FACTOR_MAX
    if format_name in _imported and grown_bytes is not None and grown_bytes > MEASURED_FACTOR_MAX * own.host_bytes:
        if own.host_bytes >= MEASURED_MIN_BYTES:
            time.sleep(_SECOND_LOOK_S)
            probe.look_again()
        factor_max = MEASURED_AGAIN_FACTOR_MAX
    _imported.add(format_name)
    return corrected_size(own, probe.grown_bytes, factor_max)


def load_isolated_and_measure(
    staged: Staged,
    timeout_s: float,
    settings: Settings,
    cancellation: Cancellation,
    read_memory: ReadMemory | None = None,
) -> MeasuredLoad:
    check_room(staged.estimate.host_bytes, read_memory)  # its process starts from nothing: no peak of this one
    own = limits_of(staged.options.parameters) if isinstance(staged.adapter, PythonModels) else OwnLimits()
    began = time.perf_counter()
    model = load_isolated(
        staged.adapter.format,
        staged.path,
        staged.options,
        load_timeout_s=min(timeout_s, own.load_timeout_s or timeout_s),
        infer_timeout_s=_allowed("infer_timeout_s", own.infer_timeout_s, settings.run_timeout_s, "run_timeout_s"),
        memory_limit_bytes=_allowed(
            "memory_limit_bytes", own.memory_limit_bytes, int(settings.isolated_memory_max), "isolated_memory_max"
        ),
        jailed=not staged.artifact.trusted,
        require_jail=not settings.allow_unjailed,
        cancellation=cancellation,
    )
    try:
        load_s = time.perf_counter() - began
        began = time.perf_counter()
        model.warm_up()
        return _measured(model, model.size(), load_s, time.perf_counter() - began)
    except BaseException:
        model.unload()  # its process, or what that has left open here
        raise


def _allowed(name: str, asked: Number | None, most: Number, setting: str) -> Number:
    """What a model's spec asks for, within what the pod allows. Raises BadArtifact."""
    if asked is not None and asked > most:
        raise BadArtifact(
            f"parameters: {name} is {asked:,}; this pod allows {most:,} ({setting}); ask for less, or leave it"
        )
    return most if asked is None else asked


def _measured(model: LoadedModel, size: Size, load_s: float, first_run_s: float) -> MeasuredLoad:
    """A second run tells what a run costs, since the first paid for lazy set-up; a slow model is asked once only."""
    if first_run_s > SLOW_RUN_S:
        return MeasuredLoad(model, size, run_s=first_run_s, load_s=load_s, warm_up_s=first_run_s)
    began = time.perf_counter()
    model.warm_up()
    return MeasuredLoad(model, size, run_s=time.perf_counter() - began, load_s=load_s, warm_up_s=first_run_s)
