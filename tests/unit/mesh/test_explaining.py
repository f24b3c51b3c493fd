"""Explanations: every sentence says what the deciding functions decide, and why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cache.fake_loader import FakeLoader
from cache.limits import CacheLimits
from cache.machine import CacheMachine
from cache.types import Bytes, CopyState, ModelKey, Place, WantedModel
from cache.views import CopyView, Explanation, Note, QueueEntry
from mesh.explaining import (
    Explaining,
    on_disk_in_words,
    parked_in_words,
    places_of,
    route_in_words,
    route_now,
    summary_of,
    suspicion_in_words,
    waits_for,
    with_own_pod,
)
from mesh.status import CopyStatus, FailureStatus, ModelState, ModelStatus
from placement.decisions import Decision
from placement.policy.load_choice import LoadChoice, choose_load_pod
from placement.policy.no_pod import NoPod
from placement.policy.snapshot import Death, PoolView, Suspicion, Verdict
from runtime_adapters.base import Size
from tests.unit.mesh.overviews import OWN, FakeOverview, record
from tests.unit.placement.policy.builders import copy, failure, healthy, model, name, pod, view

NOW_S = 1000.0
PODS = [pod(OWN), pod("a"), pod("b")]


def own_copy(state: ModelState, generation: int = 1, in_flight: int = 0) -> CopyStatus:
    return CopyStatus(OWN, state, generation, Size(100), True, NOW_S - 3, requests_in_flight=in_flight)


def elsewhere(pod_id: str, state: ModelState, generation: int = 1) -> CopyStatus:
    return CopyStatus(pod_id, state, generation, Size(100), True, NOW_S - 2)


def status(*copies: CopyStatus, failures: tuple[FailureStatus, ...] = (), generation: int = 1) -> ModelStatus:
    state = ModelState.LOADED if copies else ModelState.NOT_LOADED
    return ModelStatus(record(generation=generation), "onnx", state, copies, failures)


def choice_in(pool: PoolView, **facts: Any) -> LoadChoice | NoPod:
    return choose_load_pod(pool, model(**facts), healthy=healthy(pool))


def route_in(pool: PoolView, *own: CopyStatus, limit: int = 0) -> str:
    route = route_now(pool, model(), own, OWN, healthy(pool), {}, limit)
    return route_in_words(route, choice_in(pool), OWN)


# Where a request would go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "own", "said"),
    [
        (view(PODS), [own_copy(ModelState.LOADED)], "answers from its own copy of generation 1"),
        (view(PODS), [own_copy(ModelState.LOADING)], "is loading generation 1: a request here waits"),
        (view(PODS, {"m": [copy("a")]}), [], "forwards to pod a, which serves generation 1"),
        (view(PODS, {"m": [copy("a", 0, 1)]}), [], "forwards to pod a, which is loading generation 1, and waits"),
        (view(PODS), [], "nobody serves or loads it: a request has generation 1 loaded"),
        (view([pod(OWN, capacity_bytes=10)]), [], "a request is refused: no pod can load t/m"),
    ],
)
def test_the_route_is_said_as_the_router_would_take_it(pool: PoolView, own: list[CopyStatus], said: str) -> None:
    assert said in route_in(pool, *own)


def test_a_copy_here_that_has_too_much_to_do_sends_requests_on() -> None:
    pool = view(PODS, {"m": [copy("a")]})
    assert "forwards to pod a" in route_in(pool, own_copy(ModelState.LOADED, in_flight=9), limit=1)


def test_the_places_are_all_pods_with_what_speaks_for_or_against_each() -> None:
    many = [pod(f"p{index}") for index in range(6)]
    pool = view([*many, pod("small", capacity_bytes=10), pod("leaving", draining=True)], {"m": [copy("p0")]})
    places = {place.pod: place for place in places_of(pool, choice_in(pool))}
    assert set(places) == set(pool.pods)
    (chosen,) = [place for place in places.values() if place.chosen]
    assert chosen.estimate_s is not None
    assert any("loads 1.00 s" in reason for reason in chosen.reasons)
    assert "serves it already" in places["p0"].reasons[0]
    assert "10 B" in places["small"].reasons[0]
    assert places["leaving"].reasons == ("draining",)
    left = [place for place in places.values() if "by hash" in place.reasons[0]]
    assert left
    assert not any(place.chosen or place.estimate_s for place in left)


def test_pods_that_have_it_on_disk_are_named_with_what_speaks_against_them() -> None:
    on_disk = frozenset({"a", "leaving", "far"})
    many = [pod(f"p{index}") for index in range(9)]
    busy = pod("far", load_wait_s=60.0)
    pool = view([pod("a"), busy, pod("leaving", draining=True), *many])
    choice = choose_load_pod(pool, model(on_disk=on_disk), healthy=healthy(pool))
    places = {place.pod: place for place in places_of(pool, choice, on_disk)}
    assert places["a"].chosen
    assert "loads 0.20 s from its disk" in places["a"].reasons
    assert (places["far"].chosen, places["far"].reasons) == (False, ("waits 60.00 s", "loads 0.20 s from its disk"))
    assert places["leaving"].reasons == ("draining", "although its disk has the artifact")
    assert not any("disk" in reason for pod_id, each in places.items() if pod_id[0] == "p" for reason in each.reasons)
    alone = view([pod("leaving", draining=True)])
    (place,) = places_of(alone, choose_load_pod(alone, model(on_disk=on_disk), healthy=healthy(alone)), on_disk)
    assert place.reasons == ("draining", "although its disk has the artifact")


def test_disks_that_have_it_are_part_of_the_summary() -> None:
    assert on_disk_in_words((), {"a"}) == ""
    said = on_disk_in_words({"b", "a"}, {"a"})
    assert said == " Its artifact is on the disk of 2 pods (a, b, which does not answer)."


def test_when_no_pod_is_left_every_obstacle_of_each_is_told() -> None:
    pool = view([pod("a", capacity_bytes=10, draining=True), pod("b", capacity_bytes=10)])
    a, b = places_of(pool, choice_in(pool))
    assert (len(a.reasons), len(b.reasons)) == (2, 1)
    assert a.estimate_s is None


def test_a_verdict_on_the_model_is_told_for_every_pod() -> None:
    pool = view(PODS, failures={"m": [failure("a", permanent=True), failure("b", permanent=True)]})
    said = {place.pod: place.reasons for place in places_of(pool, choice_in(pool))}
    assert said["a"] == ("failed to load it: it failed",)
    assert said[OWN] == ("not asked: the model is failed for good",)


def test_this_pod_is_seen_as_it_is_now_and_not_as_it_was_published() -> None:
    published = view(PODS, {"m": [copy(OWN), copy("a")]}, failures={"m": [failure(OWN), failure("b")]})
    now = with_own_pod(published, pod(OWN, free_bytes=7), status(elsewhere("a", ModelState.LOADED)), NOW_S)
    assert [each.pod for each in now.copies[name()]] == ["a"]
    assert [each.pod for each in now.failures[name()]] == ["b"]
    assert now.pods[OWN].free_bytes == 7
    gone = FailureStatus(OWN, "gone by", NOW_S - 9, NOW_S - 1)
    bad = FailureStatus(OWN, "bad", NOW_S - 9, None)
    here = with_own_pod(
        published, pod(OWN), status(own_copy(ModelState.LOADED, 1), own_copy(ModelState.LOADING, 2), failures=(bad,)), 0
    )
    (own, _) = sorted(here.copies[name()], key=lambda each: each.pod != OWN)
    assert (own.servable, own.loading) == (1, 2)
    assert [each.permanent for each in here.failures[name()] if each.pod == OWN] == [True]
    assert not with_own_pod(view(PODS), pod(OWN), status(failures=(gone,)), NOW_S).failures


# Where it stands ------------------------------------------------------------------------------------------------------

QUARANTINED = Suspicion(1, Verdict.QUARANTINED, (Death("a", "a-1", "loading", 7.0), Death("b", "b-1", "loading", 9.0)))
CHOICE = choice_in(view(PODS))
NO_CHOICE = choice_in(view([]))


@pytest.mark.parametrize(
    ("shown", "suspicion", "choice", "said"),
    [
        (status(), None, CHOICE, "Registered and loaded nowhere: nobody has wanted it lately"),
        (status(own_copy(ModelState.LOADED)), None, CHOICE, "Served by 1 pod (here)."),
        (
            status(*(elsewhere(f"p{index}", ModelState.LOADED) for index in range(7))),
            None,
            CHOICE,
            "Served by 7 pods (p0, p1, p2, p3, p4 and 2 more).",
        ),
        (
            status(elsewhere("a", ModelState.LOADED), elsewhere("b", ModelState.LOADING)),
            None,
            CHOICE,
            "Served by 1 pod (a); being loaded on 1 pod (b).",
        ),
        (
            status(elsewhere("a", ModelState.LOADED, 1), elsewhere("a", ModelState.LOADING, 2), generation=2),
            None,
            CHOICE,
            "Served by 1 pod (a) in generation 1, while generation 2 is not there yet; being loaded on 1 pod (a).",
        ),
        (status(own_copy(ModelState.LOADING)), None, CHOICE, "Being loaded on 1 pod (here), for 3.0 s now."),
        (status(), None, NO_CHOICE, "Loaded nowhere, and no pod can load it."),
        (
            status(failures=(FailureStatus("a", "no memory", NOW_S - 1, NOW_S + 4),)),
            None,
            CHOICE,
            "Loaded nowhere: it failed on pod a (tried there again in 4 s): no memory",
        ),
        (
            status(failures=(FailureStatus("", "quarantined: it kills", NOW_S, None),)),
            QUARANTINED,
            NO_CHOICE,
            "No pod loads it: quarantined: it kills.",
        ),
    ],
)
def test_the_summary_is_one_sentence(
    shown: ModelStatus, suspicion: Suspicion | None, choice: LoadChoice | NoPod, said: str
) -> None:
    pods = {OWN, "a", "b", *(f"p{index}" for index in range(7))}
    assert summary_of(shown, suspicion, choice, pods, NOW_S).startswith(said)


def test_a_pod_that_does_not_answer_is_not_passed_off_as_one_that_serves() -> None:
    shown = status(elsewhere("a", ModelState.LOADED), elsewhere("b", ModelState.LOADED))
    assert summary_of(shown, None, CHOICE, {"b"}, NOW_S) == "Served by 2 pods (a, which does not answer, b)."


# What it waits for ----------------------------------------------------------------------------------------------------

KEY = ModelKey("t", "m", 1)
SIZE = Bytes.of(Place("device", "cpu"), 100)


def cached(state: CopyState | None, *, retry_at_s: float | None = None, predicted_s: float = 0.0) -> Explanation:
    copies = ()
    if state is not None:
        copies = (CopyView(5, KEY, state, SIZE, SIZE, NOW_S - 2, 0.0, 0, 3, 0, False, 0.0, 0.0),)
    return Explanation(KEY, "", copies, None, predicted_s, retry_at_s, ())


def queued(state: CopyState, blocked: str | None = None) -> list[QueueEntry]:
    first = QueueEntry(4, ModelKey("t", "other", 1), CopyState.LOADING, 1, True, 0, 0.0, SIZE, None)
    return [first, QueueEntry(5, KEY, state, 3, True, 0, 0.0, SIZE, blocked)]


@pytest.mark.parametrize(
    ("here", "queue", "said"),
    [
        (cached(None), [], ""),
        (cached(CopyState.SERVABLE), [], ""),
        (cached(CopyState.QUEUED), queued(CopyState.QUEUED), "its turn to be fetched (number 2 of 2 on their way in)"),
        (cached(CopyState.FETCHING), queued(CopyState.FETCHING), "its artifact to be fetched and prepared, for 2.0 s"),
        (
            cached(CopyState.WAITING_FOR_SPACE),
            queued(CopyState.WAITING_FOR_SPACE, "all is in use"),
            "(all is in use)",
        ),
        (cached(CopyState.SETTLING), queued(CopyState.SETTLING), "room for what it takes beyond its estimate"),
        (
            cached(CopyState.LOADING, predicted_s=1.5),
            queued(CopyState.LOADING),
            "its load, for 2.0 s now, 1.50 s expected in all; 3 requests wait for it",
        ),
        (cached(None, retry_at_s=NOW_S + 7), [], "the pause after its failure, 7.0 s more"),
        (cached(None, retry_at_s=float("inf")), [], ""),
    ],
)
def test_what_a_copy_waits_for_is_said_by_its_stage(here: Explanation, queue: list[QueueEntry], said: str) -> None:
    found = waits_for(here, queue, NOW_S)
    assert said in found
    assert bool(found) == bool(said)


# What happened --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suspicion", "generation", "said"),
    [
        (None, 1, ""),
        (QUARANTINED, 2, ""),
        (QUARANTINED, 1, "no pod loads it until it gets another spec or is released"),
        (Suspicion(1, Verdict.SUSPECT, (Death("a", "a-1", "running", 7.0),)), 1, "that may be chance"),
        (
            Suspicion(1, Verdict.SUSPECT, (Death("a", "a-1", "running", 7.0), Death("b", "b-1", "running", 9.0))),
            1,
            "pod a died while running it (1970-01-01 00:00:07Z); pod b died while running it (1970-01-01 00:00:09Z): "
            "it runs in a process of its own",
        ),
        (
            Suspicion(1, Verdict.SUSPECT, (Death("a", "a-1", "crashed", 7.0),)),
            1,
            "its own process crashed on pod a",
        ),
    ],
)
def test_a_suspicion_tells_the_deaths_and_what_follows(suspicion: Suspicion | None, generation: int, said: str) -> None:
    found = suspicion_in_words(suspicion, generation)
    assert said in found
    assert bool(found) == bool(said)


def test_an_explanation_joins_what_the_cache_and_the_leader_remember_in_the_order_of_time() -> None:
    notes = (Note(10.0, KEY, 5, "evicted for another"), Note(30.0, KEY, 5, "load failed"))
    cache: Any = SimpleNamespace(explain=lambda key: Explanation(key, "", (), None, 0.0, None, notes), queue=lambda: ())
    decided = {
        "m": (Decision(name(), 1020.0, "load", "two copies are wanted", "a", ("considered b", "out c")),),
        "alias": (Decision(name("alias"), 1005.0, "switch alias", "the target serves"),),
    }
    overview = FakeOverview(view(PODS), decided=decided, on_disk=frozenset({"a"}))
    shown: Any = SimpleNamespace(model=lambda record: status())
    registry: Any = SimpleNamespace(aliases_of=lambda tenant, model_id: frozenset({"alias"}))
    explaining = Explaining(overview, shown, cache, registry, clock=lambda: 50.0, wall_clock=lambda: 1050.0)
    explained = explaining.explain(record())
    assert [happening.at_s for happening in explained.history] == [1005.0, 1010.0, 1020.0, 1030.0]
    assert explained.history[2].text == ("decided: load t/m on a: two copies are wanted [considered b | out c]")
    assert {place.pod for place in explained.places} == set(overview.view.pods)
    assert explained.waits_for == ""
    assert explained.summary.endswith("loads it. Its artifact is on the disk of 1 pod (a).")


def test_a_model_that_has_left_its_gpu_is_said_to_be_parked() -> None:
    gpu, ram, key = Place("device", "cuda:0"), Place("host"), ModelKey("t", "m")
    loader = FakeLoader(
        CacheMachine(CacheLimits(capacity=Bytes.from_mapping({gpu: 50, ram: 100}), residency_min_s=0.0)),
        lambda key: Bytes.of(gpu, 30),
        parks_of=lambda key: Bytes.of(ram, 40),
    )
    loader.use(1, WantedModel(key))
    assert parked_in_words(loader.machine.explain(key), OWN) == ""
    loader.use(2, WantedModel(ModelKey("t", "other")))
    assert "parked: 40 B on host" in parked_in_words(loader.machine.explain(key), OWN)
