"""Which parts of a pod hear of a registration that came, changed or went."""

from __future__ import annotations

from typing import Any, cast

from cache.types import ModelKey
from mesh.registrations import Registrations
from placement.records import ModelRecord, ModelSpec
from placement.view import Changes, ModelChange


class Part:
    """Stands for any part of a pod: notes what it is told."""

    def __init__(self, heard: list[tuple[str, Any]], name: str) -> None:
        self._heard = heard
        self._name = name

    def __getattr__(self, call: str) -> Any:
        if call == "tallies":
            return Part(self._heard, f"{self._name}.{call}")

        def note(*told: Any) -> None:
            self._heard.append((f"{self._name}.{call}", told[0] if len(told) == 1 else told))

        return note


def heard_of(before: ModelRecord | None, after: ModelRecord | None) -> list[tuple[str, Any]]:
    heard: list[tuple[str, Any]] = []
    parts = ("registry", "models", "generations", "loading", "parking", "telemetry")
    registrations = Registrations(*(cast(Any, Part(heard, name)) for name in parts))
    registrations.heed(Changes(1, (ModelChange("t", "m", before, after),)))
    return heard


def record(generation: int) -> ModelRecord:
    return ModelRecord("t", "m", ModelSpec(uri="file:///m", format="onnx"), generation, 1.0, 1.0)


def key(generation: int) -> ModelKey:
    return ModelKey("t", "m", generation)


def test_what_is_remembered_of_a_model_goes_with_its_registration() -> None:
    heard = heard_of(record(3), None)
    assert ("loading.forget", key(3)) in heard
    assert ("telemetry.tallies.forget", key(3)) in heard
    assert ("telemetry.forget", ("onnx", "t", "m")) in heard


def test_a_new_model_is_not_taken_for_one_of_its_name_that_was_here_before() -> None:
    assert ("loading.forget", key(1)) in heard_of(None, record(1))


def test_an_older_generation_may_still_serve_and_is_remembered() -> None:
    heard = heard_of(record(1), record(2))
    assert ("loading.forget", key(1)) not in heard
    assert ("loading.forget", key(2)) in heard


def test_a_change_within_a_generation_forgets_nothing() -> None:
    heard = heard_of(record(1), record(1))
    assert [call for call, _ in heard] == ["models.heed_pin", "generations.changed"]
