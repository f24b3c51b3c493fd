"""Where a model stands in a pool: what this pod knows of its own copy, joined with what the others publish."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from cache.failures import FailureRecord
from cache.types import Bytes, CopyState, ModelKey, Place, RefusalKind
from cache.views import CopyView
from mesh.generations import key_of
from mesh.status import ModelState, StatusView
from placement.policy.snapshot import Death, PoolView, Suspicion, Verdict
from tests.unit.mesh.overviews import OWN, record
from tests.unit.placement.policy.builders import copy, failure, pod, view

NOW_S, WALL_S = 100.0, 1_000_000.0
BAD = FailureRecord(RefusalKind.LOAD_FAILED_PERMANENT, "bad here", 1, NOW_S - 5, float("inf"), float("inf"))
FOR_NOW = FailureRecord(RefusalKind.LOAD_FAILED_TRANSIENT, "not now", 2, NOW_S - 5, NOW_S + 3, NOW_S + 99)
QUARANTINED = Suspicion(1, Verdict.QUARANTINED, (Death("a", "a-1", "loading", 7.0), Death("b", "b-1", "loading", 9.0)))


@dataclass
class Here:
    """This pod's own cache and loader."""

    copies: dict[ModelKey, CopyState] = field(default_factory=dict)
    failure: FailureRecord | None = None
    serving: int = 0
    """The generation that serves while a newer one comes in; 0: the registered one."""

    def status(self, pool: PoolView) -> StatusView:
        cache: Any = SimpleNamespace(current=self._current)
        loading: Any = SimpleNamespace(
            failure=lambda key: self.failure, format_of=lambda key: "onnx", resident=lambda copy_id: None
        )
        generations: Any = SimpleNamespace(
            serving=lambda registered: record(generation=self.serving) if self.serving else registered
        )
        runner: Any = None  # nothing is resident
        return StatusView(OWN, cache, loading, generations, lambda: pool, runner, lambda: NOW_S, lambda: WALL_S)

    def _current(self, key: ModelKey) -> CopyView | None:
        state = self.copies.get(key)
        if state is None:
            return None
        size = Bytes.of(Place("device", "cpu"), 50)
        return CopyView(1, key, state, size, size, NOW_S - 9, NOW_S - 1, 2, 0, 0, False, 0.0, 0.4)


def here(state: CopyState, generation: int = 1) -> dict[ModelKey, CopyState]:
    return {key_of(record(generation=generation)): state}


PODS = [pod(OWN), pod("a"), pod("b")]


@pytest.mark.parametrize(
    ("own", "pool", "state", "copies"),
    [
        (Here(), view(PODS), ModelState.NOT_LOADED, []),
        (Here(here(CopyState.SERVABLE)), view(PODS), ModelState.LOADED, [OWN]),
        (Here(), view(PODS, {"m": [copy("a"), copy("b")]}), ModelState.LOADED, ["a", "b"]),
        (Here(here(CopyState.FETCHING)), view(PODS, {"m": [copy("a")]}), ModelState.LOADED, [OWN, "a"]),
        (Here(), view(PODS, {"m": [copy("a", 0, 1)]}), ModelState.LOADING, ["a"]),
        (Here(here(CopyState.UNLOADING)), view(PODS, {"m": [copy("a", 0, 1)]}), ModelState.LOADING, [OWN, "a"]),
        (Here(here(CopyState.UNLOADING)), view(PODS), ModelState.UNLOADING, [OWN]),
        (Here(failure=FOR_NOW), view(PODS), ModelState.FAILED, []),
        (Here(), view(PODS, failures={"m": [failure("a")]}), ModelState.FAILED, []),
        (Here(), view(PODS, {"m": [copy("b")]}, failures={"m": [failure("a")]}), ModelState.LOADED, ["b"]),
    ],
)
def test_a_model_is_what_it_is_anywhere(own: Here, pool: PoolView, state: ModelState, copies: list[str]) -> None:
    status = own.status(pool).model(record())
    assert (status.state, [copy.pod for copy in status.copies]) == (state, copies)


def test_what_this_pod_has_published_of_itself_is_not_listed_a_second_time() -> None:
    status = Here(here(CopyState.SERVABLE)).status(view(PODS, {"m": [copy(OWN)]})).model(record())
    (only,) = status.copies
    assert (only.requests_in_flight, only.load_s, only.since_s) == (2, 0.4, WALL_S - 9)
    assert not Here().status(view(PODS, {"m": [copy(OWN)]})).model(record()).copies, "the cache knows better"


def test_a_pod_with_two_generations_has_two_copies() -> None:
    status = Here().status(view(PODS, {"m": [copy("a", 1, 2, 70)]})).model(record(generation=2))
    assert [(c.state, c.generation, c.size.total_bytes) for c in status.copies] == [
        (ModelState.LOADED, 1, 70),
        (ModelState.LOADING, 2, 0),
    ]


def test_failures_of_every_pod_are_told_and_one_that_is_for_good_goes_first() -> None:
    pool = view(PODS, failures={"m": [failure("a"), failure("b", permanent=True), failure("a", generation=9)]})
    status = Here(failure=FOR_NOW).status(pool).model(record())
    assert [(f.pod, f.retry_at_s is None) for f in status.failures] == [(OWN, False), ("a", False), ("b", True)]
    assert status.failure is not None
    assert status.failure.pod == "b"
    assert status.failures[0].retry_at_s == WALL_S + 3


def test_a_quarantine_is_the_pools_own_word() -> None:
    status = Here().status(view(PODS, suspicions={"m": QUARANTINED})).model(record())
    assert status.state is ModelState.FAILED
    assert status.failure is not None
    assert (status.failure.pod, status.failure.failed_at_s, status.failure.retry_at_s) == ("", 9.0, None)
    assert "quarantined: 2 pods died" in status.failure.message


FOR_GOOD = [failure("a", permanent=True), failure("b", permanent=True)]


@pytest.mark.parametrize(
    ("own", "pool", "chance"),
    [
        (Here(), PoolView(), True),
        (Here(failure=FOR_NOW), PoolView(), True),
        (Here(failure=BAD), PoolView(), False),  # a pod alone has nobody who could know better
        (Here(failure=BAD), view([pod(OWN)]), False),
        (Here(failure=BAD), view(PODS), True),
        (Here(failure=BAD), view(PODS, failures={"m": FOR_GOOD[:1]}), False),
        (Here(), view(PODS, failures={"m": FOR_GOOD}), False),
        (Here(), view(PODS, failures={"m": [failure("a"), failure("b")]}), True),
        (Here(), view(PODS, {"m": [copy(OWN)]}, failures={"m": FOR_GOOD}), True),
        (Here(here(CopyState.SERVABLE)), view(PODS, failures={"m": FOR_GOOD}), True),
        (Here(), view(PODS, suspicions={"m": QUARANTINED}), False),
    ],
)
def test_a_model_has_a_chance_until_pods_agree_that_it_has_none(own: Here, pool: PoolView, chance: bool) -> None:
    assert own.status(pool).has_chance(record()) is chance


def test_a_new_generation_has_the_chance_that_the_old_one_lost() -> None:
    pool = view(PODS, failures={"m": FOR_GOOD}, suspicions={"m": QUARANTINED})
    assert Here().status(pool).has_chance(record(generation=2))


def test_the_generation_that_serves_meanwhile_is_listed_beside_the_new_one() -> None:
    own = Here({**here(CopyState.SERVABLE, 1), **here(CopyState.LOADING, 2)}, serving=1)
    status = own.status(PoolView()).model(record(generation=2))
    assert [(c.generation, c.state) for c in status.copies] == [(2, ModelState.LOADING), (1, ModelState.LOADED)]
