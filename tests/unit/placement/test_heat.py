"""What stays hot, how it cools, and that remembering is bounded."""

from __future__ import annotations

import pytest

from placement.heat import Heat
from placement.policy.snapshot import ModelName

A, B, C = (ModelName("default", letter) for letter in "abc")


def heat(models_max: int = 1000) -> Heat:
    return Heat(half_life_s=100.0, models_max=models_max)


def test_a_model_cools_by_half_in_a_half_life() -> None:
    memory = heat()
    memory.observe({A: 8.0}, now_s=1000.0)
    assert memory.rate_per_s(A, 1000.0) == pytest.approx(8.0)
    assert memory.rate_per_s(A, 1200.0) == pytest.approx(2.0)
    assert memory.rate_per_s(B, 1200.0) == 0.0


def test_a_higher_rate_counts_at_once_and_a_lower_one_slowly() -> None:
    memory = heat()
    memory.observe({A: 8.0}, now_s=0.0)
    memory.observe({A: 1.0}, now_s=1.0)
    assert memory.rate_per_s(A, 1.0) == pytest.approx(8.0, rel=0.01)
    memory.observe({A: 50.0}, now_s=2.0)
    assert memory.rate_per_s(A, 2.0) == pytest.approx(50.0)


def test_the_hottest_come_first_and_equals_in_the_order_of_names() -> None:
    memory = heat()
    memory.observe({B: 3.0, A: 3.0, C: 9.0}, now_s=0.0)
    assert [name for name, _ in memory.hottest(10, 0.0)] == [C, A, B]
    assert [name for name, _ in memory.hottest(1, 0.0)] == [C]


def test_what_was_hot_long_ago_is_cooler_than_what_is_warm_now() -> None:
    memory = heat()
    memory.observe({A: 100.0}, now_s=0.0)
    memory.observe({B: 1.0}, now_s=2000.0)
    assert [name for name, _ in memory.hottest(10, 2000.0)] == [B, A]


def test_the_coldest_are_forgotten_when_there_are_too_many() -> None:
    memory = heat(models_max=10)
    memory.observe({ModelName("t", f"m{n:02}"): float(n + 1) for n in range(11)}, now_s=0.0)
    assert len(memory) == 9
    assert memory.rate_per_s(ModelName("t", "m10"), 0.0) > 0
    assert memory.rate_per_s(ModelName("t", "m00"), 0.0) == 0.0


def test_a_forgotten_model_is_cold() -> None:
    memory = heat()
    memory.observe({A: 1.0}, now_s=0.0)
    memory.forget(A)
    assert memory.rate_per_s(A, 0.0) == 0.0
