"""Which deaths a model is blamed for, and as what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from cache.types import ModelKey
from mesh.flight_recorder import LastFlight
from mesh.routing.losses import NOTICED_WITHIN_S, Losses
from mesh.transport.base import Call
from placement.policy.quarantine import CRASHED, LOADING, RUNNING
from placement.policy.snapshot import Death, Intent, ModelName, Pod, PoolView, Suspicion, Verdict
from tests.unit.placement.policy.builders import view

NAME = ModelName("t", "m")
RETRIED = Call("/infer", b"", (("hexcomb-previous-attempts", "2"),))


class Pool:
    """A membership that keeps suspicions and shows them at once, unless its watch is `late`; and this pod's peers, of
    which some have not answered until `all_answered`."""

    def __init__(self, *intents: Intent, late: bool = False) -> None:
        self.view = PoolView()
        self.late = late
        self.written: list[ModelName] = []
        self.intents = tuple((NAME, intent) for intent in intents)
        self.all_answered = False
        self.listeners: list[Callable[[Any], None]] = []
        self.quicker: Suspicion | None = None
        """What another witness writes just before this one; shown when the test says so."""

    def on_change(self, listener: Callable[[Any], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def show(self, name: ModelName, suspicion: Suspicion) -> None:
        self.view = PoolView(suspicions={name: suspicion})
        for listener in self.listeners:
            listener(None)

    async def write_suspicion(self, name: ModelName, suspicion: Suspicion) -> bool:
        self.written.append(name)
        if self.quicker not in (None, self.suspicion):
            return False
        if not self.late:
            self.show(name, suspicion)
        return True

    async def ask_all(self, until: Callable[[], bool]) -> None:
        for _ in range(1000):
            if until() or self.all_answered:
                return
            await asyncio.sleep(0)

    @property
    def suspicion(self) -> Suspicion | None:
        return self.view.suspicions.get(NAME)


def losses_of(pool: Pool) -> Losses:
    peers: Any = pool
    return Losses(peers, peers, time.monotonic, time.time)


def intent(pod: str) -> Intent:
    return Intent(pod, f"{pod}-1", 1, LOADING, 0.0)


async def test_pods_that_had_said_they_load_the_model_died_loading_it() -> None:
    pool = Pool(intent("p1"), intent("p2"))
    await losses_of(pool).killed(NAME, 1, [("p1", "p1-1"), ("p2", "p2-1")])
    assert pool.suspicion is not None
    assert [death.doing for death in pool.suspicion.deaths] == [LOADING, LOADING]
    assert pool.suspicion.verdict is Verdict.QUARANTINED


async def test_pods_that_had_not_died_running_it() -> None:
    pool = Pool(intent("p3"))
    await losses_of(pool).killed(NAME, 1, [("p1", "p1-1"), ("p2", "p2-1")])
    assert pool.suspicion is not None
    assert [death.doing for death in pool.suspicion.deaths] == [RUNNING, RUNNING]
    assert pool.suspicion.isolate


async def test_a_death_that_the_leader_has_told_is_not_told_again_as_another() -> None:
    pool = Pool(intent("p1"), intent("p2"))
    losses = losses_of(pool)
    await losses.killed(NAME, 1, [("p1", "p1-1"), ("p2", "p2-1")])
    pool.intents = ()
    await losses.killed(NAME, 1, [("p1", "p1-1"), ("p2", "p2-1")])
    assert pool.suspicion is not None
    assert len(pool.suspicion.deaths) == 2


async def test_a_retried_request_waits_for_the_probes_to_find_the_second_loss() -> None:
    pool = Pool(intent("p1"), intent("p2"))
    losses = losses_of(pool)
    losses.lost("p1", "p1-1")
    heeding = asyncio.create_task(losses.heed_retries(RETRIED, NAME, 1))
    await asyncio.sleep(0)
    assert pool.suspicion is None
    losses.lost("p2", "p2-1")
    await heeding
    assert pool.suspicion is not None
    assert pool.suspicion.verdict is Verdict.QUARANTINED


async def test_a_retried_request_goes_on_as_soon_as_every_peer_has_answered() -> None:
    """A pod that was killed from outside leaves requests behind that were tried twice, and a pool that is well."""
    pool = Pool()
    losses = losses_of(pool)
    losses.lost("p1", "p1-1")
    pool.all_answered = True
    async with asyncio.timeout(NOTICED_WITHIN_S / 2):
        await losses.heed_retries(RETRIED, NAME, 1)
    assert pool.suspicion is None


async def test_a_model_that_was_named_at_one_death_costs_its_retried_requests_no_wait_in_a_pool_that_is_well() -> None:
    pool = Pool()
    losses = losses_of(pool)
    await losses.first_death(NAME, 1, "p1", "p1-1")
    named = pool.suspicion
    losses.lost("p1", "p1-1")
    pool.all_answered = True
    once = Call("/infer", b"", (("hexcomb-previous-attempts", "1"),))
    async with asyncio.timeout(NOTICED_WITHIN_S / 2):
        await losses.heed_retries(once, NAME, 1)
    assert pool.suspicion == named


async def test_two_pods_that_load_a_model_and_live_do_not_keep_a_third_from_loading_it() -> None:
    pool = Pool(intent("p1"), intent("p2"))
    pool.view = view([Pod("p1", "p1-1", "h:1"), Pod("p2", "p2-1", "h:2")])
    pool.all_answered = True
    async with asyncio.timeout(NOTICED_WITHIN_S / 2):
        await losses_of(pool).heed_loads(NAME, 1)
    assert pool.written == []


async def test_a_death_that_another_witness_was_quicker_to_write_of_is_added_to_what_it_wrote() -> None:
    pool = Pool()
    pool.quicker = Suspicion(1, Verdict.SUSPECT, (Death("p1", "p1-1", RUNNING, 0.0),))
    losses = losses_of(pool)
    telling = asyncio.create_task(losses.crashed(NAME, 1, "p2", "p2-1"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(pool.written) == 1, "it waits for the view before it tries again"
    pool.show(NAME, pool.quicker)
    await telling
    assert pool.suspicion is not None
    assert [(death.pod, death.doing) for death in pool.suspicion.deaths] == [("p1", RUNNING), ("p2", CRASHED)]


async def test_a_restarted_pod_does_not_wait_for_the_view_of_each_model_that_was_in_use() -> None:
    pool = Pool(late=True)
    in_use = tuple(ModelKey("t", f"m{number}", 1) for number in range(300))
    async with asyncio.timeout(1):
        await losses_of(pool).report(LastFlight("p1", "p1-0", in_use))
    assert len(pool.written) == 300


async def test_whoever_is_about_to_load_a_model_heeds_those_who_died_loading_it() -> None:
    pool = Pool(intent("p1"), intent("p2"))
    await losses_of(pool).heed_loads(NAME, 1)
    assert pool.suspicion is not None, "neither is in the pool any more"
    assert pool.suspicion.verdict is Verdict.QUARANTINED


async def test_one_that_died_loading_a_model_proves_nothing() -> None:
    pool = Pool(intent("p1"))
    await losses_of(pool).heed_loads(NAME, 1)
    assert pool.suspicion is None


async def test_a_model_that_runs_apart_and_goes_on_crashing_is_quarantined() -> None:
    pool = Pool()
    losses = losses_of(pool)
    await losses.killed(NAME, 1, [("p1", "p1-1"), ("p2", "p2-1")])
    for _ in range(3):
        assert pool.suspicion is not None
        assert pool.suspicion.verdict is Verdict.SUSPECT
        await losses.crashed(NAME, 1, "p3", "p3-1")
    assert pool.suspicion is not None
    assert pool.suspicion.verdict is Verdict.QUARANTINED


async def test_a_second_pod_that_a_client_lost_counts_beside_the_first_that_a_pod_had_told_of() -> None:
    pool = Pool()
    losses = losses_of(pool)
    await losses.first_death(NAME, 1, "p1", "p1-1")
    assert pool.suspicion is not None
    assert not pool.suspicion.isolate
    losses.lost("p1", "p1-1")
    losses.lost("p2", "p2-1")
    once = Call("/infer", b"", (("hexcomb-previous-attempts", "1"),))
    await losses.heed_retries(once, NAME, 1)
    assert pool.suspicion.isolate
