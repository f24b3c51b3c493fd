"""Which generation answers while a model is being replaced: the old one until the new one can."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache.types import ModelKey
from mesh.generations import Generations, key_of
from placement.records import ModelRecord, ModelSpec


def record(generation: int, model_id: str = "m", tenant: str = "default") -> ModelRecord:
    return ModelRecord(tenant, model_id, ModelSpec(uri=f"file:///m-{generation}.onnx"), generation, 0.0, 0.0)


class Cache:
    """What is servable, and what was asked to leave."""

    def __init__(self) -> None:
        self.servable: set[ModelKey] = set()
        self.retired: list[ModelKey] = []
        self.generations = Generations(self.servable.__contains__, self._retire)

    def _retire(self, key: ModelKey) -> None:
        self.retired.append(key)
        self.servable.discard(key)

    def load(self, one: ModelRecord) -> None:
        self.servable.add(key_of(one))
        self.generations.loaded(key_of(one))


def test_without_a_servable_copy_the_new_generation_answers_at_once() -> None:
    cache = Cache()
    assert cache.generations.changed(record(1), record(2)) is None
    assert cache.generations.serving(record(2)) == record(2)
    assert cache.retired == [key_of(record(1))]


def test_a_servable_copy_answers_until_the_new_one_is_loaded() -> None:
    cache = Cache()
    cache.load(record(1))
    assert cache.generations.changed(record(1), record(2)) == record(2)
    assert cache.generations.serving(record(2)) == record(1)
    assert cache.retired == []
    cache.load(record(2))
    assert cache.generations.serving(record(2)) == record(2)
    assert cache.retired == [key_of(record(1))]


def test_when_the_old_copy_is_evicted_meanwhile_the_new_generation_answers() -> None:
    cache = Cache()
    cache.load(record(1))
    cache.generations.changed(record(1), record(2))
    cache.servable.clear()
    assert cache.generations.serving(record(2)) == record(2)
    assert cache.generations.serving(record(2)) == record(2)


def test_a_third_generation_replaces_the_one_that_never_served() -> None:
    cache = Cache()
    cache.load(record(1))
    cache.generations.changed(record(1), record(2))
    assert cache.generations.changed(record(2), record(3)) == record(3)
    assert cache.retired == [key_of(record(2))]
    cache.load(record(2))  # a late answer of the one that was given up
    assert cache.generations.serving(record(3)) == record(1)
    cache.load(record(3))
    assert cache.generations.serving(record(3)) == record(3)
    assert key_of(record(1)) in cache.retired


def test_an_unregistered_model_leaves_with_all_its_generations() -> None:
    cache = Cache()
    cache.load(record(1))
    cache.generations.changed(record(1), record(2))
    assert cache.generations.changed(record(2), None) is None
    assert set(cache.retired) == {key_of(record(1)), key_of(record(2))}


def test_a_change_that_is_no_new_generation_changes_nothing_here() -> None:
    cache = Cache()
    cache.load(record(1))
    assert cache.generations.changed(record(1), record(1)) is None
    cache.generations.changed(record(1), record(2))
    assert cache.generations.changed(record(2), record(2)) is None
    assert cache.generations.serving(record(2)) == record(1)
    assert cache.retired == []


def test_both_generations_records_are_found_while_one_replaces_the_other() -> None:
    cache = Cache()
    cache.load(record(1))
    cache.generations.changed(record(1), record(2))
    assert cache.generations.record_of(key_of(record(1)), record(2)) == record(1)
    assert cache.generations.record_of(key_of(record(2)), record(2)) == record(2)
    assert cache.generations.record_of(key_of(record(3)), record(2)) is None
    assert cache.generations.record_of(key_of(record(1)), None) == record(1)


def test_models_of_one_name_in_two_tenants_do_not_touch_each_other() -> None:
    cache = Cache()
    blue, green = record(1, tenant="blue"), record(1, tenant="green")
    cache.load(blue)
    cache.load(green)
    cache.generations.changed(blue, record(2, tenant="blue"))
    assert cache.generations.serving(record(2, tenant="blue")) == blue
    assert cache.generations.serving(green) == green


@given(st.lists(st.sampled_from(["new", "load", "evict"]), max_size=40))
def test_whatever_happens_what_answers_is_servable_if_anything_was(steps: list[str]) -> None:
    cache = Cache()
    generation = 1
    for step in steps:
        before = cache.generations.serving(record(generation))
        was_servable = key_of(before) in cache.servable
        match step:
            case "new":
                generation += 1
                cache.generations.changed(record(generation - 1), record(generation))
            case "load":
                cache.load(record(generation))
            case _:
                cache.servable.clear()
        now = cache.generations.serving(record(generation))
        if was_servable and step != "evict":
            assert key_of(now) in cache.servable
        assert now.generation <= generation
        # No copy is left that nobody will ever ask for.
        assert cache.servable <= {key_of(now), key_of(record(generation))}


def test_a_new_generation_that_is_loaded_but_still_waits_for_room_does_not_take_over_yet() -> None:
    cache = Cache()
    cache.load(record(1))
    cache.generations.changed(record(1), record(2))
    cache.generations.loaded(key_of(record(2)))  # larger than was reserved: it may yet have to leave
    assert cache.generations.serving(record(2)) == record(1)
    assert cache.retired == []
    cache.servable.add(key_of(record(2)))
    assert cache.generations.serving(record(2)) == record(2)
    assert cache.retired == [key_of(record(1))]


def test_a_generation_that_another_pod_serves_and_this_one_cannot_load_ends_the_one_before_it() -> None:
    cache = Cache()
    cache.load(record(1))
    cache.generations.changed(record(1), record(2))
    cache.generations.superseded(record(3))
    assert cache.generations.serving(record(2)) == record(1), "another generation was meant"
    cache.generations.superseded(record(2))
    assert cache.generations.serving(record(2)) == record(2)
    assert cache.retired == [key_of(record(1))]
