"""Pods that died over a request: what this pod saw of it, told to the pool.

Three witnesses know which model was running when a process ended:

* The pod that had forwarded the request: its line broke. It tries once more; a second death makes the model suspect.
* The client, when it had called the dead pod itself: it tries again on another one and says so
  (`grpc-previous-rpc-attempts`, or our client's own count). Two tries that failed, and two pods that were lost at
  about that time, are as good as having seen it.
* The dead process's flight recorder (`mesh.flight_recorder`), read by the next process in its place.

What follows from the deaths is decided by `placement.policy.quarantine`; this module only reports them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from mesh.flight_recorder import LastFlight
from mesh.routing.hop import previous_attempts
from mesh.transport.base import Call
from placement.errors import StoreError
from placement.membership import Membership
from placement.policy.quarantine import RUNNING, judge
from placement.policy.snapshot import Death, ModelName, Suspicion

log = logging.getLogger("hexcomb.losses")

RECENT_S = 30.0
"""Losses older than this are not connected with a request that comes now."""
RETRIES_MIN = 2
WRITES_MAX = 3
"""Tries to write a suspicion against others who write it too."""


class Losses:
    """What this pod knows of deaths. Belongs to the event loop."""

    def __init__(self, membership: Membership, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._membership = membership
        self._clock = clock
        self._wall_clock = wall_clock
        self._recent: deque[tuple[float, str, str]] = deque(maxlen=64)

    def lost(self, pod: str, incarnation: str) -> None:
        """A pod went away without a goodbye."""
        self._recent.append((self._clock(), pod, incarnation))

    async def heed_retries(self, call: Call, name: ModelName, generation: int) -> None:
        """A client that has tried this request twice before may have left two dead pods behind."""
        if not call.metadata or previous_attempts(call) < RETRIES_MIN:
            return
        since_s = self._clock() - RECENT_S
        deaths = [(pod, incarnation) for at_s, pod, incarnation in self._recent if at_s >= since_s]
        if len(deaths) >= RETRIES_MIN:
            await self.killed(name, generation, deaths[-RETRIES_MIN:])

    async def killed(self, name: ModelName, generation: int, deaths: Sequence[tuple[str, str]]) -> None:
        """These pods died while they ran this model."""
        at_s = self._wall_clock()
        await self._report(name, generation, [Death(pod, incarnation, RUNNING, at_s) for pod, incarnation in deaths])

    async def report(self, last: LastFlight) -> None:
        """What was in use when the process before this one died."""
        at_s = self._wall_clock()
        for key in last.in_use:
            death = Death(last.pod, last.incarnation, RUNNING, at_s)
            await self._report(ModelName(key.tenant, key.model_id), key.generation, [death])

    async def _report(self, name: ModelName, generation: int, deaths: Sequence[Death]) -> None:
        for _ in range(WRITES_MAX):
            before: Suspicion | None = self._membership.view.suspicions.get(name)
            after = judge(before, generation, deaths)
            if after == before:
                return
            try:
                if await self._membership.write_suspicion(name, after):
                    log.warning("model %s was in use when pods died (%s)", name, ", ".join(d.pod for d in deaths))
                    return
            except StoreError as error:
                log.warning("deaths that model %s was seen at are not recorded: %s", name, error)
                return
