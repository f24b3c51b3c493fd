"""Carrying out promotions: once a second, look at the heat of every copy that has two forms, and change one.

The runs of a copy are counted where they end anyway (`Resident.runs`); nothing is done per request. A change runs on a
thread of its own while requests go on; the copy is held meanwhile, so that it is not evicted under the change.

**Bytes.** A promotion charges both forms to the copy before it begins, and what it then takes when it has ended. The
free bytes are looked at and charged in one turn of the loop, so the first charge finds them free and evicts nobody.

**What a promotion brings** is measured by runs on zeros before and after it, of as many rows as the model's own runs
seem to have: a batch gains a half where a single row may gain nothing. It is remembered for the content; what was found
to bring nothing is taken back, and not tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from cachetools import LRUCache

from cache.machine import CacheMachine
from cache.types import CopyState
from mesh.loading.loading import Loading
from mesh.loading.places import HOST_MEMORY
from mesh.promotion import CopyHeat, Demote, Promote, PromotionLimits, choose_change
from mesh.resident import Resident
from mesh.telemetry import Sample
from mesh.threads import InThread, in_thread
from runtime_adapters.base import DYNAMIC, Array, LoadedModel, ModelMetadata, Promotable, Size
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.errors import AdapterError, BadInput, ModelRaised
from runtime_adapters.memory import MemoryProbe, corrected_size

log = logging.getLogger("hexcomb.promotion")

T = TypeVar("T")

LOOK_EVERY_S = 1.0
"""Between two looks: seconds are soon enough for what pays within a minute."""
RATE_MEMORY_S = 15.0
"""The rate of runs is averaged over about this time."""
REMEMBERED_MAX = 10_000
"""Contents whose gain by promotion is remembered."""
_TRIAL_ROWS = (1, 8, 32)
_INSTANT_S = 1e-6
_TRIAL_RUNS = 3
"""Before and after a promotion; the quickest counts, since others disturb a run and nothing speeds it up."""


@dataclass(slots=True)
class PromotionCounts:
    """What was changed since the start."""

    promotions: int = 0
    demotions: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Watched:
    """The rate of a copy's runs."""

    runs: int
    looked_s: float
    runs_per_s: float = 0.0
    in_change: bool = False


class Promotions:
    """Changes forms of resident copies. Owned by the event loop."""

    def __init__(
        self,
        cache: CacheMachine,
        loading: Loading,
        limits: PromotionLimits,
        *,
        under_pressure: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        in_thread: InThread = in_thread,
    ) -> None:
        """`under_pressure`: this box has no memory to spare, whatever the ledger says: nothing is promoted then."""
        self._cache = cache
        self._loading = loading
        self._limits = limits
        self._under_pressure = under_pressure
        self._clock = clock
        self._in_thread = in_thread
        self._watched: dict[int, _Watched] = {}
        self._saved_shares: LRUCache[str, float] = LRUCache(maxsize=REMEMBERED_MAX)
        self._task: asyncio.Task[None] | None = None
        self.counts = PromotionCounts()

    def start(self) -> None:
        """Look every second from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """No more changes; one that has begun ends."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def samples(self) -> Iterator[Sample]:
        """What was changed, as lines of a scrape."""
        for change, count in (
            ("promotion", self.counts.promotions),
            ("demotion", self.counts.demotions),
            ("failure", self.counts.failures),
        ):
            yield Sample(
                "hexcomb_form_changes_total",
                "Copies that were promoted to their fast form, demoted from it, or that failed to change.",
                (("change", change),),
                count,
            )

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.turn()
            except Exception:
                log.exception("looking at what to promote failed; the next look comes")

    async def turn(self) -> Promote | Demote | None:
        """One look, and the change that follows from it."""
        residents = {
            copy_id: resident
            for copy_id, resident in self._loading.residents.two_forms.items()
            if resident.copy.state is CopyState.SERVABLE
        }
        self._watch(residents)
        if not residents:
            return None
        usage = self._cache.usage()
        waiting = usage.copies_by_state.get(CopyState.WAITING_FOR_SPACE, 0) > 0
        change = choose_change(
            self._heats(residents),
            usage.free[HOST_MEMORY],
            usage.capacity[HOST_MEMORY],
            bytes_wanted=waiting or bool(usage.overdraft) or self._under_pressure(),
            limits=self._limits,
        )
        match change:
            case Promote(copy_id, reserve_bytes, why):
                await self._promote(residents[copy_id], reserve_bytes, why)
            case Demote(copy_id, why):
                await self._demote(residents[copy_id], why)
        return change

    # Looking ------------------------------------------------------------------------------------------------------

    def _watch(self, residents: dict[int, Resident]) -> None:
        now_s = self._clock()
        for copy_id in [copy_id for copy_id in self._watched if copy_id not in residents]:
            del self._watched[copy_id]
        for copy_id, resident in residents.items():
            watched = self._watched.get(copy_id)
            if watched is None:
                self._watched[copy_id] = _Watched(resident.runs, now_s)
                continue
            elapsed_s = now_s - watched.looked_s
            if elapsed_s <= 0:
                continue
            weight = 1 - math.exp(-elapsed_s / RATE_MEMORY_S)
            watched.runs_per_s += weight * ((resident.runs - watched.runs) / elapsed_s - watched.runs_per_s)
            watched.runs, watched.looked_s = resident.runs, now_s

    def _heats(self, residents: dict[int, Resident]) -> list[CopyHeat]:
        mapped: dict[str, int] = {}
        for other in self._loading.residents.two_forms.values():
            for content, _ in other.size.shared:
                mapped[content] = mapped.get(content, 0) + 1
        heats = []
        for copy_id, resident in residents.items():
            watched, is_hot, hot = self._watched[copy_id], resident.is_hot, resident.hot_size()
            if hot is None:
                continue  # it has crashed, or is being unloaded
            cold = resident.cold_size or resident.size
            itself = 0 if is_hot else 1
            heats.append(
                CopyHeat(
                    copy_id=copy_id,
                    name=str(resident.copy.key),
                    is_hot=is_hot,
                    runs_per_s=watched.runs_per_s,
                    run_s=resident.run_s,
                    saved_share=self._saved_shares.get(resident.artifact.content_hash),
                    cold_bytes=cold.total_bytes,
                    hot_bytes=hot.total_bytes,
                    shared_bytes=sum(size for content, size in cold.shared if mapped.get(content, 0) > itself),
                    in_change=watched.in_change,
                )
            )
        return heats

    # Changing -----------------------------------------------------------------------------------------------------

    async def _promote(self, resident: Resident, reserve_bytes: int, why: str) -> None:
        before = resident.size
        resident.cold_size = before
        both = replace(before, host_bytes=before.host_bytes + reserve_bytes - before.total_bytes)
        self._loading.resized(resident, size=both)
        log.info("promoting %s: %s", resident.copy.key, why)
        promote = partial(_promote_and_measure, run_s=resident.run_s)
        try:
            size, saved_share = await self._changed(resident, promote)
        except (AdapterError, MemoryError) as error:
            self.counts.failures += 1
            self._saved_shares[resident.artifact.content_hash] = 0.0  # not tried again
            log.warning("%s stays as it was loaded: %s", resident.copy.key, error)
            self._loading.resized(resident, size=before)
            return
        self.counts.promotions += 1
        self._saved_shares[resident.artifact.content_hash] = saved_share
        resident.run_s *= 1 - max(0.0, saved_share)
        self._loading.resized(resident, size=size)

    async def _demote(self, resident: Resident, why: str) -> None:
        log.info("demoting %s: %s", resident.copy.key, why)
        try:
            size = await self._changed(resident, _demote)
        except (AdapterError, MemoryError) as error:
            self.counts.failures += 1
            log.warning("%s stays promoted: %s", resident.copy.key, error)
            return
        self.counts.demotions += 1
        saved_share = self._saved_shares.get(resident.artifact.content_hash)
        if saved_share is not None and saved_share < 1:
            resident.run_s /= 1 - max(0.0, saved_share)
        self._loading.resized(resident, size=resident.cold_size or size)

    async def _changed(self, resident: Resident, work: Callable[[LoadedModel], T]) -> T:
        watched = self._watched[resident.copy.copy_id]
        watched.in_change = True
        resident.hold()
        thread = self._in_thread("promote", work, resident.model)
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            await asyncio.wait({thread})
            raise
        finally:
            watched.in_change = False
            resident.let_go()


def _promote_and_measure(model: LoadedModel, run_s: float) -> tuple[Size, float]:
    """What it takes now, and the share of a run that it saves, for as many rows as its runs of `run_s` seem to have."""
    assert isinstance(model, Promotable)
    cold_s = {rows: _quickest_run_s(model, rows) for rows in (_TRIAL_ROWS if model.metadata.batch_dimension else (1,))}
    rows = min(cold_s, key=lambda rows: abs(math.log(max(cold_s[rows], _INSTANT_S) / max(run_s, _INSTANT_S))))
    with MemoryProbe(settled=True) as probe:
        model.promote()
    saved_share = 1 - _quickest_run_s(model, rows) / max(cold_s[rows], _INSTANT_S)
    return corrected_size(model.size(), probe.grown_bytes), saved_share


def _demote(model: LoadedModel) -> Size:
    assert isinstance(model, Promotable)
    model.demote()
    return model.size()


def _quickest_run_s(model: LoadedModel, rows: int) -> float:
    """Seconds of this thread's time, which leaves out what others take of its core."""
    zeros = _zeros(model.metadata, rows)
    times_s = []
    for _ in range(_TRIAL_RUNS):
        began = time.thread_time()
        with contextlib.suppress(BadInput, ModelRaised):  # a model that takes no zeros takes its time to say so
            model.infer(zeros)
        times_s.append(time.thread_time() - began)
    return min(times_s)


def _zeros(metadata: ModelMetadata, rows: int) -> dict[str, Array]:
    inputs: dict[str, Array] = {}
    for spec in metadata.inputs:
        if not spec.optional:
            shape = [1 if size == DYNAMIC else size for size in spec.shape]
            if metadata.batch_dimension and shape:
                shape[0] = rows
            inputs[spec.name] = np.full(shape, b"" if spec.datatype == "BYTES" else 0, DTYPE_OF[spec.datatype])
    return inputs
