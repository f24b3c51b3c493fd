"""The placement service through whatever happens to a small pool; then all is well, and things must come to be as told.

Questions: after pods died, restarted, refused and drained, after models and aliases changed and the store was lost, has
every pinned model its copies, and none more than anybody wants? Is every alias where it was told to be? Is nothing
registered forgotten, nothing ordered for ever, no error swallowed?
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.simulation.virtual_loop import VirtualLoop
from placement.errors import PlacementError
from placement.records import AliasState, ModelSpec
from tests.unit.placement.pools import Pods, T, name

MODELS = ["a", "b", "c", "d"]
POD_IDS = ["p1", "p2", "p3", "p4"]
model_ids, pod_ids = st.sampled_from(MODELS), st.sampled_from(POD_IDS)

STEPS = st.one_of(
    st.tuples(st.just("register"), model_ids, st.booleans(), st.integers(0, 2)),
    st.tuples(st.just("unregister"), model_ids),
    st.tuples(st.just("move alias"), model_ids),
    st.tuples(st.just("kill"), pod_ids),
    st.tuples(st.just("start"), pod_ids),
    st.tuples(st.just("drain"), pod_ids),
    st.tuples(st.just("hold"), pod_ids, model_ids),
    st.tuples(st.just("let go"), pod_ids, model_ids),
    st.tuples(st.just("busy"), pod_ids, model_ids),
    st.tuples(st.just("refuse"), pod_ids),
    st.tuples(st.just("take"), pod_ids),
    st.tuples(st.just("carry out")),
    st.tuples(st.just("store away")),
    st.tuples(st.just("store back")),
    st.tuples(st.just("wipe")),
    st.tuples(st.just("turn"), st.integers(1, 12)),
)


class Errors(logging.Handler):
    """What was logged with a traceback: bugs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class World:
    """The pool and the story so far."""

    def __init__(self) -> None:
        self.pool = Pods(at_once=False, virtual=True, restore_gathers_s=5.0)
        self.registered: set[str] = set()
        self.unregistered: set[str] = set()
        self.may_return: set[str] = set()
        """A pod that was out of reach while it was unregistered, and when its tombstone was lost, may bring it back."""

    async def begin(self) -> None:
        await self.pool.start("p1", "p2", "p3")
        await self.register("a", True, 0)
        await self.register("b", False, 0)
        await self.pool.registry.set_alias(T, "alias", "a")
        await self.pool.turn(2)

    async def step(self, kind: str, *args: Any) -> None:
        pool = self.pool
        match kind:
            case "register":
                await self.register(*args)
            case "unregister":
                if await pool.registry.unregister(T, args[0]):
                    self.registered.discard(args[0])
                    self.unregistered.add(args[0])
            case "move alias":
                await pool.registry.set_alias(T, "alias", args[0])
            case "kill" if args[0] in pool.members and self.others_know(args[0]):
                await self.as_if_reached(pool.kill(args[0]))
            case "start" if args[0] not in pool.members and pool.store.outage is None:
                await pool.start(args[0])
            case "drain" if args[0] in pool.members:
                pool.members[args[0]].say(draining=True)
            case "hold" if args[0] in pool.members and args[1] in self.registered:
                record = pool.registry.model(T, args[1])
                pool.peers.hold(args[0], name(args[1]), record.generation if record else 1)
            case "let go" if args[0] in pool.members:
                pool.peers.let_go(args[0], name(args[1]))
            case "busy" if args[0] in pool.members:
                await pool.busy(args[0], **{args[1]: 20.0})
            case "refuse":
                pool.peers.unreachable.add(args[0])
            case "take":
                pool.peers.unreachable.discard(args[0])
            case "carry out" if pool.store.outage is None:
                await pool.peers.carry_out()
            case "store away":
                pool.store.outage = "away"
            case "store back":
                pool.store.outage = None
            case "wipe" if pool.store.outage is None:
                await pool.store.wipe()
                self.may_return |= self.unregistered
            case "turn":
                await pool.turn(args[0])
        await pool.quiet()

    def others_know(self, pod_id: str) -> bool:
        """Whether what is registered outlives the pod, even if the store has lost it."""
        others = (member for other, member in self.pool.members.items() if other != pod_id)
        return any({r.id for r in member.registry.view.every_model()} >= self.registered for member in others)

    async def as_if_reached(self, work: Coroutine[Any, Any, None]) -> None:
        outage, self.pool.store.outage = self.pool.store.outage, None
        await work
        self.pool.store.outage = outage

    async def register(self, model_id: str, pinned: bool, copies_min: int) -> None:
        known = self.pool.registry.model(T, model_id)
        spec = ModelSpec("file:///m", pinned=pinned, copies_min=copies_min)
        await self.pool.registry.register(T, model_id, spec, if_generation=known.generation if known else None)
        self.registered.add(model_id)
        await self.pool.quiet()

    async def heal(self) -> None:
        """Nothing is wrong any more, and there is time."""
        self.pool.store.outage = None
        self.pool.peers.unreachable.clear()
        for member in self.pool.members.values():
            member.say(draining=False, busy=())
        await self.pool.quiet()
        for _ in range(60):
            await self.pool.turn(1, every_s=6.0)
            await self.pool.peers.carry_out()
            await self.pool.quiet()

    def check(self) -> None:
        pool = self.pool
        leaders = [member.pod.id for member in pool.members.values() if member.service.is_leader]
        assert len(leaders) == 1, leaders
        for member in pool.members.values():
            assert not member.registry.detached
            known = {record.id for record in member.registry.view.every_model()}
            assert known >= self.registered
            assert known - self.registered <= self.may_return
        assert pool.leader.service.status().orders_in_flight == 0
        for record in pool.registry.view.every_model():
            serving = len(pool.serving(record.id))
            least = min(max(record.spec.copies_min, int(record.spec.pinned)), len(pool.members))
            assert serving >= least, f"{record.id}: {serving} of at least {least}"
            assert serving <= max(1, least), f"{record.id}: {serving}, and {least} are enough"
        alias = pool.registry.alias(T, "alias")
        assert alias is not None
        assert alias.state is AliasState.DEFINED


async def play(story: list[tuple[Any, ...]]) -> None:
    errors = Errors()
    logging.getLogger("placement").addHandler(errors)
    world = World()
    try:
        await world.begin()
        for kind, *args in story:
            try:
                await world.step(kind, *args)
            except PlacementError:
                continue  # the store is away, the alias holds the model: an answer, not a bug
        await world.heal()
        world.check()
        assert errors.found == []
    finally:
        logging.getLogger("placement").removeHandler(errors)
        world.pool.store.outage = None
        await world.pool.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=8, max_size=40))
def test_the_pool_comes_to_be_as_it_was_told_whatever_happened(story: list[tuple[Any, ...]]) -> None:
    loop = VirtualLoop()
    loop.run(play(story))
    loop.discard()
    assert loop.mishaps == []
