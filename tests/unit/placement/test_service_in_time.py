"""The placement service as it runs: its own loop, leases that run out, processes that die. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from mesh.simulation.virtual_loop import Process, VirtualLoop
from placement.fake_peers import FakePeers
from placement.membership import Membership
from placement.policy.snapshot import BusyModel, ModelName, Pod
from placement.records import ModelSpec
from placement.registry import Registry
from placement.service import PlacementService
from placement.store.memory import MemoryStore

TTL_S = 10.0
T = "default"


class RunningPod:
    """One process of a pool."""

    def __init__(self, pool: RunningPool, pod_id: str) -> None:
        clock = pool.loop.time
        self.pod = Pod(pod_id, f"{pod_id}-1", f"{pod_id}:1", capacity_bytes=10_000, free_bytes=10_000, ready=True)
        self.process = Process(pool.loop, pod_id)
        self.membership = Membership(pool.store, pod_id, lease_ttl_s=TTL_S, clock=clock, wall_clock=clock)
        self.registry = Registry(pool.store, clock=clock)
        self.service = PlacementService(self.membership, self.registry, pool.peers, clock=clock, wall_clock=clock)

    async def start(self) -> None:
        await self.membership.start(self.pod)
        await self.registry.start()
        await self.service.start()


class RunningPool:
    """Processes on one store, whose leases run out by the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.store = MemoryStore(clock=loop.time)
        self.peers = FakePeers(at_once=True, size_bytes=100)
        self.pods: dict[str, RunningPod] = {}
        self._expiring = loop.world_start(self._expire())

    async def start(self, *pod_ids: str) -> None:
        for pod_id in pod_ids:
            pod = self.pods[pod_id] = RunningPod(self, pod_id)
            await pod.process.start(pod.start())
            self.peers.join(pod.membership, lambda own=pod: own.registry.view)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            await self.store.expire_leases()

    def kill(self, pod_id: str) -> None:
        self.pods.pop(pod_id).process.kill()
        self.peers.leave(pod_id)

    def probe(self) -> None:
        """Probes find at once that a pod does not answer whose lease has run out."""
        for pod in self.pods.values():
            pod.membership.on_change(
                lambda changes, own=pod: [own.membership.forget(gone) for gone in changes.began_fading] and None
            )

    def leaders(self) -> list[str]:
        return [pod_id for pod_id, pod in self.pods.items() if pod.service.is_leader]

    def serving(self, model_id: str) -> list[str]:
        view = next(iter(self.pods.values())).membership.view
        return [copy.pod for copy in view.copies.get(ModelName(T, model_id), ()) if copy.servable]

    async def until(self, holds: Callable[[], bool], within_s: float) -> float:
        """Wait until it holds; after how long."""
        began_s = self.loop.time()
        while not holds():
            assert self.loop.time() - began_s <= within_s, f"not within {within_s} s"
            await asyncio.sleep(0.05)
        return self.loop.time() - began_s


def play(story: Callable[[RunningPool], Coroutine[Any, Any, None]]) -> None:
    loop = VirtualLoop()
    loop.run(story(RunningPool(loop)))
    loop.discard()
    assert loop.mishaps == []


async def begin_with_a_hot_model_on(pool: RunningPool, pod_id: str, queue_delay_s: float) -> None:
    await pool.start("p1", "p2", "p3")
    hot = ModelName(T, "hot")
    await pool.pods["p1"].registry.register(T, "hot", ModelSpec("file:///hot"))
    pool.peers.hold(pod_id, hot)
    await pool.until(lambda: len(pool.leaders()) == 1 and pool.serving("hot") == [pod_id], 3.0)
    holder = pool.pods[pod_id]
    busy = BusyModel(hot, 50.0, 8.0 * queue_delay_s, queue_delay_s, 0.02, concurrency=4)
    holder.membership.set_pod(replace(holder.pod, busy=(busy,)), urgent=True)


def test_another_pod_leads_within_a_lease_of_the_leaders_death() -> None:
    async def story(pool: RunningPool) -> None:
        await pool.start("p1", "p2", "p3")
        await pool.until(lambda: len(pool.leaders()) == 1, 3.0)
        (leader,) = pool.leaders()
        pool.kill(leader)
        await pool.until(lambda: len(pool.leaders()) == 1, TTL_S + 2.0)
        assert leader not in pool.leaders()

    play(story)


def test_there_is_never_a_second_leader_while_a_frozen_one_sleeps_or_wakes() -> None:
    async def story(pool: RunningPool) -> None:
        await pool.start("p1", "p2", "p3")
        await pool.until(lambda: len(pool.leaders()) == 1, 3.0)
        (frozen,) = pool.leaders()
        pool.pods[frozen].process.freeze()
        await pool.until(lambda: any(pod != frozen for pod in pool.leaders()), TTL_S + 2.0)
        pool.pods[frozen].process.thaw()
        for _ in range(100):
            await asyncio.sleep(0.1)
            assert len(pool.leaders()) <= 1
        assert frozen not in pool.leaders()

    play(story)


def test_a_pinned_model_is_served_within_two_seconds_of_its_registration() -> None:
    async def story(pool: RunningPool) -> None:
        await pool.start("p1", "p2")
        await pool.until(lambda: len(pool.leaders()) == 1, 3.0)
        await pool.pods["p2"].registry.register(T, "m", ModelSpec("file:///m", pinned=True))
        await pool.until(lambda: len(pool.serving("m")) == 1, 2.0)

    play(story)


def test_a_model_whose_requests_wait_has_more_copies_within_five_seconds() -> None:
    async def story(pool: RunningPool) -> None:
        await begin_with_a_hot_model_on(pool, "p3", queue_delay_s=1.0)
        await pool.until(lambda: len(pool.serving("hot")) > 1, 5.0)

    play(story)


def test_a_hot_model_is_restored_when_its_pods_lease_has_run_out_and_it_has_faded() -> None:
    async def story(pool: RunningPool) -> None:
        await begin_with_a_hot_model_on(pool, "p3", queue_delay_s=0.0)
        await asyncio.sleep(2.0)  # virtual: the leader has seen that it is hot
        pool.kill("p3")
        fading_s = 2 * TTL_S
        await pool.until(lambda: pool.serving("hot") != ["p3"] and bool(pool.serving("hot")), TTL_S + fading_s + 5.0)

    play(story)


def test_a_hot_model_is_restored_within_a_lease_when_probes_find_its_pod_gone() -> None:
    async def story(pool: RunningPool) -> None:
        await begin_with_a_hot_model_on(pool, "p3", queue_delay_s=0.0)
        await asyncio.sleep(2.0)  # virtual: the leader has seen that it is hot
        pool.probe()
        pool.kill("p3")
        await pool.until(lambda: pool.serving("hot") != ["p3"] and bool(pool.serving("hot")), TTL_S + 2.0)

    play(story)


def test_what_was_hot_on_the_leader_itself_is_restored_by_the_next_one() -> None:
    async def story(pool: RunningPool) -> None:
        await begin_with_a_hot_model_on(pool, "p1", queue_delay_s=0.0)
        assert pool.leaders() == ["p1"]
        await asyncio.sleep(2.0)  # virtual
        pool.probe()
        pool.kill("p1")
        await pool.until(lambda: pool.serving("hot") != ["p1"] and bool(pool.serving("hot")), TTL_S + 2.0)

    play(story)
