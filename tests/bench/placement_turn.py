"""What the leader's turn costs in a large pool: `python -m tests.bench.placement_turn [--pods 100] [--models 100000]`.

The pool is a picture in memory: every model has a copy, every pod reports its 64 busiest models, nothing is sent
anywhere. `longest pause` is the longest that the loop, which also answers requests, waited for the turn. All times are
CPU time of this thread: a machine shared with others stretches them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from placement.constraints import NO_CONSTRAINTS
from placement.decisions import DecisionLog
from placement.layered_map import LayeredMap
from placement.membership import Membership
from placement.peers import Order
from placement.policy.snapshot import BusyModel, Copy, ModelName, Pod, PoolView
from placement.pool_view import PodChange, PoolChanges
from placement.records import ModelRecord, ModelSpec
from placement.registry import Registry
from placement.service_limits import ServiceLimits
from placement.term import Term
from placement.view import RegistryView, TenantView

MODEL_BYTES = 1_000_000


class Picture:
    """A membership, a registry and peers that never change but when told to."""

    def __init__(self, pods: int, models: int) -> None:
        names = [ModelName("default", f"model-{number:06}") for number in range(models)]
        ids = [f"pod-{number:03}" for number in range(pods)]
        records = {n.id: ModelRecord("default", n.id, ModelSpec(f"file:///{n.id}"), 1, 0.0, 0.0) for n in names}
        copies = {n: (Copy(ids[index % pods], 1, 0, MODEL_BYTES, 0.0),) for index, n in enumerate(names)}
        capacity_bytes = 2 * MODEL_BYTES * models // pods
        self.view = PoolView(
            1,
            {pod_id: self._pod(pod_id, names[index::pods], capacity_bytes) for index, pod_id in enumerate(ids)},
            LayeredMap(copies),
        )
        self.registry_view = RegistryView(1, {"default": TenantView(records)})
        self.hot: tuple[Any, ...] = ()
        self.intents: tuple[Any, ...] = ()
        self.orders = 0

    def _pod(self, pod_id: str, names: Sequence[ModelName], capacity_bytes: int) -> Pod:
        busy = tuple(BusyModel(n, 5.0 + i, 0.05, 0.0, 0.01, 4) for i, n in enumerate(names[:64]))
        free_bytes = capacity_bytes - MODEL_BYTES * len(names)
        return Pod(pod_id, "1", pod_id, capacity_bytes=capacity_bytes, free_bytes=free_bytes, ready=True, busy=busy)

    def known_size(self, name: ModelName) -> int:
        return MODEL_BYTES

    def lose(self, pod_id: str) -> PoolChanges:
        """The pod and its copies are gone."""
        pods = {other: pod for other, pod in self.view.pods.items() if other != pod_id}
        lost = tuple(n for n, of in self.view.copies.items() if of[0].pod == pod_id)
        copies = {n: of for n, of in self.view.copies.items() if of[0].pod != pod_id}
        changes = PoolChanges(2, (PodChange(pod_id, self.view.pods[pod_id], None),), lost)
        self.view = replace(self.view, revision=2, pods=pods, copies=LayeredMap(copies))
        return changes

    async def order(self, pod: str, orders: Sequence[Order]) -> None:
        self.orders += len(orders)

    async def write_hot(self, models: object) -> None:
        pass


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def measure(pods: int, models: int) -> list[tuple[str, float, str]]:
    picture, clock = Picture(pods, models), Clock()

    class Names:
        view = picture.registry_view

    term = Term(
        cast("Membership", picture),
        cast("Registry", Names()),
        cast("Any", picture),
        limits=ServiceLimits(),
        clock=clock,
        wall_clock=time.time,
        constraints=NO_CONSTRAINTS,
        healthy=lambda: picture.view.pods,
        decisions=DecisionLog(),
    )
    gc.collect()
    gc.freeze()  # as the pod does: what is in memory for good is not looked at again
    pauses_s: list[float] = []

    async def watch() -> None:
        last_s = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            pauses_s.append(now_s - last_s)
            last_s = now_s

    async def turn(seconds: float = 1.0) -> tuple[float, float]:
        clock.now_s += seconds
        pauses_s.clear()
        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        began_s = time.thread_time()
        await term.turn()
        took_s = time.thread_time() - began_s
        await asyncio.sleep(0)
        await term.errands.settled()
        watching.cancel()
        return took_s, max(pauses_s)

    began_s = time.thread_time()
    term.begin()
    rows = [("a term begins", (time.thread_time() - began_s) * 1e3, "ms")]
    rechecks = [await turn(31.0) for _ in range(5)]
    quiet = [await turn() for _ in range(20)]
    for label, turns in (("quiet turn", quiet), ("turn that looks at all models", rechecks)):
        rows.append((f"{label}, median", sorted(took_s for took_s, _ in turns)[len(turns) // 2] * 1e3, "ms"))
        rows.append((f"{label}, longest pause", max(pause_s for _, pause_s in turns) * 1e3, "ms"))
    before = picture.view
    began_s = time.thread_time()
    changes = picture.lose("pod-007")
    taken_s = time.thread_time()
    term.pool_changed(changes, before, picture.view)
    rows.append(("a pod's loss is taken in", (time.thread_time() - taken_s) * 1e3, "ms"))
    took_s, pause_s = await turn()
    rows.append((f"turn after a pod's loss ({picture.orders} loads ordered)", took_s * 1e3, "ms"))
    rows.append(("turn after a pod's loss, longest pause", pause_s * 1e3, "ms"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=100)
    parser.add_argument("--models", type=int, default=100_000)
    given = parser.parse_args()
    for label, value, unit in asyncio.run(measure(given.pods, given.models)):
        print(f"{label:60} {value:10.1f} {unit}")


if __name__ == "__main__":
    main()
