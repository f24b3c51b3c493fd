"""From `StartFetch` to `Fetched`: an artifact on this disk, and what its model is expected to take.

What was fetched is held here until its load begins. The cache may give a load up before that, and then no command says
so: whatever the cache no longer knows is let go of after each event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from cache.copies import Copy
from cache.events import Fetched, FetchFailed
from cache.types import Bytes, Failure, FailureKind, ModelKey
from mesh.known_sizes import NOTHING
from mesh.loading.failures import CANCELLED, LoadFailures
from mesh.loading.places import bytes_on, shared_parts
from mesh.loading.pool_hooks import PoolHooks
from mesh.settings import Settings
from mesh.staging import ALWAYS_ISOLATED, Staged, Stages
from mesh.threads import InThread
from placement.records import ModelRecord
from runtime_adapters.base import CPU, Device
from runtime_adapters.errors import AdapterError


class Fetches:
    """Owned by the event loop."""

    def __init__(
        self,
        *,
        staging: Stages,
        settings: Settings,
        devices: Sequence[Device],
        failures: LoadFailures,
        hooks: PoolHooks,
        record_of: Callable[[ModelKey], ModelRecord | None],
        in_thread: InThread,
    ) -> None:
        self._staging = staging
        self._settings = settings
        self._devices = devices
        self._failures = failures
        self._hooks = hooks
        self._record_of = record_of
        self._in_thread = in_thread
        self._staged: dict[int, Staged] = {}

    async def fetch(self, key: ModelKey, copy_id: int) -> Fetched | FetchFailed:
        """Carry out StartFetch."""
        try:
            await self._hooks.before_load(key)
            staged = await self._staging.stage_again(key)
            if staged is None:
                record = self._record_of(key)
                if record is None:
                    gone = f"model {key.model_id!r} is not registered"
                    return FetchFailed(copy_id, Failure(FailureKind.PERMANENT, gone))
                staged = await self._staging.stage(key, record)
        except asyncio.CancelledError:
            return FetchFailed(copy_id, CANCELLED)
        except Exception as error:  # every failure of a fetch becomes the cache's event
            return FetchFailed(copy_id, self._failures.told(key, "fetch", self._staging.format_of(key), error))
        self._staged[copy_id] = staged
        devices = self._devices if self._is_of_ours(staged) else [staged.options.device]
        first, *peers = [bytes_on(device, staged.estimate, staged.workspace_bytes) for device in devices]
        return Fetched(
            copy_id,
            first,
            estimate_knows=staged.adapter.format not in ALWAYS_ISOLATED,
            shared=shared_parts(staged.estimate),
            otherwise=await self._otherwise(staged),
            peers=tuple(peers),
        )

    async def _otherwise(self, staged: Staged) -> Bytes | None:
        """What a model of a GPU would take on the CPU, where it may run there."""
        if self._settings.device_full != "run_on_cpu" or not self._is_of_ours(staged):
            return None
        cpu = on_cpu(staged)
        try:
            estimate = await self._in_thread("estimate", cpu.adapter.estimate, cpu.path, cpu.options)
        except AdapterError:
            return None  # it needs the device
        return bytes_on(CPU, estimate)

    def _is_of_ours(self, staged: Staged) -> bool:
        """Whether it goes to one of this pod's GPUs: neither to the CPU, nor to a server beside the pod."""
        kind = staged.options.device.kind
        return kind != CPU.kind and kind == self._devices[0].kind

    def take(self, copy_id: int) -> Staged:
        """What a load begins with; whoever takes it releases its artifact."""
        return self._staged.pop(copy_id)

    def placed(self, staged: Staged, copy: Copy) -> Staged:
        """For the device that the cache has chosen."""
        if copy.elsewhere:
            return on_cpu(staged)
        if not self._is_of_ours(staged):
            return staged
        return replace(staged, options=replace(staged.options, device=self._devices[copy.device_index]))

    def put_back(self, copy_id: int, staged: Staged) -> None:
        """Its load will be ordered once more."""
        self._staged[copy_id] = staged

    def release_dropped(self, is_known: Callable[[int], bool]) -> None:
        """Let go of what was fetched for copies that the cache has given up."""
        for copy_id in [copy_id for copy_id in self._staged if not is_known(copy_id)]:
            self._staging.release(self._staged.pop(copy_id).artifact)


def on_cpu(staged: Staged) -> Staged:
    """The same model for the CPU; it is not known how long a run takes there."""
    return replace(staged, options=replace(staged.options, device=CPU), run_s=None, loadable=NOTHING)
