"""Several memberships on one store, in virtual time: what they tell one another, and what they make of its absence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mesh.simulation.store import StoreConditions, StoreServer
from mesh.simulation.virtual_loop import Process, VirtualLoop
from placement import keys
from placement.errors import PodIdTaken, StoreUnavailable
from placement.membership import LEASE_TTL_S, Claimed, HeldBy, Membership, StoreAway
from placement.policy.snapshot import BusyModel, Copy, Death, LoadFailure, ModelName, Parked, Pod, Suspicion, Verdict
from placement.pool_records import HotModel
from placement.pool_view import PoolChanges
from placement.store.base import Put
from placement.store.embedded import EmbeddedStore

TTL_S = 10.0
A, B = ModelName("t", "a"), ModelName("t", "b/ž")
PROMPT = StoreConditions(slow_share=0.0, watch_slow_share=0.0, call_timeout_s=2.0)


class World:
    """A store, and pods that are processes of their own."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.server = StoreServer(self.loop, Random(1), PROMPT)
        self.processes: dict[str, Process] = {}
        self.starts = 0

    def membership(self, pod: str, skew_s: float) -> Membership:
        return Membership(
            self.server.connect(pod),
            pod,
            lease_ttl_s=TTL_S,
            clock=lambda: self.loop.time() + 1000 * skew_s,
            wall_clock=lambda: 1.7e9 + skew_s + self.loop.time(),
        )

    def record(self, pod: str) -> Pod:
        self.starts += 1
        return Pod(pod, f"{pod}-{self.starts}", f"host-{self.starts}:8033", ready=True)

    async def start(self, pod: str, *, skew_s: float = 0.0) -> Membership:
        """A new process begins as this pod."""
        process = Process(self.loop, pod)
        membership = process.call(self.membership, pod, skew_s)
        await process.start(membership.start(self.record(pod)))
        self.processes[pod] = process
        return membership

    async def within(self, pod: str, work: Coroutine[Any, Any, Any]) -> Any:
        return await self.processes[pod].start(work)

    def kill(self, pod: str) -> None:
        self.processes[pod].kill()
        self.server.forget_client(pod)

    def holds(self, key: str) -> bytes | None:
        kv = self.server.peek(key)
        return None if kv is None else kv.value

    def write(self, key: str, value: bytes) -> None:
        """As somebody would by hand."""
        by_hand = self.server.connect("a person")
        self.loop.world_start(by_hand.txn((), [Put(key, value)]))

    async def until(self, condition: Callable[[], bool], limit_s: float = 60.0, step_s: float = 0.05) -> float:
        """Seconds until it holds."""
        begun_s = self.loop.time()
        while not condition():
            assert self.loop.time() < begun_s + limit_s, "it never came about"
            await asyncio.sleep(step_s)
        return self.loop.time() - begun_s


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    assert world.loop.mishaps == []
    world.loop.discard()


def serving(pod: str, size_bytes: int = 7) -> Copy:
    return Copy(pod, 1, 0, size_bytes, 5.0)


def holders(membership: Membership, name: ModelName) -> list[str]:
    return [copy.pod for copy in membership.view.copies.get(name, ())]


SETTLED_S = 0.2
"""More than a write and the watch of it take here."""


# What pods tell one another -----------------------------------------------------------------------------------------


def test_pods_see_what_each_of_them_says(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        one.set_copy(A, serving("one"))
        failure = LoadFailure("two", 1, True, "no such file", 5.0, 0.0)
        two.set_failure(B, failure)
        two.set_intent(B, 1, "running")
        two.set_parked(A, Parked("two", 1, 0.2))
        busy = (BusyModel(A, 2.0, 1.0, 0.1, 0.2, 1),)
        said = Pod("one", "one-1", "host-1:8033", zone="z", labels=frozenset({"gpu"}), busy=busy, ready=True)
        one.set_pod(said, urgent=True)
        await asyncio.sleep(SETTLED_S)
        assert one.view == two.view
        assert two.view.pods["one"] == said
        assert two.view.copies == {A: (serving("one"),)}
        assert one.view.failures == {B: (failure,)}
        assert one.view.parked == {A: (Parked("two", 1, 0.2),)}
        assert [(name, intent.pod, intent.doing) for name, intent in one.intents] == [(B, "two", "running")]
        one.set_copy(A, None)
        two.set_failure(B, None)
        two.clear_intent(B)
        two.set_parked(A, None)
        await asyncio.sleep(SETTLED_S)
        assert (two.view.copies, two.view.failures, one.intents, one.view.parked) == ({}, {}, (), {})

    world.loop.run(story())


def test_who_comes_later_lists_what_is_there_and_follows_it(world: World) -> None:
    async def story() -> None:
        one = await world.start("one")
        for number in range(2500):
            one.set_copy(ModelName("t", f"m{number}"), serving("one"))
            one.set_parked(ModelName("t", f"m{number + 1000}"), Parked("one", 1))
        await world.within("one", one.flush())
        two = await world.start("two")
        assert len(two.view.copies) == len(two.view.parked) == 2500
        one.set_copy(ModelName("t", "m7"), None)
        one.set_parked(ModelName("t", "m3000"), None)
        await asyncio.sleep(SETTLED_S)
        assert two.view == one.view
        assert len(two.view.copies) == len(two.view.parked) == 2499


def test_what_lies_on_disks_is_written_in_few_transactions_after_what_somebody_waits_for(world: World) -> None:
    async def story() -> None:
        one = await world.start("one")
        heard: list[tuple[int, int]] = []
        one.on_change(lambda changes: heard.append((len(changes.copies), len(changes.parked))))
        for number in range(1000):
            one.set_parked(ModelName("t", f"m{number}"), Parked("one", 1))
        one.set_copy(A, serving("one"))
        one.set_intent(A, 1, "loading")
        await world.within("one", one.flush())
        await asyncio.sleep(SETTLED_S)
        assert len(one.view.parked) == 1000
        told = [(copies, parked) for copies, parked in heard if copies or parked]
        assert told[0][0] == 1, "the copy, which was said last, came with the first of them"
        assert 1 < len(told) <= 2 + 1000 // world.server.connect("x").limits.ops_per_txn_max

    world.loop.run(story())


def test_a_pod_speaks_of_itself_once_a_second_unless_it_is_urgent(world: World) -> None:
    async def story() -> None:
        one = await world.start("one")

        def version() -> int:
            kv = world.server.peek(keys.pod_key("one"))
            assert kv is not None
            return kv.version

        for number in range(40):
            one.set_pod(Pod("one", "one-1", "host-1:8033", loads=number))
            await asyncio.sleep(0.1)
        assert 4 <= version() <= 6
        before = version()
        await asyncio.sleep(5.0)
        assert version() <= before + 1  # it had nothing more to say
        for number in range(3):
            one.set_pod(Pod("one", "one-1", "host-1:8033", loads=100 + number), urgent=True)
            await asyncio.sleep(SETTLED_S)
        assert version() >= before + 3

    world.loop.run(story())


def test_a_listener_that_fails_keeps_nobody_from_hearing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        one = await world.start("one")
        heard: list[ModelName] = []
        stop_bad = one.on_change(lambda changes: 1 / 0)
        one.on_change(lambda changes: heard.extend(changes.copies))
        one.set_copy(A, serving("one"))
        await asyncio.sleep(SETTLED_S)
        assert heard == [A]
        assert "ZeroDivisionError" in caplog.text
        stop_bad()

    world.loop.run(story())


def test_what_a_listener_brings_about_is_told_after_what_it_was_told(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        two.set_copy(A, serving("two"))
        await asyncio.sleep(SETTLED_S)

        def forget(changes: PoolChanges) -> None:
            for pod in changes.began_fading:
                one.forget(pod)

        heard: list[str] = []

        def listen(changes: PoolChanges) -> None:
            heard.extend(f"{pod} fades" for pod in changes.began_fading)
            heard.extend(f"{change.pod} is gone" for change in changes.pods if change.after is None)

        one.on_change(forget)
        one.on_change(listen)
        world.kill("two")
        await world.until(lambda: "two" not in one.view.pods)
        assert heard == ["two fades", "two is gone"]

    world.loop.run(story())


def test_the_size_of_a_model_is_known_after_its_last_copy(world: World) -> None:
    async def story() -> None:
        one = await world.start("one")
        assert one.known_size(A) is None
        one.set_copy(A, serving("one", 100))
        await asyncio.sleep(SETTLED_S)
        assert one.known_size(A) == 100
        one.set_copy(A, None)
        await asyncio.sleep(SETTLED_S)
        assert one.view.copies == {}
        assert one.known_size(A) == 100

    world.loop.run(story())


# Claims -------------------------------------------------------------------------------------------------------------


def test_of_simultaneous_claims_one_wins_and_the_others_hear_who(world: World) -> None:
    async def story() -> None:
        pods = [await world.start(name) for name in ("one", "two", "three")]
        claims = await asyncio.gather(*(world.within(m.pod_id, m.claim(A, 3, 50)) for m in pods))
        (winner,) = [m for m, claim in zip(pods, claims, strict=True) if claim == Claimed()]
        others = [claim for claim in claims if isinstance(claim, HeldBy)]
        assert len(others) == 2
        for claim in others:
            assert [(c.pod, c.servable, c.loading, c.size_bytes) for c in claim.copies] == [(winner.pod_id, 0, 3, 50)]
        await asyncio.sleep(SETTLED_S)
        assert all(holders(m, A) == [winner.pod_id] for m in pods)
        assert [(n, i.pod, i.generation, i.doing) for n, i in winner.intents] == [(A, winner.pod_id, 3, "loading")]
        assert await world.within(winner.pod_id, winner.claim(A, 3, 50)) == Claimed()

    world.loop.run(story())


def test_copies_of_pods_that_do_not_answer_do_not_stand_in_the_way_but_one_claim_still_wins(world: World) -> None:
    async def story() -> None:
        dead, one, two = [await world.start(name) for name in ("dead", "one", "two")]
        dead.set_copy(A, serving("dead"))
        await asyncio.sleep(SETTLED_S)
        world.kill("dead")
        assert isinstance(await world.within("one", one.claim(A, 1, 0)), HeldBy)
        claims = await asyncio.gather(
            *(world.within(m.pod_id, m.claim(A, 1, 0, ignoring={"dead"})) for m in (one, two))
        )
        assert sorted(type(claim).__name__ for claim in claims) == ["Claimed", "HeldBy"]

    world.loop.run(story())


def test_a_claim_right_after_an_eviction_is_not_undone_by_the_late_delete(world: World) -> None:
    async def story() -> None:
        one = await world.start("one")
        one.set_copy(A, serving("one"))
        await asyncio.sleep(SETTLED_S)
        one.set_copy(A, None)
        await asyncio.sleep(0.001)  # the delete is on its way
        assert await world.within("one", one.claim(A, 2, 0)) == Claimed()
        one.set_copy(B, serving("one"))
        one.set_copy(B, None)
        assert await world.within("one", one.claim(B, 2, 0)) == Claimed()  # nothing was on its way yet
        await asyncio.sleep(1.0)
        assert [copy.loading for copy in one.view.copies[A]] == [2]
        assert [copy.loading for copy in one.view.copies[B]] == [2]

    world.loop.run(story())


@pytest.mark.parametrize("how", ["silent", "refusing"])
def test_without_the_store_a_claim_says_so_in_time_and_is_published_later(world: World, how: str) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        world.server.go_away(how)
        begun_s = world.loop.time()
        assert isinstance(await world.within("one", one.claim(A, 1, 9)), StoreAway)
        assert world.loop.time() - begun_s <= 0.6
        await asyncio.sleep(30.0)
        world.server.come_back()
        await world.until(lambda: holders(two, A) == ["one"], 2 * TTL_S)

    world.loop.run(story())


def test_a_claim_whose_answer_is_lost_and_that_is_then_given_up_leaves_nothing(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        claim = world.processes["one"].start(one.claim(A, 1, 9))
        await world.until(lambda: world.holds(keys.copy_key("t", "a", "one")) is not None, step_s=0.0005)
        world.server.cut("one")  # done, but nobody will hear
        assert isinstance(await claim, StoreAway)
        one.set_copy(A, None)
        one.clear_intent(A)
        world.server.mend("one")
        await world.until(lambda: world.holds(keys.copy_key("t", "a", "one")) is None)
        await world.until(lambda: not two.intents and not holders(two, A))

    world.loop.run(story())


def test_a_cancelled_claim_that_was_written_after_all_is_taken_back(world: World) -> None:
    async def story() -> None:
        one = await world.start("one")
        claim = world.processes["one"].start(one.claim(A, 1, 9))
        await world.until(lambda: world.holds(keys.copy_key("t", "a", "one")) is not None, step_s=0.0005)
        claim.cancel()
        await world.until(lambda: world.holds(keys.copy_key("t", "a", "one")) is None and not one.intents)

    world.loop.run(story())


# Fading -------------------------------------------------------------------------------------------------------------


def test_a_pod_that_died_is_kept_for_two_ttls_and_then_gone(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        two.set_copy(A, serving("two", 33))
        two.set_intent(B, 4, "loading")
        await asyncio.sleep(SETTLED_S)
        faded: list[str] = []
        one.on_change(lambda changes: faded.extend(changes.began_fading))
        world.kill("two")
        lapsed_s = await world.until(lambda: "two" in one.view.fading)
        assert TTL_S * 2 / 3 - 1 <= lapsed_s <= TTL_S + 1
        assert faded == ["two"]
        assert holders(one, A) == ["two"]
        gone_s = await world.until(lambda: "two" not in one.view.pods)
        assert 2 * TTL_S - 0.1 <= gone_s <= 2 * TTL_S + 0.1
        assert (one.view.copies, one.view.fading, one.view.unconfirmed) == ({}, {}, {})
        assert one.known_size(A) == 33
        assert [(name, intent.generation) for name, intent in one.intents] == [(B, 4)]  # what it died doing
        ((name, intent),) = one.intents
        await world.within("one", one.remove_intent(name, intent))
        await asyncio.sleep(SETTLED_S)
        assert one.intents == ()

    world.loop.run(story())


def test_a_fading_pod_that_does_not_answer_is_forgotten_at_once(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        two.set_copy(A, serving("two"))
        await asyncio.sleep(SETTLED_S)
        one.forget("two")
        assert holders(one, A) == ["two"]  # its lease stands
        world.kill("two")
        await world.until(lambda: "two" in one.view.fading)
        one.forget("two")
        assert "two" not in one.view.pods
        assert holders(one, A) == []

    world.loop.run(story())


def test_a_pod_that_says_goodbye_is_gone_at_once(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        two.set_copy(A, serving("two"))
        two.set_intent(B, 4, "loading")
        await asyncio.sleep(SETTLED_S)
        faded: list[str] = []
        one.on_change(lambda changes: faded.extend(changes.began_fading))
        await world.within("two", two.leave())
        await asyncio.sleep(SETTLED_S)
        assert set(one.view.pods) == {"one"}
        assert (one.view.copies, one.intents, faded) == ({}, (), [])

    world.loop.run(story())


def test_a_pod_cut_off_from_the_store_keeps_its_place_and_comes_back_with_what_it_has_then(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        for name in (A, B):
            two.set_copy(name, serving("two"))
        await asyncio.sleep(SETTLED_S)
        world.server.cut("two")
        await world.until(lambda: "two" in one.view.fading)
        two.set_copy(B, None)
        late = ModelName("t", "late")
        two.set_copy(late, serving("two"))
        assert holders(one, A) == holders(one, B) == ["two"]
        unseen: list[bool] = []
        one.on_change(lambda changes: unseen.append(holders(one, A) != ["two"]))
        world.server.mend("two")
        await world.until(lambda: not one.view.fading)
        await asyncio.sleep(SETTLED_S)
        assert (holders(one, A), holders(one, B), holders(one, late)) == (["two"], [], ["two"])
        assert True not in unseen
        await asyncio.sleep(5 * TTL_S)
        assert one.view.copies == two.view.copies
        assert set(one.view.copies) == {A, late}
        assert one.view.fading == two.view.fading == {}

    world.loop.run(story())


def test_a_frozen_pod_publishes_everything_again_on_waking(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        two.set_copy(A, serving("two"))
        assert await world.within("two", two.try_lead())
        await asyncio.sleep(SETTLED_S)
        world.processes["two"].freeze()
        await asyncio.sleep(5 * TTL_S)
        assert "two" not in one.view.pods
        assert await world.within("one", one.try_lead())
        world.processes["two"].thaw()
        assert not two.is_leader  # before anything of it has run
        await world.until(lambda: holders(one, A) == ["two"], TTL_S / 2)
        await world.until(lambda: "two" in one.view.pods)
        await asyncio.sleep(1.0)
        assert not two.is_leader
        assert one.view == two.view

    world.loop.run(story())


# The store away, wiped, compacted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["silent", "refusing"])
def test_what_is_said_without_the_store_is_written_when_it_is_back(
    world: World, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        one.set_copy(A, serving("one"))
        await asyncio.sleep(SETTLED_S)
        world.server.go_away(how)
        for number in range(300):
            one.set_copy(B, serving("one", number))
            if number % 2:
                one.set_copy(B, None)
            await asyncio.sleep(1.0)
        one.set_copy(A, None)
        one.set_copy(B, serving("one", 1234))
        assert one.store_away_since_s is not None
        assert holders(two, A) == ["one"]
        with pytest.raises(StoreUnavailable):
            await world.within("one", one.flush())
        assert not await world.within("one", one.record_intent(B, 1, "running"))
        world.server.come_back()
        await world.until(lambda: two.view.copies == {B: (serving("one", 1234),)}, 2 * TTL_S)
        await world.until(lambda: one.store_away_since_s is None)
        assert one.view == two.view

    world.loop.run(story())
    assert caplog.text.count("the store is away") == 2  # each pod said it once
    assert caplog.text.count("the store answers again") == 2


def test_after_a_wipe_every_pod_writes_again_and_nothing_was_missing_meanwhile(world: World) -> None:
    async def story() -> None:
        pods = [await world.start(name) for name in ("one", "two", "three")]
        one, two, _ = pods
        for m in pods:
            m.set_copy(A, serving(m.pod_id))
            m.set_parked(B, Parked(m.pod_id, 1))
        one.set_intent(B, 1, "loading")
        suspicion = Suspicion(1, Verdict.SUSPECT, (Death("x", "x-1", "running", 4.0),))
        assert await world.within("one", one.write_suspicion(B, suspicion))
        await asyncio.sleep(5.0)
        missing: list[list[str]] = []

        def look(changes: PoolChanges) -> None:
            for m in pods:
                found = (holders(m, A), [parked.pod for parked in m.view.parked.get(B, ())])
                missing.extend(pods_there for pods_there in found if len(pods_there) != 3)

        for m in pods:
            m.on_change(look)
        world.server.wipe()
        await world.until(lambda: world.holds(keys.copy_key("t", "a", "three")) is not None, 2 * TTL_S)
        await world.until(lambda: all(not m.view.fading for m in pods), 2 * TTL_S)
        await asyncio.sleep(SETTLED_S)
        assert missing == []
        assert one.view == two.view
        assert [name for name, _ in two.intents] == [B]
        assert two.view.suspicions == {B: suspicion}
        assert two.suspicion_revision(B) == 0
        assert await world.within("two", two.restore_suspicions()) == 1
        await asyncio.sleep(SETTLED_S)
        assert world.holds(keys.suspicion_key("t", "b/ž")) is not None
        assert one.suspicion_revision(B) > 0
        await asyncio.sleep(5 * TTL_S)
        assert holders(one, A) == ["one", "three", "two"]
        assert [parked.pod for parked in two.view.parked[B]] == ["one", "three", "two"]

    world.loop.run(story())


def test_a_view_that_fell_behind_lists_again_and_drops_what_is_gone(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        one.set_copy(A, serving("one"))
        one.set_failure(A, LoadFailure("one", 1, False, "m", 1.0, 2.0))
        one.set_intent(A, 1, "loading")
        assert await world.within("one", one.write_suspicion(A, Suspicion(1, Verdict.SUSPECT, ())))
        assert await world.within("one", one.try_lead())
        await asyncio.sleep(SETTLED_S)
        assert two.leader is not None
        world.server.cut("two")
        one.set_copy(A, None)
        one.set_copy(B, serving("one"))
        one.set_failure(A, None)
        one.clear_intent(A)
        assert await world.within("one", one.write_suspicion(A, None))
        await world.within("one", one.resign())
        await world.within("one", one.flush())
        world.server.compact()
        world.server.mend("two")
        await world.until(lambda: two.view.copies == {B: (serving("one"),)}, 2 * TTL_S)
        await asyncio.sleep(SETTLED_S)
        assert (two.view.failures, two.view.suspicions, two.intents, two.leader) == ({}, {}, (), None)
        assert set(two.view.pods) == {"one", "two"}

    world.loop.run(story())


# One id, one process ------------------------------------------------------------------------------------------------


def test_a_second_process_with_a_taken_id_does_not_start_and_says_where_the_first_is(world: World) -> None:
    async def story() -> None:
        one = await world.start("one")
        one.set_copy(A, serving("one"))
        await asyncio.sleep(SETTLED_S)
        begun_s = world.loop.time()
        with pytest.raises(PodIdTaken, match=r"'one' is held by a live process at host-1:8033.*\(at host-2:8033\)"):
            await world.start("one")
        assert TTL_S <= world.loop.time() - begun_s <= TTL_S + 3
        await asyncio.sleep(5 * TTL_S)
        assert holders(one, A) == ["one"]
        assert one.view.pods["one"].address == "host-1:8033"

    world.loop.run(story())


def test_a_restarted_pod_waits_for_the_lease_of_its_predecessor_and_begins_empty(world: World) -> None:
    async def story() -> None:
        watcher, first = await world.start("watcher"), await world.start("one")
        first.set_copy(A, serving("one"))
        first.set_intent(A, 1, "loading")
        await asyncio.sleep(SETTLED_S)
        world.kill("one")
        begun_s = world.loop.time()
        second = await world.start("one")
        assert world.loop.time() - begun_s <= TTL_S + 2
        await asyncio.sleep(SETTLED_S)
        assert watcher.view == second.view
        assert (watcher.view.copies, watcher.view.fading) == ({}, {})
        second.set_intent(A, 1, "loading")
        await asyncio.sleep(SETTLED_S)
        assert [intent.incarnation for _, intent in watcher.intents] == ["one-2", "one-3"]  # evidence is kept

    world.loop.run(story())


async def test_a_pod_alone_with_its_store_does_not_wait_for_the_lease_of_the_killed_process(tmp_path: Path) -> None:
    store = await EmbeddedStore.open(tmp_path)
    first = Membership(store, "one", sole_process=True)
    await first.start(Pod("one", "one-1", "h:1"))
    first.set_copy(A, serving("one"))
    first.set_intent(A, 1, "loading")
    await first.flush()
    await first.close()
    await store.close()
    store = await EmbeddedStore.open(tmp_path)
    second = Membership(store, "one", sole_process=True)
    async with asyncio.timeout(LEASE_TTL_S / 2):
        await second.start(Pod("one", "one-2", "h:1"))
    assert second.view.pods["one"].incarnation == "one-2"
    assert second.view.copies == {}
    assert [intent.incarnation for _, intent in second.intents] == ["one-1"]
    await second.leave()
    await store.close()


def test_a_pod_whose_id_was_taken_while_it_slept_keeps_silent_until_it_is_free(world: World) -> None:
    async def story() -> None:
        watcher, first = await world.start("watcher"), await world.start("one")
        sleeper = world.processes["one"]
        first.set_copy(A, serving("one"))
        await asyncio.sleep(SETTLED_S)
        sleeper.freeze()
        await asyncio.sleep(TTL_S + 1)
        second = await world.start("one")
        second.set_copy(B, serving("one"))
        await asyncio.sleep(SETTLED_S)
        sleeper.thaw()
        await asyncio.sleep(3 * TTL_S)
        assert set(watcher.view.copies) == {B}
        assert watcher.view.pods["one"].incarnation == "one-3"
        assert first.displaced_by is not None
        assert second.displaced_by is None
        with pytest.raises(StoreUnavailable, match="another process"):
            await sleeper.start(first.flush())
        assert isinstance(await sleeper.start(first.claim(ModelName("t", "c"), 1, 0)), StoreAway)
        await world.within("one", second.leave())
        await world.until(lambda: A in watcher.view.copies, 2 * TTL_S)
        assert first.displaced_by is None

    world.loop.run(story())


def test_a_pod_that_cannot_list_the_pool_leaves_nothing_behind(world: World) -> None:
    async def story() -> None:
        world.server.go_away("refusing")
        with pytest.raises(StoreUnavailable):
            await world.start("one")
        world.server.come_back()
        await world.start("one")

    world.loop.run(story())


# Leading ------------------------------------------------------------------------------------------------------------


def test_one_pod_leads_at_a_time_whatever_their_clocks_say(world: World) -> None:
    async def story() -> None:
        skews = {"one": -3600.0, "two": 0.0, "three": 3600.0}
        pods = {name: await world.start(name, skew_s=skew_s) for name, skew_s in skews.items()}
        tries = await asyncio.gather(*(world.within(name, m.try_lead()) for name, m in pods.items()))
        assert tries.count(True) == 1
        await asyncio.sleep(SETTLED_S)
        (leader,) = [name for name, m in pods.items() if m.is_leader]
        assert {m.leader.pod for m in pods.values() if m.leader} == {leader}
        assert await world.within(leader, pods[leader].set_restoring(True))
        await asyncio.sleep(5 * TTL_S)
        assert pods[leader].is_leader
        assert all(m.leader is not None and m.leader.restoring for m in pods.values())
        world.kill(leader)
        left = [m for name, m in pods.items() if name != leader]
        await world.until(lambda: all(m.leader is None for m in left), TTL_S + 1)
        tries = await asyncio.gather(*(world.within(m.pod_id, m.try_lead()) for m in left))
        assert tries.count(True) == 1

    world.loop.run(story())


def test_a_leader_that_resigns_makes_room_at_once(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        assert await world.within("one", one.try_lead())
        assert await world.within("one", one.try_lead())
        assert not await world.within("two", two.try_lead())
        await world.within("one", one.resign())
        assert not one.is_leader
        assert await world.within("two", two.try_lead())
        await asyncio.sleep(SETTLED_S)
        assert (one.is_leader, two.is_leader) == (False, True)

    world.loop.run(story())


def test_a_leader_without_the_store_stops_leading_before_its_lease_can_have_ended(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        assert await world.within("one", one.try_lead())
        await asyncio.sleep(SETTLED_S)
        world.server.cut("one")

        async def both_never() -> None:
            while not two.is_leader:
                await world.within("two", two.try_lead())
                assert not (one.is_leader and two.is_leader)
                await asyncio.sleep(0.1)

        await both_never()
        assert not one.is_leader
        assert not await world.within("one", one.try_lead())
        world.server.mend("one")
        await asyncio.sleep(2 * TTL_S)
        assert (one.is_leader, two.is_leader) == (False, True)

    world.loop.run(story())


def test_a_suspicion_is_changed_only_as_its_writer_knew_it(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        first, second = Suspicion(1, Verdict.SUSPECT, ()), Suspicion(1, Verdict.QUARANTINED, ())
        results = await asyncio.gather(
            world.within("one", one.write_suspicion(A, first)), world.within("two", two.write_suspicion(A, second))
        )
        assert sorted(results) == [False, True]
        await asyncio.sleep(SETTLED_S)
        stale = one.suspicion_revision(A)
        assert await world.within("one", one.write_suspicion(A, second))
        assert not await world.within("two", two.write_suspicion(A, None, stale))
        await asyncio.sleep(SETTLED_S)
        assert await world.within("two", two.write_suspicion(A, None))
        await asyncio.sleep(SETTLED_S)
        assert one.view.suspicions == {}
        assert one.suspicion_revision(A) == 0

    world.loop.run(story())


def test_the_hottest_models_are_there_for_the_next_leader(world: World) -> None:
    async def story() -> None:
        one = await world.start("one")
        hot = (HotModel(B, 9.0), HotModel(A, 1.5))
        await world.within("one", one.write_hot(hot))
        two = await world.start("two")
        await asyncio.sleep(SETTLED_S)
        assert one.hot == two.hot == hot

    world.loop.run(story())


# People edit stores -------------------------------------------------------------------------------------------------


def test_what_is_damaged_by_hand_is_ignored_and_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        one = await world.start("one")
        one.set_copy(A, serving("one"))
        await asyncio.sleep(SETTLED_S)
        damaged = {
            keys.copy_key("t", "x", "ghost"): b"{",
            keys.copy_key("t", "x", "spectre"): b'{"v":9,"servable":1}',
            keys.pod_key("ghost"): b'{"v":1,"incarnation":"i","address":"h:1","free_bytes":-4}',
            keys.failure_key("t", "x", "ghost"): b"[]",
            keys.intent_key("t", "x", "ghost", "i"): b'{"v":1,"generation":1,"doing":"dancing"}',
            keys.suspicion_key("t", "x"): b'{"v":1,"generation":1,"verdict":"guilty"}',
            keys.HOT: b"\xff",
            keys.LEADER: b"null",
            "copies/one-part": b"",
            "pods/a/b": b"",
            "copies/t/%ff/pod": b"",
        }
        for key, value in damaged.items():
            world.write(key, value)
        await asyncio.sleep(SETTLED_S)
        two = await world.start("two")
        await asyncio.sleep(SETTLED_S)
        for m in (one, two):
            assert set(m.view.copies) == {A}
            assert set(m.view.pods) == {"one", "two"}
            assert (m.view.failures, m.view.suspicions, m.intents, m.hot) == ({}, {}, (), ())
        for key in damaged:
            assert caplog.text.count(f"key {key!r} in the store is ignored") == 2, key  # once for each pod
        assert await world.within("one", one.try_lead())  # over a record that nobody would ever take away

    with caplog.at_level(logging.WARNING):
        world.loop.run(story())


def test_a_pod_sets_its_own_keys_right_again(world: World) -> None:
    async def story() -> None:
        one, two = await world.start("one"), await world.start("two")
        one.set_copy(A, serving("one"))
        await asyncio.sleep(SETTLED_S)
        world.write(keys.pod_key("one"), b"rubbish")
        world.write(keys.copy_key("t", "a", "one"), b"rubbish")
        world.write(keys.parked_key("t", "a", "one"), b'{"v":1,"disk":7}')
        world.write(keys.copy_key("t", "stray", "one"), b'{"v":1,"servable":1,"since_at_s":1}')
        await asyncio.sleep(2.0)
        assert set(two.view.pods) == {"one", "two"}
        assert two.view.copies == {A: (serving("one"),)}
        assert two.view.parked == {}, "nothing is on its disk"
        assert two.view.fading == {}
        world.kill("one")
        await world.until(lambda: "one" not in two.view.pods)  # its record is on its lease again
        assert two.view.copies == {}

    world.loop.run(story())
