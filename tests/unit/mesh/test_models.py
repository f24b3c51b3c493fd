"""What is known of a spec before its artifact is fetched, and what a changed registration means for the copy here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cache.events import SetPinned
from cache.types import ModelKey
from mesh.models import Models
from placement.errors import InvalidSpec
from placement.records import ModelRecord, ModelSpec
from runtime_adapters.artifacts.locations import SourcePolicy


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
    pinned = replace(free, spec=replace(free.spec, pinned=True))
    models.heed_pin(free, pinned)
    models.heed_pin(pinned, free)
    assert sent.events == [SetPinned(ModelKey("t", "m", 1), True), SetPinned(ModelKey("t", "m", 1), False)]
    for after in (None, free, replace(pinned, generation=2)):
        models.heed_pin(free, after)
    assert len(sent.events) == 2, "another generation is another copy"
