"""What the leader looks at next, and what counts as lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from placement.attention import Attention
from placement.policy.snapshot import Pod, PoolView
from placement.pool_view import PodChange, PoolChanges
from placement.records import ModelRecord, ModelSpec
from placement.view import Changes, ModelChange, RegistryView, TenantView
from tests.unit.placement.policy.builders import copy, name, pod, view

P1, P2 = pod("p1"), pod("p2")
HELD = view([P1, P2], {"m": [copy("p1")], "n": [copy("p2")], "both": [copy("p1"), copy("p2")]})


def record(model_id: str = "m", **spec: object) -> ModelRecord:
    return ModelRecord("t", model_id, ModelSpec("file:///a", **spec), 1, 0.0, 0.0)  # type: ignore[arg-type]


def registered(before: ModelRecord | None, after: ModelRecord | None) -> Changes:
    return Changes(1, (ModelChange("t", "m", before, after),))


def without_p1(*names_changed: str) -> tuple[PoolChanges, PoolView]:
    after = view([P2], {"n": [copy("p2")], "both": [copy("p2")]})
    return PoolChanges(2, (PodChange("p1", P1, None),), tuple(name(n) for n in names_changed)), after


def test_last_copies_that_went_with_their_pod_are_lost_and_others_are_only_looked_at() -> None:
    attention = Attention()
    changes, after = without_p1("m", "both")
    attention.pool_changed(changes, HELD, after, 7.0)
    assert attention.lost == {}  # a turn that is under way does not know yet that they have no copies
    assert list(attention.take_due()) == [name("m"), name("both")]
    assert attention.lost == {name("m"): 7.0}
    assert attention.take_due() == {}


def test_a_pod_that_became_another_process_has_lost_its_copies() -> None:
    attention = Attention()
    after = view([replace(P1, incarnation="p1-2"), P2], {"n": [copy("p2")], "both": [copy("p2")]})
    changes = PoolChanges(2, (PodChange("p1", P1, after.pods["p1"]),), (name("m"),))
    attention.pool_changed(changes, HELD, after, 7.0)
    attention.take_due()
    assert attention.lost == {name("m"): 7.0}


def test_a_copy_that_its_pod_let_go_of_is_not_lost() -> None:
    attention = Attention()
    after = view([P1, P2], {"n": [copy("p2")]})
    attention.pool_changed(PoolChanges(2, (), (name("m"),)), HELD, after, 7.0)
    attention.take_due()
    assert attention.lost == {}


def test_a_load_that_died_with_its_pod_is_not_lost() -> None:
    attention = Attention()
    loading = view([P1, P2], {"m": [copy("p1", servable=0, loading=1)]})
    changes, after = without_p1("m")
    attention.pool_changed(changes, loading, after, 7.0)
    attention.take_due()
    assert attention.lost == {}


def test_models_that_are_kept_are_known_from_the_start_and_followed() -> None:
    attention = Attention()
    attention.begin(RegistryView(1, {"t": TenantView({"a": record("a", pinned=True), "b": record("b")})}))
    assert list(attention.kept) == [name("a")]
    attention.names_changed(registered(record(), record(copies_min=2)), view([]))
    assert name("m") in attention.kept
    assert name("m") in attention.take_due()
    attention.names_changed(registered(record(copies_min=2), record()), HELD)
    assert name("m") not in attention.kept
    assert name("m") in attention.take_due()


def test_a_model_that_is_unregistered_is_neither_lost_nor_without_a_place_any_more() -> None:
    attention = Attention()
    changes, after = without_p1("m")
    attention.pool_changed(changes, HELD, after, 7.0)
    attention.unplaced[name("m")] = None
    attention.names_changed(registered(record(), None), view([]))
    attention.take_due()
    assert attention.lost == {}
    assert attention.unplaced == {}


@pytest.mark.parametrize(
    ("before", "after", "retried"),
    [
        (None, P2, True),
        (None, pod("p2", ready=False), False),
        (pod("p2", ready=False), P2, True),
        (P2, pod("p2", capacity_bytes=2000), True),
        (P2, pod("p2", labels=frozenset({"gpu"})), True),
        (P2, pod("p2", free_bytes=10, requests_in_flight=3), False),
        (P2, pod("p2", draining=True), False),
        (P2, None, False),
    ],
)
def test_what_had_no_place_is_tried_again_when_a_pod_can_take_more(
    before: Pod | None, after: Pod | None, retried: bool
) -> None:
    attention = Attention()
    attention.unplaced[name("m")] = None
    attention.pool_changed(PoolChanges(2, (PodChange("p2", before, after),)), view([P1]), view([P1]), 7.0)
    assert (name("m") in attention.take_due()) is retried
    assert (name("m") in attention.unplaced) is not retried
