"""Hashing: the same on every machine, even, and stable."""

from __future__ import annotations

from collections import Counter

from placement.policy.rendezvous import affinity, closest, hash_of, two_of
from tests.unit.placement.policy.builders import name

PODS = [f"p{number}" for number in range(10)]


def test_hashes_are_the_same_on_every_machine() -> None:
    assert hash_of("t\0m\0p") == 13276483708173617955


def test_every_pod_is_preferred_equally_often() -> None:
    counts = Counter(closest(name(f"m{number}"), PODS) for number in range(5000))
    assert all(400 < counts[pod] < 600 for pod in PODS)


def test_a_pod_is_preferred_in_proportion_to_its_capacity() -> None:
    wins = sum(
        affinity(name(f"m{number}"), "large", 3.0) > affinity(name(f"m{number}"), "small", 1.0)
        for number in range(5000)
    )
    assert 0.72 < wins / 5000 < 0.78
    assert affinity(name(), "none", 0.0) == 0.0


def test_a_pods_loss_moves_only_the_models_that_preferred_it() -> None:
    models = [name(f"m{number}") for number in range(500)]
    before = {model: closest(model, PODS) for model in models}
    after = {model: closest(model, PODS[1:]) for model in models}
    assert all(after[model] == before[model] for model in models if before[model] != "p0")


def test_the_two_that_are_drawn_are_different_and_every_pair_comes_up() -> None:
    pairs = Counter(two_of(name(), ordinal, 4) for ordinal in range(2400))
    assert all(first != second for first, second in pairs)
    assert len(pairs) == 12
    assert all(count > 120 for count in pairs.values())
