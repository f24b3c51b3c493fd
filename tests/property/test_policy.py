"""Placement's decisions over arbitrary pools: does the order of the input change the answer, does a choice pass every
filter, is a pod ever promised more than it has, and is a plan that was carried out the end of it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from placement.policy.drain import plan_drain
from placement.policy.duplicates import plan_surplus
from placement.policy.load_choice import LoadChoice, choose_load_pod
from placement.policy.obstacles import Promised, Situation, obstacles
from placement.policy.outliers import LIMITS as OUTLIER_LIMITS
from placement.policy.outliers import Ejection, LatencySample, plan_ejections
from placement.policy.places import Place, Terms
from placement.policy.rebalance import plan_rebalance
from placement.policy.restore import has_copy, plan_restore
from placement.policy.routing import Forward, Load, Mode, RunHere, choose_route
from placement.policy.scaling import NO_HISTORY, AddCopies, DropCopies, ScalingHistory, plan_copies
from placement.policy.snapshot import BusyModel, Copy, LoadFailure, ModelFacts, ModelName, Pod, PoolView
from placement.policy.transitions import Prepare, plan_transition
from tests.unit.placement.policy.builders import copy, failure, healthy, model, name, pod, view

POD_IDS = [f"p{number}" for number in range(7)]
MODEL_IDS = [f"m{number}" for number in range(6)]
SECONDS = st.sampled_from([0.0, 0.1, 1.0, 30.0, 4000.0])

PODS = st.lists(
    st.builds(
        lambda pod_id, capacity, free, pinned, **rest: pod(
            pod_id,
            capacity_bytes=capacity,
            free_bytes=int(capacity * free),
            pinned_bytes=int(capacity * pinned),
            **rest,
        ),
        pod_id=st.sampled_from(POD_IDS),
        capacity=st.sampled_from([0, 150, 1000, 1000, 3000]),
        free=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
        pinned=st.sampled_from([0.0, 0.0, 0.3, 0.95]),
        zone=st.sampled_from(["", "1", "2", "3"]),
        labels=st.sampled_from([frozenset(), frozenset({"gpu"}), frozenset({"gpu", "ssd"})]),
        formats=st.sampled_from([frozenset(), frozenset({"onnx"})]),
        eviction_age_s=SECONDS,
        load_wait_s=SECONDS,
        loads_queued=st.integers(0, 5),
        requests_in_flight=st.integers(0, 9),
        queue_delay_s=st.sampled_from([0.0, 0.04, 0.3]),
        ready=st.sampled_from([True, True, True, False]),
        draining=st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=7,
    unique_by=lambda each: each.id,
)
COPIES = st.lists(
    st.builds(copy, st.sampled_from(POD_IDS), servable=st.integers(0, 2), loading=st.sampled_from([0, 0, 1, 2])).filter(
        lambda each: each.servable != each.loading
    ),
    max_size=4,
    unique_by=lambda each: each.pod,
)
FAILURES = st.lists(
    st.builds(failure, st.sampled_from(POD_IDS), generation=st.integers(1, 2), permanent=st.booleans()),
    max_size=3,
    unique_by=lambda each: each.pod,
)
MODELS = st.builds(
    model,
    st.sampled_from(MODEL_IDS),
    size_bytes=st.sampled_from([1, 100, 400, 1200]),
    generation=st.integers(1, 2),
    format=st.sampled_from(["", "onnx", "torch"]),
    labels_required=st.sampled_from([frozenset(), frozenset(), frozenset({"gpu"})]),
    labels_preferred=st.sampled_from([frozenset(), frozenset({"ssd"})]),
    pinned=st.sampled_from([False, False, True]),
    copies_min=st.sampled_from([0, 0, 2]),
    load_s=st.sampled_from([0.2, 2.0]),
    on_disk=st.frozensets(st.sampled_from(POD_IDS), max_size=3),
)
BUSY = st.dictionaries(
    st.sampled_from(POD_IDS),
    st.builds(
        BusyModel,
        st.just(name("m0")),
        rate_per_s=st.sampled_from([0.0, 0.5, 40.0]),
        in_flight=st.sampled_from([0.0, 0.3, 0.9, 7.0]),
        queue_delay_s=st.sampled_from([0.0, 0.01, 0.4]),
        run_s=st.sampled_from([0.001, 0.02, 1.0]),
        concurrency=st.sampled_from([1, 4]),
    ),
    max_size=4,
)
RATES = st.sampled_from([0.0, 0.001, 0.5, 20.0])


@st.composite
def pools(draw: st.DrawFn) -> PoolView:
    pods: list[Pod] = draw(PODS)
    copies: Mapping[str, list[Copy]] = draw(st.dictionaries(st.sampled_from(MODEL_IDS), COPIES, max_size=6))
    failures: Mapping[str, list[LoadFailure]] = draw(st.dictionaries(st.sampled_from(MODEL_IDS), FAILURES, max_size=3))
    fading = draw(st.lists(st.sampled_from([each.id for each in pods]), max_size=2, unique=True))
    return view(pods, {i: of for i, of in copies.items() if of}, failures=failures, fading=fading)


def shuffled(of: PoolView, draw: st.DataObject) -> PoolView:
    """The same picture; only the order in which its mappings came to be is another."""

    seed = draw.draw(st.integers(0, 2**32), label="shuffle")

    def again(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
        return dict(Random(seed).sample(list(mapping.items()), len(mapping)))

    return replace(
        of, pods=again(of.pods), copies=again(of.copies), failures=again(of.failures), fading=again(of.fading)
    )


def carried_out(of: PoolView, places: Sequence[Place], *, servable: bool) -> PoolView:
    """The picture once the pods have these copies."""
    copies = dict(of.copies)
    for place in places:
        there = {each.pod: each for each in copies.get(place.name, ())}
        before = there.get(place.pod) or Copy(place.pod, 0, 0, 100, 0.0)
        there[place.pod] = (
            replace(before, servable=place.generation, loading=0)
            if servable
            else replace(before, loading=place.generation)
        )
        copies[place.name] = tuple(there[pod_id] for pod_id in sorted(there))
    return replace(of, copies=copies)


def unique(models: list[ModelFacts]) -> dict[ModelName, ModelFacts]:
    return {each.name: each for each in models}


@given(pools(), MODELS, st.frozensets(st.sampled_from(POD_IDS), max_size=2), st.data())
def test_the_order_of_a_picture_changes_no_choice(
    of: PoolView, wanted: ModelFacts, tried: frozenset[str], draw: st.DataObject
) -> None:
    first = choose_load_pod(of, wanted, healthy=healthy(of), excluded=tried)
    assert first == choose_load_pod(shuffled(of, draw), wanted, healthy=healthy(of), excluded=tried)
    assert first.explain()


@given(pools(), MODELS, st.frozensets(st.sampled_from(POD_IDS)), st.frozensets(st.sampled_from(POD_IDS), max_size=2))
def test_a_chosen_pod_passes_every_filter_and_none_is_chosen_only_when_none_does(
    of: PoolView, wanted: ModelFacts, answering: frozenset[str], tried: frozenset[str]
) -> None:
    promised = {"p0": Promised(500, 2, 1.0)}
    choice = choose_load_pod(of, wanted, healthy=answering, excluded=tried, promised=promised)
    at = Situation.of(of, wanted, healthy=answering, held_off=tried, ordered=(), promised=promised)
    fit = {each.id for each in of.pods.values() if next(obstacles(each, wanted, at), None) is None}
    if isinstance(choice, LoadChoice):
        assert choice.pod in fit
        assert {candidate.pod for candidate in choice.considered} <= fit
        assert {out.pod for out in choice.ruled_out} == of.pods.keys() - fit
    else:
        assert not fit or choice.message
        if fit:
            # The model as a whole is out: two pods agree that it cannot be loaded.
            assert sum(at.failures[each].permanent for each in at.failures) >= 2
        else:
            assert set(choice.closest) <= of.pods.keys()


@given(pools(), MODELS)
def test_a_further_copy_is_on_another_pod_and_in_a_zone_without_one_if_any_pod_there_can_have_it(
    of: PoolView, wanted: ModelFacts
) -> None:
    choice = choose_load_pod(of, wanted, healthy=healthy(of))
    if not isinstance(choice, LoadChoice):
        return
    held = {each.pod for each in of.copies.get(wanted.name, ()) if wanted.generation in (each.servable, each.loading)}
    assert choice.pod not in held
    zones = {of.pods[each].zone for each in held if each in of.pods and not of.pods[each].draining}
    at = Situation.of(of, wanted, healthy=healthy(of), held_off=(), ordered=(), promised={})
    fit = [each for each in of.pods.values() if next(obstacles(each, wanted, at), None) is None]
    if any(each.zone not in zones and each.id not in of.fading for each in fit) and choice.pod not in of.fading:
        assert of.pods[choice.pod].zone not in zones


@given(st.integers(2, 7), MODELS, st.data())
def test_a_pod_that_goes_moves_no_model_but_its_own(count: int, wanted: ModelFacts, draw: st.DataObject) -> None:
    of = view([pod(each, labels=frozenset({"gpu"})) for each in POD_IDS[:count]])
    before = choose_load_pod(of, replace(wanted, size_bytes=100), healthy=healthy(of))
    assert isinstance(before, LoadChoice)
    gone = draw.draw(st.sampled_from([each for each in POD_IDS[:count] if each != before.pod]))
    left = replace(of, pods={each: record for each, record in of.pods.items() if each != gone})
    after = choose_load_pod(left, replace(wanted, size_bytes=100), healthy=healthy(left))
    assert isinstance(after, LoadChoice)
    assert after.pod == before.pod


@given(pools(), st.lists(st.tuples(MODELS, RATES), max_size=6, unique_by=lambda item: item[0].name), st.data())
def test_restoring_takes_only_what_has_no_copy_and_ends_when_it_is_carried_out(
    of: PoolView, wanted: list[tuple[ModelFacts, float]], draw: st.DataObject
) -> None:
    plan = plan_restore(of, wanted, Terms(healthy(of), loads_per_pod_max=3))
    again = plan_restore(
        shuffled(of, draw), draw.draw(st.permutations(wanted)), Terms(healthy(of), loads_per_pod_max=3)
    )
    assert plan == again
    facts = {each.name: each for each, _ in wanted}
    assert all(not has_copy(of, place.name, healthy(of)) for place in plan.places)
    _assert_room(of, plan.places, facts, loads_per_pod_max=3)
    done = carried_out(of, plan.places, servable=False)
    follow_up = plan_restore(done, wanted, Terms(healthy(of), loads_per_pod_max=3))
    assert not {place.name for place in follow_up.places} & {place.name for place in plan.places}


@given(pools(), st.lists(MODELS, max_size=6), st.dictionaries(st.sampled_from(MODEL_IDS), RATES), st.data())
def test_a_drain_asks_for_no_more_than_there_is_and_ends(
    of: PoolView, listed: list[ModelFacts], by_id: dict[str, float], draw: st.DataObject
) -> None:
    models, rates = unique(listed), {name(i): rate for i, rate in by_id.items()}
    leaving = min(of.pods)
    plan = plan_drain(of, leaving, models, rates, Terms(healthy(of)))
    assert plan == plan_drain(shuffled(of, draw), leaving, models, rates, Terms(healthy(of)))
    _assert_room(of, plan.places, models, loads_per_pod_max=4)
    for _ in range(10):
        waiting = plan_drain(carried_out(of, plan.places, servable=False), leaving, models, rates, Terms(healthy(of)))
        assert {place.name for place in plan.places} <= set(waiting.waiting)
        of = carried_out(of, plan.places, servable=True)
        plan = plan_drain(of, leaving, models, rates, Terms(healthy(of)))
        if not plan.places:
            break
    assert not plan.places
    seen = [place.name for place in plan.places] + [*plan.waiting, *plan.later, *plan.handed_over]
    seen += [each.name for each in (*plan.blocked, *plan.given_up)]
    here = {
        each for each in models if any(of_pod.pod == leaving and of_pod.servable for of_pod in of.copies.get(each, ()))
    }
    assert len(seen) + plan.unneeded == len(here)
    assert set(seen) <= here


@given(pools(), MODELS, BUSY, SECONDS, st.data())
def test_copies_stay_between_their_limits_and_one_order_is_enough(
    of: PoolView, wanted: ModelFacts, busy: dict[str, BusyModel], since_s: float, draw: st.DataObject
) -> None:
    wanted = replace(wanted, copies_max=draw.draw(st.sampled_from([None, 2, 4])))
    now_s = 10_000.0
    history = ScalingHistory(now_s - since_s, now_s - since_s, 0)
    decision, after = plan_copies(of, wanted, busy, history, healthy=healthy(of), now_s=now_s)
    assert (decision, after) == plan_copies(
        shuffled(of, draw), wanted, dict(draw.draw(st.permutations(list(busy.items())))), history,
        healthy=healthy(of), now_s=now_s,
    )  # fmt: skip
    copies = of.copies.get(wanted.name, ())
    staying = [each for each in copies if each.pod in of.pods and not of.pods[each.pod].draining]
    least = max(wanted.copies_min, 1 if wanted.pinned else 0)
    if isinstance(decision, AddCopies):
        assert decision.count > 0
        assert len(staying) + decision.count <= max(least, wanted.copies_max or len(of.pods))
        held = {each.pod for each in copies}
        free = [
            each.id
            for each in of.pods.values()
            if each.id not in held and each.ready and not each.draining and each.capacity_bytes
        ]
        expected = dict(of.copies)
        expected[wanted.name] = tuple(
            sorted([*copies, *(copy(each, 0, 1) for each in free[: decision.count])], key=lambda each: each.pod)
        )
        again, _ = plan_copies(
            replace(of, copies=expected), wanted, busy, after, healthy=healthy(of), now_s=now_s + 1.0
        )
        assert not isinstance(again, AddCopies)
    if isinstance(decision, DropCopies):
        assert set(decision.pods) <= {each.pod for each in copies if each.servable}
        left = [each for each in staying if each.pod not in decision.pods and each.servable]
        assert len(left) >= max(1, min(least, len(staying)))


@given(pools(), MODELS, BUSY, st.integers(0, 3), st.data())
def test_surplus_goes_once_and_leaves_a_copy(
    of: PoolView, wanted: ModelFacts, busy: dict[str, BusyModel], number: int, draw: st.DataObject
) -> None:
    plan = plan_surplus(of, wanted, number, busy, healthy=healthy(of))
    assert plan == plan_surplus(shuffled(of, draw), wanted, number, busy, healthy=healthy(of))
    if plan is None:
        return
    assert plan.kept
    assert not set(plan.kept) & set(plan.retired)
    left = tuple(each for each in of.copies[wanted.name] if each.pod not in plan.retired)
    after = replace(of, copies={**of.copies, wanted.name: left})
    kept_busy = {each: measured for each, measured in busy.items() if each in plan.kept}
    again = plan_surplus(after, wanted, len(plan.kept), kept_busy, healthy=healthy(of))
    assert again is None


@given(pools(), MODELS, MODELS, RATES, st.data())
def test_an_alias_is_prepared_once_and_its_active_model_is_not_left_for_nothing(
    of: PoolView, active: ModelFacts, target: ModelFacts, rate: float, draw: st.DataObject
) -> None:
    target = replace(target, name=name("target"))
    step = plan_transition(of, active, target, rate, Terms(healthy(of)))
    assert step == plan_transition(shuffled(of, draw), active, target, rate, Terms(healthy(of)))
    if isinstance(step, Prepare):
        assert len({place.pod for place in step.places}) == len(step.places)
        _assert_room(of, step.places, {target.name: target}, loads_per_pod_max=4)
        loading = carried_out(of, step.places, servable=False)
        again = plan_transition(loading, active, target, rate, Terms(healthy(of)))
        assert not isinstance(again, Prepare) or len(again.places) < len(step.places)


@settings(max_examples=50)
@given(pools(), st.lists(st.tuples(MODELS, RATES), max_size=6, unique_by=lambda item: item[0].name), st.data())
def test_moves_begin_once_and_only_where_they_pay(
    of: PoolView, models: list[tuple[ModelFacts, float]], draw: st.DataObject
) -> None:
    plan = plan_rebalance(of, models, (), (), now_s=0.0, terms=Terms(healthy(of)))
    assert plan == plan_rebalance(
        shuffled(of, draw), draw.draw(st.permutations(models)), (), (), now_s=0.0, terms=Terms(healthy(of))
    )
    assert all(move.benefit_s >= 2 * move.cost_s and move.source != move.target for move in plan.start)
    assert len({move.source for move in plan.start}) == len(plan.start) <= 4
    loading = carried_out(of, [move.place for move in plan.start], servable=False)
    again = plan_rebalance(loading, models, plan.start, [0.0] * len(plan.start), now_s=1.0, terms=Terms(healthy(of)))
    assert not {move.name for move in again.start} & {move.name for move in plan.start}


@given(
    pools(),
    st.frozensets(st.sampled_from(POD_IDS)),
    st.frozensets(st.sampled_from(POD_IDS), max_size=2),
    st.integers(0, 2),
    st.booleans(),
    st.integers(0, 5),
    st.integers(0, 1000),
    st.data(),
)
def test_a_route_leads_to_a_pod_that_can_answer(
    of: PoolView,
    answering: frozenset[str],
    tried: frozenset[str],
    servable_here: int,
    loading_here: bool,
    in_flight_here: int,
    ordinal: int,
    draw: st.DataObject,
) -> None:
    request: dict[str, Any] = {
        "self_pod": "p0", "servable_here": servable_here, "loading_here": loading_here,
        "here_in_flight": in_flight_here, "here_limit": 2, "forwarded": False, "healthy": answering,
        "in_flight": {"p1": 3}, "excluded": tried, "ordinal": ordinal,
    }  # fmt: skip
    route = choose_route(of, name("m0"), 2, **request)
    assert route == choose_route(shuffled(of, draw), name("m0"), 2, **request)
    copies = {each.pod: each for each in of.copies.get(name("m0"), ())}
    callable_pods = (of.pods.keys() & answering & copies.keys()) - tried - {"p0"}
    match route:
        case Forward(to, Mode.HIT, generation):
            assert to in callable_pods
            assert copies[to].servable == generation
        case Forward(to, _, generation):
            assert to in callable_pods
            assert copies[to].loading == generation == 2
            assert not any(copies[each].servable for each in callable_pods)
        case RunHere(generation, joins):
            assert "p0" not in tried
            assert loading_here if joins else generation == servable_here > 0
        case Load():
            assert not servable_here or "p0" in tried
            assert not any(copies[each].servable or copies[each].loading == 2 for each in callable_pods)
    arrived = choose_route(of, name("m0"), 2, **(request | {"forwarded": True}))
    assert not isinstance(arrived, Forward | Load)


@given(
    st.lists(
        st.builds(
            LatencySample, st.sampled_from(POD_IDS), st.sampled_from([5, 100]), st.sampled_from([0.5, 1.0, 6.0, 80.0])
        ),
        unique_by=lambda sample: sample.pod,
    ),
    st.integers(1, 7),
    st.data(),
)
def test_never_more_than_a_third_of_the_pods_is_taken_out(
    samples: list[LatencySample], pods: int, draw: st.DataObject
) -> None:
    current: tuple[Ejection, ...] = ()
    for turn in range(5):
        now_s = turn * OUTLIER_LIMITS.out_first_s * 0.7
        after = plan_ejections(samples, current, pods=pods, now_s=now_s)
        assert after == plan_ejections(draw.draw(st.permutations(samples)), current, pods=pods, now_s=now_s)
        assert sum(each.out(now_s) for each in after) <= pods / 3
        current = after


def _assert_room(
    of: PoolView, places: Sequence[Place], models: Mapping[ModelName, ModelFacts], *, loads_per_pod_max: int
) -> None:
    """No pod is given more than it can hold, nor more to load than it may."""
    given_bytes: Counter[str] = Counter()
    loads: Counter[str] = Counter()
    for place in places:
        given_bytes[place.pod] += models[place.name].size_bytes
        loads[place.pod] += 1
    for pod_id, size_bytes in given_bytes.items():
        record = of.pods[pod_id]
        assert size_bytes <= record.capacity_bytes - record.pinned_bytes
        assert record.loads_queued + loads[pod_id] <= loads_per_pod_max


def test_a_new_history_changes_nothing_at_once() -> None:
    of = view([pod("p0")], {"m": [copy("p0")]})
    _, after = plan_copies(of, model(), {}, NO_HISTORY, healthy=healthy(of), now_s=0.0)
    assert after == NO_HISTORY
