"""Pods that died over a request: what this pod saw of it, told to the pool.

Three witnesses know which model was running when a process ended:

* The pod that had forwarded the request: its line broke. It tries once more; a second death makes the model suspect.
* The client, when it had called the dead pod itself: it tries again on another one and says so
  (`grpc-previous-rpc-attempts`, or our client's own count). Two tries that failed, and two pods that were lost at
  about that time, are as good as having seen it.
* The dead process's flight recorder (`mesh.flight_recorder`), read by the next process in its place.

A model that is kept apart because of them may end its own process next, when it is loaded or when it runs; its pod sees
that, and tells as well.

What follows from the deaths is decided by `placement.policy.quarantine`; this module only reports them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import operator
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from mesh.flight_recorder import LastFlight
from mesh.routing.hop import previous_attempts
from mesh.transport.base import Call
from placement.errors import StoreError
from placement.membership import Membership
from placement.policy.quarantine import CRASHED, LOADING, RUNNING, judge
from placement.policy.snapshot import Death, Intent, ModelName, Suspicion

log = logging.getLogger("hexcomb.losses")

RECENT_S = 30.0
"""Losses older than this are not connected with a request that comes now."""
DEATHS_MIN = 2
"""One death proves nothing."""
SAID_WITHIN_S = 0.3
"""A write takes milliseconds; a store that is away must not keep a request from its second try."""
NOTICED_WITHIN_S = 1.5
"""Two probes find out that a pod has gone, and peers that are there answer within milliseconds."""
WRITES_MAX = 3
"""Tries to write a suspicion against others who write it too."""


class Asked(Protocol):
    """Who is there: `mesh.routing.probes.Probes`."""

    async def ask_all(self, until: Callable[[], bool]) -> None:
        """Ask every peer now, and wait until each has answered or is found not to, or until `until` holds."""


class Losses:
    """What this pod knows of deaths. Belongs to the event loop."""

    def __init__(
        self, membership: Membership, peers: Asked, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._membership = membership
        self._peers = peers
        self._clock = clock
        self._wall_clock = wall_clock
        self._recent: deque[tuple[float, str, str]] = deque(maxlen=64)

    def lost(self, pod: str, incarnation: str) -> None:
        """A pod went away without a goodbye."""
        self._recent.append((self._clock(), pod, incarnation))

    async def heed_retries(self, call: Call, name: ModelName, generation: int) -> None:
        """A client that has tried this request before may have left dead pods behind: two, with those known of."""
        attempts = previous_attempts(call) if call.metadata else 0
        known = self._known(name, generation)
        needed = DEATHS_MIN - len(known)
        if needed <= 0 or attempts < needed:
            return
        since_s = self._clock() - RECENT_S
        deaths = self._lost_since(since_s, known)
        if deaths or known:
            # The client is quicker than the probes: without the last one this pod might become the next.
            await self._look_around(lambda: len(self._lost_since(since_s, known)) >= needed)
            deaths = self._lost_since(since_s, known)
        if len(deaths) >= needed:
            await self.killed(name, generation, deaths[-needed:])

    async def heed_loads(self, name: ModelName, generation: int) -> None:
        """This pod is about to have a model loaded: have others died of that? What they were loading outlives them."""
        known = self._known(name, generation)
        needed = DEATHS_MIN - len(known)
        if needed <= 0 or len(self._loading(name, known)) < needed:
            return  # the usual case: nobody, or the one that loads it
        await self._look_around(lambda: len(self._died_loading(name, known)) >= needed)
        deaths = self._died_loading(name, known)
        if len(deaths) >= needed:
            await self.killed(name, generation, deaths)

    def _loading(self, name: ModelName, known: set[str]) -> list[Intent]:
        """Who says in the store that it loads the model, apart from those that are known to have died."""
        return [
            intent
            for of, intent in self._membership.intents
            if of == name and intent.doing == LOADING and intent.incarnation not in known
        ]

    def _died_loading(self, name: ModelName, known: set[str]) -> list[tuple[str, str]]:
        lost = {incarnation for _, _, incarnation in self._recent}
        pods = self._membership.view.pods
        return [
            (intent.pod, intent.incarnation)
            for intent in self._loading(name, known)
            if intent.incarnation in lost
            or intent.pod not in pods
            or pods[intent.pod].incarnation != intent.incarnation
        ]

    async def _look_around(self, seen: Callable[[], bool]) -> None:
        """Until it is seen, or every peer has answered, so that there is nothing more to see."""
        if not seen():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NOTICED_WITHIN_S):
                    await self._peers.ask_all(seen)

    async def first_death(self, name: ModelName, generation: int, pod: str, incarnation: str) -> None:
        """A pod died over a request that is tried once more, perhaps here: said before, since this pod might not be
        able to say it afterwards. It costs the request little, store or no store."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SAID_WITHIN_S):
                await self.killed(name, generation, [(pod, incarnation)])

    def _known(self, name: ModelName, generation: int) -> set[str]:
        """Incarnations whose deaths are in the store already."""
        suspicion = self._membership.view.suspicions.get(name)
        if suspicion is None or suspicion.generation != generation:
            return set()
        return {death.incarnation for death in suspicion.deaths}

    def _lost_since(self, since_s: float, known: set[str]) -> list[tuple[str, str]]:
        return [
            (pod, incarnation)
            for at_s, pod, incarnation in self._recent
            if at_s >= since_s and incarnation not in known
        ]

    async def killed(self, name: ModelName, generation: int, deaths: Sequence[tuple[str, str]]) -> None:
        """These pods died while they ran this model, or loaded it."""
        at_s = self._wall_clock()
        # A pod says in the store what it is about to load, and that outlives it.
        loading = {
            intent.incarnation for of, intent in self._membership.intents if of == name and intent.doing == LOADING
        }
        found = [
            Death(pod, incarnation, LOADING if incarnation in loading else RUNNING, at_s) for pod, incarnation in deaths
        ]
        written = await self._report(name, generation, found)
        if written is not None:
            await self._wait_known(name, written)

    async def crashed(self, name: ModelName, generation: int, pod: str, incarnation: str) -> None:
        """The model's own process ended on this pod."""
        await self._report(name, generation, [Death(pod, incarnation, CRASHED, self._wall_clock())])

    async def report(self, last: LastFlight) -> None:
        """What was in use when the process before this one died: perhaps hundreds of models, so none is waited for."""
        at_s = self._wall_clock()
        for key in last.in_use:
            death = Death(last.pod, last.incarnation, RUNNING, at_s)
            await self._report(ModelName(key.tenant, key.model_id), key.generation, [death])

    async def _report(self, name: ModelName, generation: int, deaths: Sequence[Death]) -> Suspicion | None:
        """What was written; None: nothing was."""
        for _ in range(WRITES_MAX):
            before: Suspicion | None = self._membership.view.suspicions.get(name)
            # The leader may have told the same deaths already, from intents that it has taken away since.
            told = {(death.pod, death.incarnation) for death in before.deaths} if before is not None else set()
            news = [d for d in deaths if d.doing == CRASHED or (d.pod, d.incarnation) not in told]
            after = judge(before, generation, news)
            if after == before:
                return None
            try:
                if await self._membership.write_suspicion(name, after):
                    seen = ", ".join(f"{death.doing} on {death.pod}" for death in news)
                    log.warning("model %s was there when processes died: %s", name, seen)
                    return after
            except StoreError as error:
                log.warning("deaths that model %s was seen at are not recorded: %s", name, error)
                return None
            # Another witness was quicker. The next try must build on what it said, or be as vain as this one.
            if not await self._until_view(name, partial(operator.ne, before)):
                break
        log.warning("deaths that model %s was seen at are not recorded: others go on writing of it", name)
        return None

    async def _wait_known(self, name: ModelName, suspicion: Suspicion) -> None:
        """Until this pod's own view has it, so that the request which brought it to light heeds it, too."""
        if not await self._until_view(name, partial(operator.eq, suspicion)):
            log.warning("the verdict on model %s is written, and this pod does not see it yet", name)

    async def _until_view(self, name: ModelName, holds: Callable[[Suspicion | None], bool]) -> bool:
        """Whether this came to hold of the suspicion in this pod's own view, within the time that a watch may take."""
        changed = asyncio.Event()
        stop = self._membership.on_change(lambda changes: changed.set())
        try:
            async with asyncio.timeout(NOTICED_WITHIN_S):
                while not holds(self._membership.view.suspicions.get(name)):
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return False
        finally:
            stop()
        return True
