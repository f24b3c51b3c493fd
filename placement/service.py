"""The placement service: every pod has one, one of them leads.

Leading is a key in the store on the pod's lease, so a leader that dies is followed by another within a lease's time,
and one that is cut off from the store stops leading by its own clock before that. What the leader does is in
`placement.term`, one term of it per object: losing the leader loses nothing.

Here are the loop, the election, and what every pod does, leader or not: it adopts restored registrations
(`placement.name_loss`), and remembers its own decisions for `explain`.

The pod that dies may be the one that leads. So every pod keeps for a while what went with pods that are gone; whoever
leads next begins with that.

A pod that drains does not lead while another one could.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass

from placement.attention import is_gone
from placement.constraints import NO_CONSTRAINTS, Constraints
from placement.decisions import Decision, DecisionLog
from placement.errands import Errands
from placement.errors import StoreClosed, StoreError
from placement.membership import Membership
from placement.name_loss import NameLoss
from placement.peers import Peers
from placement.policy.snapshot import ModelName, PoolView
from placement.pool_view import PodChange, PoolChanges
from placement.registry import Registry
from placement.service_limits import ServiceLimits
from placement.term import Term, TurnReport
from placement.view import Changes

log = logging.getLogger(__name__)

LOSSES_KEPT_MAX = 16
"""Batches in which pods went, kept for the next leader."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How this pod's service stands."""

    is_leader: bool
    leader: str
    """The pod that leads; empty: nobody."""
    orders_in_flight: int
    models_lost: int
    """Hot models that went with their pods and are not back."""
    models_unplaced: int
    """Models whose wanted copies found no place."""
    notice: str
    """Loud news: a store that was wiped and restored."""


class PlacementService:
    """One pod's part in deciding where models live. Belongs to the event loop."""

    def __init__(
        self,
        membership: Membership,
        registry: Registry,
        peers: Peers,
        *,
        settings: ServiceLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        constraints: Constraints = NO_CONSTRAINTS,
        healthy: Callable[[], Container[str]] | None = None,
    ) -> None:
        """`healthy`: pods that this one can reach; None: all that are in the view.

        Membership and registry are started before this, and closed after it.
        """
        self._membership = membership
        self._registry = registry
        self._peers = peers
        self._limits = settings or ServiceLimits()
        self._clock = clock
        self._wall_clock = wall_clock
        self._constraints = constraints
        self._healthy = healthy or (lambda: membership.view.pods)
        self._decisions = DecisionLog()
        self._names = NameLoss(membership, registry, peers, self._limits, clock)
        self._errands = Errands()
        self._term: Term | None = None
        self._seen = membership.view
        self._losses: deque[tuple[float, PoolChanges, PoolView, PoolView]] = deque(maxlen=LOSSES_KEPT_MAX)
        self._wake = asyncio.Event()
        self._stops: list[Callable[[], None]] = []
        self._running: asyncio.Task[None] | None = None

    # Life -----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to follow, and to lead when it is this pod's turn."""
        self.follow()
        self._running = asyncio.create_task(self._run())

    def follow(self) -> None:
        """Listen to the views, without a loop of its own: whoever calls this calls `turn`."""
        self._seen = self._membership.view
        self._stops = [
            self._membership.on_change(self._pool_changed),
            self._registry.on_change(self._names_changed),
        ]

    async def close(self) -> None:
        """Stop, and let another pod lead at once."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running
            self._running = None
        for stop in self._stops:
            stop()
        self._stops = []
        await self._errands.close(self._limits.close_within_s)
        if self._term is not None:
            await self._term.close(self._limits.close_within_s)
            self._term = None
        with contextlib.suppress(StoreError):
            await self._membership.resign()

    # Reading --------------------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this pod leads."""
        return self._membership.is_leader

    def recent_decisions(self, name: ModelName) -> tuple[Decision, ...]:
        """What this pod decided about a model or an alias while it led, oldest first; bounded."""
        return self._decisions.recent(name)

    def status(self) -> ServiceStatus:
        """For status and `top`."""
        leader, term = self._membership.leader, self._term
        return ServiceStatus(
            is_leader=self.is_leader,
            leader=leader.pod if leader is not None else "",
            orders_in_flight=len(term.orders) if term is not None else 0,
            models_lost=len(term.attention.lost) if term is not None else 0,
            models_unplaced=len(term.attention.unplaced) if term is not None else 0,
            notice=self._names.notice,
        )

    # The turn -------------------------------------------------------------------------------------------------------

    async def turn(self) -> TurnReport | None:
        """One step: stand for election if nobody leads, and if this pod leads, lead. None: it does not."""
        if self._registry.detached:
            self._errands.send("restored registrations", self._names.wait_turn())
        term = await self._lead()
        if term is None:
            return None
        self._errands.send("lost registrations", self._names.lead_turn())
        return await term.turn()

    async def settled(self) -> None:
        """Everything that turns have sent out has arrived or failed."""
        await self._errands.settled()
        if self._term is not None:
            await self._term.errands.settled()

    async def _run(self) -> None:
        while True:
            try:
                await self.turn()
            except StoreClosed:
                return
            except StoreError as error:
                log.info("the placement service waits for the store: %s", error)
            except Exception:
                log.exception("a turn of the placement service failed")
            await self._wait_for_work()

    async def _wait_for_work(self) -> None:
        """Until the next turn is due, or something happened that does not wait for it."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.turn_every_s):
                await self._wake.wait()
                await asyncio.sleep(self._limits.debounce_s)

    async def _lead(self) -> Term | None:
        """This pod's term, if it leads now."""
        if self._others_should_lead():
            # The key may be ours although we do not lead: the answer to an earlier resignation was lost.
            if self._is_own_record() and await self._membership.try_lead():
                log.info("this pod drains: another one leads the pool")
                await self._membership.resign()
        elif not self._membership.is_leader and self._is_vacant():
            await self._membership.try_lead()
        if not self._membership.is_leader:
            await self._end_term()
        elif self._term is None:
            self._begin_term()
        return self._term

    def _is_vacant(self) -> bool:
        leader = self._membership.leader
        return leader is None or leader.pod not in self._membership.view.pods or self._is_own_record()

    def _is_own_record(self) -> bool:
        leader = self._membership.leader
        return leader is not None and leader.pod == self._membership.pod_id

    def _others_should_lead(self) -> bool:
        pods = self._membership.view.pods
        own = pods.get(self._membership.pod_id)
        return own is not None and own.draining and any(pod.ready and not pod.draining for pod in pods.values())

    def _begin_term(self) -> None:
        log.info("this pod leads the pool")
        self._term = Term(
            self._membership,
            self._registry,
            self._peers,
            limits=self._limits,
            clock=self._clock,
            wall_clock=self._wall_clock,
            constraints=self._constraints,
            healthy=self._healthy,
            decisions=self._decisions,
        )
        self._term.begin()
        since_s = self._clock() - self._limits.losses_kept_s
        for at_s, changes, before, after in self._losses:
            if at_s >= since_s:
                self._term.pool_changed(changes, before, after)
        self._losses.clear()

    async def _end_term(self) -> None:
        if self._term is not None:
            log.info("this pod leads no more")
            term, self._term = self._term, None
            await term.close(within_s=0.0)

    # What happens ---------------------------------------------------------------------------------------------------

    def _pool_changed(self, changes: PoolChanges) -> None:
        before, self._seen = self._seen, self._membership.view
        if self._term is not None:
            self._term.pool_changed(changes, before, self._seen)
        elif any(is_gone(change) for change in changes.pods):
            self._losses.append((self._clock(), changes, before, self._seen))
        if changes.leader or any(_matters_at_once(change) for change in changes.pods):
            self._wake.set()

    def _names_changed(self, changes: Changes) -> None:
        if self._term is not None:
            self._term.names_changed(changes)
        if changes.aliases:
            self._wake.set()


def _matters_at_once(change: PodChange) -> bool:
    """A pod came, went, or began or ceased to take models; its figures can wait for the next turn."""
    before, after = change.before, change.after
    if before is None or after is None:
        return True
    return (before.incarnation, before.ready, before.draining) != (after.incarnation, after.ready, after.draining)
