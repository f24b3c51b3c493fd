"""What the pod says about a model, as values; each front puts them into its own words.

Of its own copy it knows everything, from the cache; of the copies on other pods what those publish. Everything is
computed when asked for, nothing is stored. Times that the cache keeps on its monotonic clock are turned into
wall-clock times here, once; those of other pods are by their clocks.

A model is what it is anywhere: loaded if one pod serves it. It has failed when nobody serves or loads it and some pod
says why not; whether that is for good is another question (`has_chance`): two pods must agree, or all there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from math import isinf

from cache.machine import CacheMachine
from cache.types import CopyState
from cache.views import CopyView
from mesh.batching.lane import in_words
from mesh.generations import Generations, key_of
from mesh.loading.loading import Loading
from mesh.pipelines.registered import Parts
from mesh.resident import Resident
from mesh.running import Runs
from placement.policy.obstacles import AGREEING_FAILURES
from placement.policy.quarantine import Refused, may_load
from placement.policy.snapshot import LoadFailure, ModelName, PoolView
from placement.records import ModelRecord
from runtime_adapters.base import Size


class ModelState(Enum):
    """Where a model stands, or one copy of it."""

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
    CopyState.PARKING: ModelState.UNLOADING,
    CopyState.PARKED: ModelState.NOT_LOADED,
    CopyState.UNLOADING: ModelState.UNLOADING,
    CopyState.STUCK: ModelState.UNLOADING,
    CopyState.CANCELLING_FETCH: ModelState.NOT_LOADED,
    CopyState.CANCELLING_LOAD: ModelState.NOT_LOADED,
    CopyState.OVERDUE: ModelState.NOT_LOADED,
}


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """One copy. Times are Unix seconds. What only the copy's own pod knows has its default elsewhere."""

    pod: str
    state: ModelState
    generation: int
    size: Size
    measured: bool
    since_s: float
    device: str = ""
    """Empty until it is loaded."""
    last_used_s: float = 0.0
    """0: not known."""
    requests_in_flight: int = 0
    load_s: float = 0.0
    form: str = ""
    """`cold` or `hot` (`mesh.promoting`); empty where there is no choice, and elsewhere."""
    batching: str = ""
    """Whether its requests share runs, and why not (`mesh.batching`); empty elsewhere."""


@dataclass(frozen=True, slots=True)
class FailureStatus:
    """Why the model does not load on a pod. `retry_at_s` is None when it is not tried again until its spec changes."""

    pod: str
    message: str
    failed_at_s: float
    retry_at_s: float | None
    attempts: int = 0
    """In a row; 0: not known."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model as this pod sees it."""

    record: ModelRecord
    format: str
    state: ModelState
    copies: tuple[CopyStatus, ...]
    """This pod's first, then in the order of pods."""
    failures: tuple[FailureStatus, ...]
    """Of the registered generation: the pool's verdict if there is one, this pod's own, then in the order of pods."""

    @property
    def failure(self) -> FailureStatus | None:
        """The one to show: the first that is for good, else the first."""
        return min(self.failures, key=lambda failure: failure.retry_at_s is not None, default=None)


class StatusView:
    """Looks up the status of models."""

    def __init__(
        self,
        own_pod: str,
        cache: CacheMachine,
        loading: Loading,
        generations: Generations,
        pool: Callable[[], PoolView],
        runner: Runs,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        parts_of: Callable[[ModelRecord], Parts] = lambda record: Parts(()),
    ) -> None:
        """`pool`: what other pods have; that of a pod alone is empty. `parts_of`: what a pipeline asks."""
        self._parts_of = parts_of
        self._own_pod = own_pod
        self._cache = cache
        self._loading = loading
        self._generations = generations
        self._pool = pool
        self._runner = runner
        self._clock = clock
        self._wall_clock = wall_clock

    def model(self, record: ModelRecord) -> ModelStatus:
        """The status of a registered model; copies of the generation before it are listed while they serve."""
        if not record.spec.has_copies:
            return self._pipeline(record)
        view = self._pool()
        copies = (*self.copies_here(record), *self._copies_elsewhere(view, record))
        failures = (*_verdict(view, record), *self._failure_here(record), *self._failures_elsewhere(view, record))
        if any(copy.state is ModelState.LOADED for copy in copies):
            state = ModelState.LOADED
        elif copies:
            loading = any(copy.state is ModelState.LOADING for copy in copies)
            state = ModelState.LOADING if loading else copies[0].state
        elif failures:
            state = ModelState.FAILED
        else:
            state = ModelState.NOT_LOADED
        return ModelStatus(
            record=record,
            format=record.spec.format or self._loading.format_of(key_of(record)),
            state=state,
            copies=copies,
            failures=failures,
        )

    def parts(self, record: ModelRecord) -> Parts:
        """What a pipeline asks."""
        return self._parts_of(record)

    def _pipeline(self, record: ModelRecord) -> ModelStatus:
        """A pipeline is what its models are together: it fails with the first that has no chance."""
        parts = self._parts_of(record)
        found = [self.model(model) for model in parts.models]
        states = {status.state for status in found}
        failures = [
            replace(failure, message=f"model {status.record.id!r}: {failure.message}")
            for status in found
            for failure in status.failures
            if failure.retry_at_s is None and not self.has_chance(status.record)
        ]
        if parts.problem:
            failures.insert(0, FailureStatus("", parts.problem, 0.0, None))
        state = ModelState.NOT_LOADED
        if failures:
            state = ModelState.FAILED
        elif ModelState.LOADING in states:
            state = ModelState.LOADING
        elif states == {ModelState.LOADED}:
            state = ModelState.LOADED
        return ModelStatus(record, record.spec.format or "", state, (), tuple(failures))

    def has_chance(self, record: ModelRecord) -> bool:
        """Whether a request for this model can be answered, now or after a load: nothing speaks against it for good."""
        if not record.spec.has_copies:
            parts = self._parts_of(record)
            return not parts.problem and all(map(self.has_chance, parts.models))
        view = self._pool()
        name = ModelName(record.tenant, record.id)
        if isinstance(may_load(view.suspicions.get(name), record.generation), Refused):
            return False
        if any(copy.state is ModelState.LOADED for copy in self.copies_here(record)) or view.copies.get(name):
            return True
        failures = (*self._failure_here(record), *self._failures_elsewhere(view, record))
        lasting = sum(failure.retry_at_s is None for failure in failures)
        return lasting < min(AGREEING_FAILURES, max(1, len(view.pods)))

    def copies_here(self, record: ModelRecord) -> tuple[CopyStatus, ...]:
        """This pod's copies: of the registered generation, and of the one before it while that serves."""
        offset_s = self._wall_clock() - self._clock()
        serving = self._generations.serving(record)
        found: list[CopyStatus] = []
        for each in (record,) if serving is record else (record, serving):
            view = self._cache.current(key_of(each))
            if view is not None and _STATE_OF_COPY[view.state] is not ModelState.NOT_LOADED:
                found.append(self._copy(view, offset_s))
        return tuple(found)

    def _copy(self, view: CopyView, offset_s: float) -> CopyStatus:
        resident = self._loading.resident(view.copy_id)
        size = resident.size if resident is not None else Size(view.size.total_bytes)
        return CopyStatus(
            pod=self._own_pod,
            state=_STATE_OF_COPY[view.state],
            generation=view.key.generation,
            size=size,
            measured=resident is not None,
            since_s=view.since_s + offset_s,
            device="" if resident is None else str(resident.device),
            last_used_s=view.last_used_s + offset_s,
            requests_in_flight=view.pins,
            load_s=view.load_time_s,
            form="" if resident is None else resident.form,
            batching="" if resident is None else self._batching(resident),
        )

    def _batching(self, resident: Resident) -> str:
        learned = self._runner.learned_of(resident)
        return in_words(resident.rules, learned, runs_inline=self._runner.runs_inline(resident, 0))

    def _copies_elsewhere(self, view: PoolView, record: ModelRecord) -> Iterator[CopyStatus]:
        for copy in view.copies.get(ModelName(record.tenant, record.id), ()):
            if copy.pod == self._own_pod:
                continue
            size = Size(copy.size_bytes)
            if copy.servable:
                yield CopyStatus(copy.pod, ModelState.LOADED, copy.servable, size, True, copy.since_at_s)
            if copy.loading:
                size = Size(0) if copy.servable else size
                yield CopyStatus(copy.pod, ModelState.LOADING, copy.loading, size, False, copy.since_at_s)

    def _failure_here(self, record: ModelRecord) -> Iterator[FailureStatus]:
        failure = self._loading.failure(key_of(record))
        if failure is not None:
            offset_s = self._wall_clock() - self._clock()
            yield FailureStatus(
                pod=self._own_pod,
                message=failure.message,
                failed_at_s=failure.failed_at_s + offset_s,
                retry_at_s=None if isinf(failure.retry_at_s) else failure.retry_at_s + offset_s,
                attempts=failure.failures,
            )

    def _failures_elsewhere(self, view: PoolView, record: ModelRecord) -> Iterator[FailureStatus]:
        for failure in view.failures.get(ModelName(record.tenant, record.id), ()):
            if failure.pod != self._own_pod and failure.generation == record.generation:
                yield _failure_of(failure)


def _failure_of(failure: LoadFailure) -> FailureStatus:
    retry_at_s = None if failure.permanent else failure.failed_at_s + failure.retry_after_s
    return FailureStatus(failure.pod, failure.message, failure.failed_at_s, retry_at_s)


def _verdict(view: PoolView, record: ModelRecord) -> Iterator[FailureStatus]:
    """The pool's own word against a model: it is quarantined."""
    suspicion = view.suspicions.get(ModelName(record.tenant, record.id))
    may = may_load(suspicion, record.generation)
    if isinstance(may, Refused):
        assert suspicion is not None
        yield FailureStatus("", may.message, max((death.at_s for death in suspicion.deaths), default=0.0), None)
