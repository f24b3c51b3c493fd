"""What the pod says about a model and about itself, as values; each front puts them into its own words.

Everything is computed when asked for, from the registry's view and the cache's pictures; nothing is stored. Times that
the cache keeps on its monotonic clock are turned into wall-clock times here, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import isinf

from cache.failures import FailureRecord
from cache.machine import CacheMachine
from cache.types import CopyState
from cache.views import CopyView
from mesh.generations import Generations, key_of
from mesh.loading import Loading
from placement.records import ModelRecord
from runtime_adapters.base import Size


class ModelState(Enum):
    """Where a model stands on this pod."""

    NOT_LOADED = "not loaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"


_STATE_OF_COPY: dict[CopyState, ModelState] = {
    CopyState.QUEUED: ModelState.LOADING,
    CopyState.FETCHING: ModelState.LOADING,
    CopyState.WAITING_FOR_SPACE: ModelState.LOADING,
    CopyState.LOADING: ModelState.LOADING,
    CopyState.SETTLING: ModelState.LOADING,
    CopyState.SERVABLE: ModelState.LOADED,
    CopyState.RETIRING: ModelState.UNLOADING,
    CopyState.UNLOADING: ModelState.UNLOADING,
    CopyState.STUCK: ModelState.UNLOADING,
    CopyState.CANCELLING_FETCH: ModelState.NOT_LOADED,
    CopyState.CANCELLING_LOAD: ModelState.NOT_LOADED,
    CopyState.OVERDUE: ModelState.NOT_LOADED,
}


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """One copy on this pod. Times are Unix seconds."""

    state: ModelState
    device: str
    """Empty until it is loaded."""
    size: Size
    measured: bool
    since_s: float
    last_used_s: float
    requests_in_flight: int
    load_s: float
    generation: int


@dataclass(frozen=True, slots=True)
class FailureStatus:
    """Why the model does not load. `retry_at_s` is None when it is not tried again until its spec changes."""

    message: str
    failed_at_s: float
    retry_at_s: float | None
    attempts: int


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model as this pod sees it."""

    record: ModelRecord
    format: str
    state: ModelState
    copies: tuple[CopyStatus, ...]
    failure: FailureStatus | None


class StatusView:
    """Looks up the status of models."""

    def __init__(
        self,
        cache: CacheMachine,
        loading: Loading,
        generations: Generations,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._loading = loading
        self._generations = generations
        self._clock = clock
        self._wall_clock = wall_clock

    def model(self, record: ModelRecord) -> ModelStatus:
        """The status of a registered model; while a new generation is coming in, the old one's copy is listed too."""
        offset_s = self._wall_clock() - self._clock()
        copies: list[CopyStatus] = []
        serving = self._generations.serving(record)
        for each in (record,) if serving is record else (record, serving):
            view = self._cache.current(key_of(each))
            if view is not None and _STATE_OF_COPY[view.state] is not ModelState.NOT_LOADED:
                copies.append(self._copy(view, offset_s))
        failure = self._loading.failure(key_of(record))
        if any(copy.state is ModelState.LOADED for copy in copies):
            state = ModelState.LOADED
        elif copies:
            state = copies[0].state
        elif failure is not None:
            state = ModelState.FAILED
        else:
            state = ModelState.NOT_LOADED
        return ModelStatus(
            record=record,
            format=record.spec.format or self._loading.format_of(key_of(record)),
            state=state,
            copies=tuple(copies),
            failure=None if failure is None else _failure(failure, offset_s),
        )

    def _copy(self, view: CopyView, offset_s: float) -> CopyStatus:
        resident = self._loading.resident(view.copy_id)
        size = resident.size if resident is not None else Size(view.size.total_bytes)
        return CopyStatus(
            state=_STATE_OF_COPY[view.state],
            device="" if resident is None else str(resident.device),
            size=size,
            measured=resident is not None,
            since_s=view.since_s + offset_s,
            last_used_s=view.last_used_s + offset_s,
            requests_in_flight=view.pins,
            load_s=view.load_time_s,
            generation=view.key.generation,
        )


def _failure(record: FailureRecord, offset_s: float) -> FailureStatus:
    return FailureStatus(
        message=record.message,
        failed_at_s=record.failed_at_s + offset_s,
        retry_at_s=None if isinf(record.retry_at_s) else record.retry_at_s + offset_s,
        attempts=record.failures,
    )
