"""What a pod that drains asks of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from cache.types import ModelKey
from mesh.routing.draining import ORDERS_AT_ONCE_MAX, Draining, DrainLimits
from placement.peers import Order, PeerError
from placement.policy.snapshot import ModelFacts, ModelName
from placement.records import ModelRecord, ModelSpec
from tests.unit.placement.policy.builders import copy, healthy, pod, view


class Leaving:
    """Pod `me`, which serves `models` models, and what `others` do with its orders."""

    def __init__(self, models: int, *others: str) -> None:
        ids = [f"m{number}" for number in range(models)]
        pods = [pod("me", draining=True), *(pod(each, capacity_bytes=10**6, free_bytes=10**6) for each in others)]
        self.view = view(pods, {each: [copy("me")] for each in ids})
        self.taken: list[tuple[str, str]] = []
        self.silent: set[str] = set()
        self.awake = asyncio.Event()
        self.under_way = self.most_under_way = 0
        copies = [SimpleNamespace(key=ModelKey("t", each, 1), last_used_s=0.0) for each in ids]
        self.resident = {each.key: each for each in copies}
        itself: Any = self
        limits = DrainLimits(grace_s=60.0, quiet_s=1.0, recent_s=1e9)
        self.draining = Draining(
            "me", itself, itself, itself, itself, itself, self.facts_of, lambda: healthy(self.view), limits,
            asyncio.get_running_loop().time,
        )  # fmt: skip

    def every_resident(self) -> Any:
        return [SimpleNamespace(copy=each, runs=1) for each in self.resident.values()]

    def servable(self, key: ModelKey) -> Any:
        return self.resident.get(key)

    def model(self, tenant: str, model_id: str) -> ModelRecord:
        return ModelRecord(tenant, model_id, ModelSpec("file:///m"), 1, 0.0, 0.0)

    def facts_of(self, record: ModelRecord) -> ModelFacts:
        return ModelFacts(ModelName(record.tenant, record.id), record.generation, 1)

    async def order(self, pod_id: str, orders: Sequence[Order]) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if pod_id in self.silent:
                await self.awake.wait()
                raise PeerError(pod_id, "no answer")
            await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        self.taken += [(pod_id, order.name.id) for order in orders]


async def test_orders_do_not_wait_behind_a_pod_that_does_not_answer() -> None:
    leaving = Leaving(8, "p1", "p2")
    leaving.silent = {"p1"}
    turn = asyncio.create_task(leaving.draining.turn())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not turn.done()
    assert len(leaving.taken) == 4
    assert {pod_id for pod_id, _ in leaving.taken} == {"p2"}
    leaving.awake.set()
    plan = await turn
    assert len(plan.places) == 8


async def test_what_a_pod_did_not_take_is_not_asked_of_it_again_at_once() -> None:
    leaving = Leaving(4, "p1")
    leaving.silent = {"p1"}
    leaving.awake.set()
    assert len((await leaving.draining.turn()).places) == 4
    assert not (await leaving.draining.turn()).places


async def test_only_so_many_orders_are_under_way_at_a_time() -> None:
    others = [f"p{number}" for number in range(20)]
    leaving = Leaving(80, *others)
    await leaving.draining.turn()
    assert len(leaving.taken) == 80
    assert leaving.most_under_way == ORDERS_AT_ONCE_MAX
