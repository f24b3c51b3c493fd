"""A new pod proves that it can load what others load, by loads that would be its own fault if they failed."""

from __future__ import annotations

import asyncio
from typing import Any

from cache.types import Refusal, RefusalKind, WantedModel
from mesh.loading.loading import Refused
from mesh.routing.fitness import Fitness
from mesh.transport.base import Reply
from mesh.wire.generated import hexcomb_pb2
from placement.policy.snapshot import Death, ModelFacts, PoolView, Suspicion, Verdict
from placement.records import ModelRecord, ModelSpec
from tests.unit.placement.policy.builders import copy, model, pod, view

NEW, OLD = pod("new", ready=False, capacity_bytes=1000), pod("old", labels=frozenset({"gpu"}))


class Resident:
    def let_go(self) -> None: ...


class Surroundings:
    """A pool in which `old` serves some models, and a pod `new` whose loads go as the test says."""

    def __init__(self, models: dict[str, ModelFacts]) -> None:
        self.models = models
        self.view: PoolView = view([NEW, OLD], {name: [copy("old")] for name in models})
        self.refusals: dict[str, RefusalKind] = {}
        self.tried: list[str] = []
        itself: Any = self
        self.fitness = Fitness(
            "new",
            itself,
            itself,
            itself,
            itself,
            lambda record: models[record.id],
            trials=3,
            timeout_s=60.0,
            clock=asyncio.get_running_loop().time,
        )

    def model(self, tenant: str, name: str) -> ModelRecord:
        return ModelRecord(tenant, name, ModelSpec("file:///m"), 1, 0.0, 0.0)

    async def call(self, *of: Any) -> Reply:
        return hexcomb_pb2.DialBackResponse(reached=True).SerializeToString()

    async def wait_servable(self, wanted: WantedModel, deadline_s: float | None) -> Resident:
        self.tried.append(wanted.key.model_id)
        kind = self.refusals.get(wanted.key.model_id)
        if kind is not None:
            raise Refused(Refusal(kind, kind.value))
        return Resident()


async def test_models_that_placement_would_not_send_here_are_no_trial() -> None:
    around = Surroundings(
        {
            "a": model("a", size_bytes=2000),
            "b": model("b", labels_required=frozenset({"gpu"})),
            "c": model("c"),
            "d": model("d"),
        }
    )
    around.refusals = {"a": RefusalKind.TOO_BIG, "b": RefusalKind.LOAD_FAILED_TRANSIENT}
    death = Death("lost", "lost-1", "loading", 0.0)
    around.view = view(
        [NEW, OLD],
        {name: [copy("old")] for name in around.models},
        suspicions={"c": Suspicion(1, Verdict.SUSPECT, (death,))},
    )
    assert await around.fitness.why_unfit() == ""
    assert around.tried == ["d"]


async def test_failed_loads_keep_a_pod_from_becoming_ready() -> None:
    around = Surroundings({name: model(name) for name in "abcd"})
    around.refusals = dict.fromkeys("abcd", RefusalKind.LOAD_FAILED_PERMANENT)
    assert "cannot be loaded here" in await around.fitness.why_unfit()


async def test_want_of_room_or_time_speaks_neither_for_nor_against_a_pod() -> None:
    around = Surroundings({name: model(name) for name in "abcd"})
    around.refusals = dict.fromkeys("abc", RefusalKind.FULL) | {"d": RefusalKind.DEADLINE}
    assert await around.fitness.why_unfit() == ""
    assert around.tried == ["a", "b", "c", "d"]
