"""A pod with room for 100 bytes, and models that take 30 each unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cache.fake_loader import FakeLoader
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.types import Bytes, ModelKey, Place, WantedModel

CPU = Place("device", "cpu")


@pytest.fixture
def model() -> Callable[..., WantedModel]:
    def build(model_id: str, tenant: str = "default", generation: int = 1, **spec: Any) -> WantedModel:
        return WantedModel(ModelKey(tenant, model_id, generation), **spec)

    return build


@pytest.fixture
def pod() -> Callable[..., FakeLoader]:
    """`pod(sizes={"big": 60}, residency_min_s=3.0)`: a machine with its fake loader; churn protection is off."""

    def build(sizes: dict[str, int] | None = None, capacity_bytes: int = 100, **limits: Any) -> FakeLoader:
        settings = {"residency_min_s": 0.0, "capacity": Bytes.of(CPU, capacity_bytes)} | limits
        machine = CacheMachine(CacheLimits(**settings))
        return FakeLoader(machine, lambda key: Bytes.of(CPU, (sizes or {}).get(key.model_id, 30)))

    return build
