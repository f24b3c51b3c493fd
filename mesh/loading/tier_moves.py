"""From `StartPark` and `StartReturn` to their events: a copy that goes to RAM, and one that comes back to its device.

A return is a load to everybody but the disk: the same time limit, the same event. Like a load it cannot be stopped once
it runs, so what comes back too late is freed on arrival.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from cache.events import Loaded, LoadFailed, LoadOverdue, Parked, ParkFailed
from cache.types import ModelKey
from mesh.loading.failures import CANCELLED, LoadFailures
from mesh.loading.host_tier import HostTier, ReturnsTooLate
from mesh.loading.places import bytes_parked
from mesh.loading.residents import Residents
from mesh.settings import Settings
from mesh.staging import Stages
from mesh.telemetry import Telemetry
from runtime_adapters import errors as adapter_errors

log = logging.getLogger("hexcomb.loading")


class TierMoves:
    """Owned by the event loop."""

    def __init__(
        self,
        *,
        host_tier: HostTier,
        residents: Residents,
        staging: Stages,
        failures: LoadFailures,
        settings: Settings,
        telemetry: Telemetry,
        overdue: Callable[[LoadOverdue], None],
        clock: Callable[[], float],
    ) -> None:
        """`overdue` hears of a return at its time limit."""
        self._host_tier = host_tier
        self._residents = residents
        self._staging = staging
        self._failures = failures
        self._settings = settings
        self._telemetry = telemetry
        self._overdue = overdue
        self._clock = clock

    async def park(self, copy_id: int) -> Parked | ParkFailed:
        """Carry out StartPark."""
        resident = self._residents.by_copy[copy_id]
        try:
            size = await self._host_tier.park(resident)
        except Exception as error:  # the cache has it unloaded instead
            log.warning("parking %s failed: %s: %s", resident.copy.key, type(error).__name__, error)
            return ParkFailed(copy_id, f"{type(error).__name__}: {error}")
        self._residents.take_out(copy_id)
        return Parked(copy_id, bytes_parked(size))

    async def bring_back(self, key: ModelKey, copy_id: int) -> Loaded | LoadFailed:
        """Carry out StartReturn."""
        resident, began = self._host_tier.resident(copy_id), self._clock()
        timeout_s = self._settings.load_timeout_s
        failure = CANCELLED
        try:
            await self._host_tier.bring_back(copy_id, timeout_s)
        except ReturnsTooLate as late:
            message = f"the return of {key} to {resident.device} takes longer than {timeout_s:g} s (load_timeout_s)"
            failure = self._failures.told(key, "return", resident.format, adapter_errors.LoadFailed(message))
            self._overdue(LoadOverdue(copy_id, failure))
            await self._host_tier.free_late(late)
        except asyncio.CancelledError:
            pass
        except Exception as error:  # every failure of a return becomes the cache's event
            failure = self._failures.told(key, "return", resident.format, error)
        else:
            self._telemetry.load_stage(resident.format, "return", self._clock() - began)
            return self._residents.enter(resident)
        self._staging.release(resident.artifact)
        return LoadFailed(copy_id, failure)
