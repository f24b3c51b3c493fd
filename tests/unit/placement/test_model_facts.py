"""What is known of a model from what pods publish: on whose disk it is, and how long loads take."""

from __future__ import annotations

from placement.model_facts import DISK_BYTES_PER_S, LOAD_BYTES_PER_S, LOAD_FIRST_S, FactsGatherer
from placement.policy.snapshot import ModelFacts, ModelName, Parked, PoolView
from placement.records import ModelRecord, ModelSpec
from tests.unit.placement.policy.builders import pod

SIZE_BYTES = 10**9


def facts(*parked: Parked, generation: int = 2) -> ModelFacts:
    name = ModelName("t", "m")
    record = ModelRecord(name.tenant, name.id, ModelSpec("file:///m"), generation, 0.0, 0.0)
    return FactsGatherer(PoolView(parked={name: parked} if parked else {}), lambda _: SIZE_BYTES).facts(record)


def test_disks_that_have_this_generation_are_named() -> None:
    assert facts().on_disk == frozenset()
    assert facts(Parked("a", 1), Parked("b", 2), Parked("c", 2, 0.5)).on_disk == {"b", "c"}


def test_what_was_not_measured_is_guessed_from_the_size() -> None:
    guessed = facts(Parked("a", 2), Parked("b", 1, 7.0))
    assert guessed.disk_load_s == LOAD_FIRST_S + SIZE_BYTES / DISK_BYTES_PER_S
    assert guessed.load_s == LOAD_FIRST_S + SIZE_BYTES / LOAD_BYTES_PER_S


def test_a_load_from_disk_takes_what_most_pods_measured() -> None:
    assert facts(Parked("a", 2, 0.02)).disk_load_s == 0.02
    assert facts(Parked("a", 2, 9.0), Parked("b", 2, 0.5), Parked("c", 2), Parked("d", 2, 0.4)).disk_load_s == 0.5


def test_a_load_from_afar_takes_the_fetch_on_top() -> None:
    assert facts(Parked("a", 2, 7.0)).load_s == 7.0 + SIZE_BYTES / LOAD_BYTES_PER_S
    assert facts(Parked("a", 2, 0.02)).load_s == facts().load_s


def size_of(declared_bytes: int | None, known_bytes: int | None, *capacities: int) -> int:
    pods = {f"p{number}": pod(f"p{number}", capacity_bytes=size) for number, size in enumerate(capacities)}
    record = ModelRecord("t", "m", ModelSpec("file:///m", capacity_hint_bytes=declared_bytes), 1, 0.0, 0.0)
    return FactsGatherer(PoolView(pods=pods), lambda _: known_bytes).facts(record).size_bytes


def test_a_measured_size_goes_before_a_declared_one() -> None:
    assert size_of(500, 100, 10_000) == 100
    assert size_of(500, None, 10_000) == 500


def test_a_declared_size_rules_the_largest_pod_out_for_nobody() -> None:
    assert size_of(50_000, None, 10_000, 20_000) == 20_000
    assert size_of(50_000, None) == 50_000
