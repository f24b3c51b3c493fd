"""How a request's run comes to its end: where it runs, and what happens when its copy dies or there is no memory.

A request whose isolated process died under it is tried once more, by itself and on a fresh copy, since inference has
no effects; a second death is reported, not retried. Requests that only waited for that process try on. One for which a
framework found no memory is tried once more when idle copies have left.
"""

from __future__ import annotations

import asyncio
import time

from mesh.batching.joining import Request
from mesh.generations import wanted
from mesh.loading.loading import Loading
from mesh.outcomes import Outcomes
from mesh.request import Tensors, checked_inputs
from mesh.resident import SMALL_REQUEST_BYTES, Resident
from mesh.running import CopyGone, Runs, TooLate
from placement.records import ModelRecord
from runtime_adapters.base import Array, is_explanation
from runtime_adapters.errors import ModelCrashed, OutOfMemory

_COPIES_TRIED_MAX = 6
"""By a request whose copies die under others: each of those others kills two at most."""


class OnlyStreams(Exception):
    """The model's answers come as a stream, and one answer was asked for. Clients see UNIMPLEMENTED."""


class Completing:
    """Runs requests until each has an answer or an error; on the event loop."""

    def __init__(self, loading: Loading, runner: Runs, outcomes: Outcomes) -> None:
        self._loading = loading
        self._runner = runner
        self._outcomes = outcomes

    async def run_to_its_end(
        self, record: ModelRecord, resident: Resident, tensors: Tensors, deadline_s: float | None
    ) -> dict[str, Array]:
        """On the copy that the request holds, or on those that take its place.

        Raises TooLate, BadInput, ModelRaised, OutOfMemory, ModelCrashed, OnlyStreams, Refused.
        """
        try:
            return await self._run(resident, tensors, deadline_s)
        except (ModelCrashed, CopyGone) as crash:
            return await self._run_again(resident, record, tensors, deadline_s, crash)
        except (OutOfMemory, MemoryError) as want:
            return await self._run_with_room(resident, record, tensors, deadline_s, str(want))

    async def _run(
        self, resident: Resident, tensors: Tensors, deadline_s: float | None, *, alone: bool = False
    ) -> dict[str, Array]:
        if resident.model.metadata.decoupled:
            raise OnlyStreams(
                "this model may give any number of answers to a request (its transaction policy is decoupled); ask by "
                "gRPC's ModelStreamInfer"
            )
        inputs, wanted_outputs = checked_inputs(resident, tensors)
        if tensors.size_bytes > SMALL_REQUEST_BYTES:
            self._outcomes.notice_size(resident, inputs, tensors.size_bytes)
        explains = any(map(is_explanation, wanted_outputs))
        if not explains and self._runner.runs_inline(resident, tensors.size_bytes):
            return self._runner.run_inline(resident, inputs, wanted_outputs, tensors.size_bytes)
        request = Request(
            inputs,
            wanted_outputs,
            tensors.size_bytes,
            deadline_s,
            priority=tensors.options.priority,
            alone=alone or explains,
            unusual=explains,
        )
        if not tensors.options.timeout_s or deadline_s is None:
            return await self._runner.run_in_thread(resident, request)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                return await self._runner.run_in_thread(resident, request)
        except TimeoutError as error:
            own_s = tensors.options.timeout_s
            raise TooLate(f"the request's own timeout of {own_s:g} s, or its deadline, is past") from error

    async def _run_with_room(
        self, resident: Resident, record: ModelRecord, tensors: Tensors, deadline_s: float | None, why: str
    ) -> dict[str, Array]:
        await self._loading.make_room(resident, tensors.size_bytes, why)
        try:
            return await self._run(resident, tensors, deadline_s, alone=True)
        except (ModelCrashed, CopyGone) as crash:
            return await self._run_again(resident, record, tensors, deadline_s, crash)
        except MemoryError as error:
            raise OutOfMemory("there was no memory for this request, twice; send fewer rows") from error

    async def _run_again(
        self,
        crashed: Resident,
        record: ModelRecord,
        tensors: Tensors,
        deadline_s: float | None,
        crash: ModelCrashed | CopyGone,
    ) -> dict[str, Array]:
        """On a fresh copy, and by itself: it may have been another request of the same run that killed the copy. A copy
        that dies under others while this one waits for its run is no try of this one."""
        crashes = self.crashed(crashed, crash)
        for _ in range(_COPIES_TRIED_MAX):
            resident = await self._loading.wait_servable(wanted(record), deadline_s)
            try:
                return await self._run(resident, tensors, deadline_s, alone=True)
            except (ModelCrashed, CopyGone) as again:
                crash = again
                crashes += self.crashed(resident, again)
                if crashes > 1:
                    raise
            finally:
                resident.let_go()
        raise ModelCrashed("copies of this model died under other requests, time and again") from crash

    def crashed(self, resident: Resident, crash: ModelCrashed | CopyGone) -> int:
        """1 if the copy died under this request. The first to see it says so."""
        if isinstance(crash, CopyGone):
            return 0
        if not resident.died:
            resident.died = True
            self._loading.crashed(resident, str(crash))
        return 1
