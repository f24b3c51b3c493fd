"""What is known of a spec before its artifact is fetched, and what a changed registration means for the copy here."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from cache.events import SetPinned
from cache.types import ModelKey
from mesh.generations import wanted
from mesh.models import Models
from placement.errors import InvalidSpec
from placement.records import ModelRecord, ModelSpec
from runtime_adapters.artifacts.source_policy import SourcePolicy


def test_a_refused_signed_url_is_named_without_its_signature() -> None:
    unused: Any = None
    models = Models(unused, SourcePolicy(), unused, unused)
    with pytest.raises(InvalidSpec, match=r"store\.example/m\.pt2") as refused:
        models.check(ModelSpec(uri="https://store.example/m.pt2?X-Amz-Signature=hunter2", format="torch"))
    assert "hunter2" not in str(refused.value)


class Sent:
    """Loading, as far as it is told something."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.send = self.events.append


def test_a_pin_that_any_pod_wrote_is_heeded_by_the_copy_here() -> None:
    sent, unused = Sent(), None
    models = Models(unused, SourcePolicy(), sent, unused)  # type: ignore[arg-type]
    free = ModelRecord("t", "m", ModelSpec("file:///m"), 1, 0.0, 0.0)
    pinned = replace(free, spec=free.spec.replaced(pinned=True))
    models.heed_pin(free, pinned)
    models.heed_pin(pinned, free)
    assert sent.events == [SetPinned(ModelKey("t", "m", 1), True), SetPinned(ModelKey("t", "m", 1), False)]
    for after in (None, free, replace(pinned, generation=2)):
        models.heed_pin(free, after)
    assert len(sent.events) == 2, "another generation is another copy"


class Resident:
    def let_go(self) -> None:
        pass


class CopiesThatLeave:
    """Loads, and what answers afterwards: the first copies leave before they have taken over."""

    def __init__(self, leave: int) -> None:
        self.leave = leave
        self.loads = 0

    async def wait_servable(self, *wanted: Any, **how: Any) -> Resident:
        self.loads += 1
        return Resident()

    def model(self, tenant: str, model_id: str) -> ModelRecord:
        return ModelRecord(tenant, model_id, ModelSpec("file:///m"), 2, 0.0, 0.0)

    def resolve(self, tenant: str, model_id: str) -> ModelRecord:
        record = self.model(tenant, model_id)
        return record if self.loads > self.leave else replace(record, generation=1)


async def test_a_new_generation_that_leaves_before_it_took_over_is_loaded_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mesh.models.RETRY_FIRST_S", 0.0)
    fake: Any = CopiesThatLeave(leave=2)
    models = Models(fake, SourcePolicy(), fake, fake)
    models.take_over(fake.model("t", "m"))
    await asyncio.gather(*models._background)
    assert fake.loads == 3


@pytest.mark.parametrize(("copies_min", "ttl_s", "comes_back"), [(0, 60.0, False), (2, 0.0, True)])
def test_what_is_to_be_there_always_neither_expires_nor_leaves_before_others(
    copies_min: int, ttl_s: float, comes_back: bool
) -> None:
    model = wanted(ModelRecord("t", "m", ModelSpec("file:///m", copies_min=copies_min, ttl_s=60.0), 1, 0.0, 0.0))
    assert (model.ttl_s, model.comes_back) == (ttl_s, comes_back)
