"""(view, model) → where it is loaded, or why nowhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from placement.policy.load_choice import LoadChoice, choose_load_pod
from placement.policy.no_pod import Cause, NoPod
from placement.policy.obstacles import Promised, Why
from placement.policy.snapshot import Death, ModelFacts, PoolView, Suspicion, Verdict
from tests.unit.placement.policy.builders import copy, failure, healthy, model, pod, view


def choose(of: PoolView, facts: ModelFacts | None = None, **rest: Any) -> LoadChoice:
    choice = choose_load_pod(of, facts or model(), **({"healthy": healthy(of)} | rest))
    assert isinstance(choice, LoadChoice), choice.message
    return choice


def none_for(of: PoolView, facts: ModelFacts | None = None, **rest: Any) -> NoPod:
    answer = choose_load_pod(of, facts or model(), **({"healthy": healthy(of)} | rest))
    assert isinstance(answer, NoPod)
    return answer


@pytest.mark.parametrize(
    ("unfit", "why"),
    [
        ({"draining": True}, Why.DRAINING),
        ({"ready": False, "why_unready": "trial loads"}, Why.UNREADY),
        ({"labels": frozenset({"cpu"})}, Why.LABELS),
        ({"formats": frozenset({"torch"})}, Why.FORMAT),
        ({"capacity_bytes": 99}, Why.TOO_SMALL),
        ({"pinned_bytes": 950}, Why.TOO_SMALL),
        ({"capacity_bytes": 0}, Why.TOO_SMALL),
    ],
)
def test_an_unfit_pod_is_passed_over_with_its_reason(unfit: dict[str, Any], why: Why) -> None:
    wanted = model(labels_required=frozenset({"gpu"}), format="onnx")
    fit = {"labels": frozenset({"gpu"})}
    of = view([pod("a", **(fit | unfit)), pod("b", **fit)])
    choice = choose(of, wanted)
    assert choice.pod == "b"
    assert [(out.pod, out.why) for out in choice.ruled_out] == [("a", why)]
    assert why in {obstacle.why for obstacle in none_for(view([pod("a", **(fit | unfit))]), wanted).reasons[0]}


def test_pods_that_do_not_answer_were_tried_or_failed_are_passed_over() -> None:
    of = view([pod(each) for each in "abcd"], failures={"m": [failure("c")]})
    choice = choose(of, healthy=frozenset("bcd"), excluded=frozenset("b"))
    assert choice.pod == "d"
    assert [out.why for out in choice.ruled_out] == [Why.UNREACHABLE, Why.HELD_OFF, Why.FAILED_HERE]
    assert "5.0 s" in str(choice.ruled_out[2])


def test_a_pod_that_has_loads_or_was_told_to_load_the_generation_is_passed_over() -> None:
    of = view([pod(each) for each in "abcd"], {"m": [copy("a"), copy("b", 0, 1)]})
    assert choose(of, ordered=["c"]).pod == "d"


def test_a_pod_with_another_generation_may_load_this_one() -> None:
    of = view([pod("a")], {"m": [copy("a", servable=1)]}, failures={"m": [failure("a", generation=1)]})
    assert choose(of, model(generation=2)).pod == "a"


def test_a_pod_is_never_promised_more_than_it_can_hold() -> None:
    of = view([pod("a")])
    assert choose(of, promised={"a": Promised(900, 9, 9.0)}).pod == "a"
    answer = none_for(of, promised={"a": Promised(901, 9, 9.0)})
    assert answer.cause is Cause.FOR_NOW
    assert answer.reasons[0][0].why is Why.PROMISED


def test_a_model_goes_where_it_starts_soonest() -> None:
    assert choose(view([pod("a", load_wait_s=9.0), pod("b")])).pod == "b"
    assert choose(view([pod("a"), pod("b")]), promised={"a": Promised(0, 1, 9.0)}).pod == "b"
    slow_store = model(load_s=10.0, disk_load_s=0.1, on_disk=frozenset({"a"}))
    assert choose(view([pod("a", load_wait_s=5.0), pod("b")]), slow_store).pod == "a"


def test_of_equally_good_pods_one_that_has_it_on_its_disk_need_not_fetch_it() -> None:
    of = view([pod(f"p{number}") for number in range(20)])
    own = [candidate.pod for candidate in choose(of).considered]
    for held in ("p0", "p7", "p19"):
        choice = choose(of, model(load_s=0.2, disk_load_s=0.2, on_disk=frozenset({held})))
        assert choice.pod == held
        assert {candidate.pod for candidate in choice.considered} == {held, *own}
        assert "loads 0.20 s from its disk" in choice.explain()[0]


def test_having_it_on_disk_outweighs_no_wish_no_wait_and_no_damage() -> None:
    """But who has it is always among those considered, so that the reason can be read."""
    on_disk = model(load_s=0.2, disk_load_s=0.1, on_disk=frozenset({"a"}), labels_preferred=frozenset({"ssd"}))
    labels = frozenset({"ssd"})
    for worse in ({"labels": frozenset()}, {"load_wait_s": 5.0}, {"free_bytes": 0, "eviction_age_s": 1.0}):
        others = [pod(f"p{number}", labels=labels, eviction_age_s=100.0) for number in range(20)]
        choice = choose(view([pod("a", **({"labels": labels} | worse)), *others]), on_disk)
        assert choice.pod != "a"
        assert [candidate.on_disk for candidate in choice.considered].count(True) == 1
    crowded = view([pod("a", labels=labels, queue_delay_s=0.2), pod("b", labels=labels)])
    assert choose(crowded, on_disk).pod == "b"


def test_size_is_compared_with_free_room() -> None:
    """ModelMesh took a pod with 2 MB free for not full, whatever the model's size."""
    of = view([pod("a", free_bytes=50, eviction_age_s=100.0), pod("b", free_bytes=100, eviction_age_s=100.0)])
    choice = choose(of)
    assert choice.pod == "b"
    assert [candidate.evicts_bytes for candidate in choice.considered] == [0, 50]


def test_of_full_pods_the_one_with_the_longest_unused_copies_makes_room() -> None:
    of = view([pod("a", free_bytes=0, eviction_age_s=10.0), pod("b", free_bytes=0, eviction_age_s=1000.0)])
    assert choose(of).pod == "b"


def test_each_candidate_is_judged_by_its_own_record() -> None:
    """ModelMesh judged every remote candidate by the local pod's record (its defect a)."""
    pods = [pod("a", load_wait_s=3.0), pod("b", load_wait_s=2.0), pod("c", load_wait_s=1.0)]
    estimates = {candidate.pod: candidate.estimate_s for candidate in choose(view(pods)).considered}
    assert estimates == {"a": 4.0, "b": 3.0, "c": 2.0}


def test_a_newer_version_that_is_full_is_no_better_place() -> None:
    """In ModelMesh a newer version won even when full: it compared a point in time with a duration (its defect b)."""
    of = view([pod("a", version="2", free_bytes=0, eviction_age_s=1.0), pod("b", version="1")])
    assert choose(of).pod == "b"


def test_excluded_pods_are_counted_once() -> None:
    """ModelMesh subtracted them twice and gave up while pods were left (its defect c)."""
    of = view([pod(each) for each in "abc"], {"m": [copy("a")]})
    assert choose(of, excluded=frozenset("ab")).pod == "c"


def test_labels_match_by_their_words() -> None:
    """ModelMesh kept labels under an array's identity, which no fresh array equals (its defect h)."""
    of = view([pod("a", labels=frozenset({"gpu", "".join(["disk", "=ssd"])}))])
    assert choose(of, model(labels_required=frozenset({"disk=ssd", "gpu"}))).pod == "a"


def test_a_pod_that_has_just_joined_is_a_candidate_at_once() -> None:
    """ModelMesh heard of instances only when their record changed, not when they joined (its defect h)."""
    assert choose(view([pod("old", load_wait_s=5.0), pod("new")])).pod == "new"


def test_another_pods_failure_counts_as_soon_as_it_is_published() -> None:
    """A failed load on a known remote instance was never noted by the pod that had asked for it (its defect g)."""
    before, after = view([pod("a"), pod("b")]), view([pod("a"), pod("b")], failures={"m": [failure("b")]})
    assert choose(before, excluded=["a"]).pod == "b"
    assert choose(after).pod == "a"


def test_a_preferred_label_is_a_wish_and_not_a_filter() -> None:
    wish = model(labels_preferred=frozenset({"gpu"}))
    assert choose(view([pod("a"), pod("b", labels=frozenset({"gpu"}), load_wait_s=1.0)]), wish).pod == "b"
    assert choose(view([pod("a")]), wish).pod == "a"


def test_a_further_copy_goes_to_a_zone_without_one() -> None:
    pods = [pod("a", zone="1"), pod("b", zone="1"), pod("c", zone="2", load_wait_s=2.0)]
    assert choose(view(pods, {"m": [copy("a")]})).pod == "c"
    assert choose(view(pods, {"m": [copy("c")]})).pod in "ab"
    assert choose(view(pods), ordered=["c"]).pod in "ab"


def test_the_zone_of_a_draining_pod_is_free_for_its_successor() -> None:
    pods = [pod("a", zone="1", draining=True), pod("b", zone="1"), pod("c", zone="2", load_wait_s=9.0)]
    assert choose(view(pods, {"m": [copy("a")]})).pod == "b"


def test_a_pod_whose_lease_ran_out_comes_last_but_may_load() -> None:
    assert choose(view([pod("a"), pod("b", load_wait_s=9.0)], fading=["a"])).pod == "b"
    assert choose(view([pod("a")], fading=["a"])).pod == "a"


def test_where_requests_wait_no_further_model_is_put() -> None:
    of = view([pod("a", queue_delay_s=0.2), pod("b")])
    assert {choose(of, model(f"m{number}")).pod for number in range(20)} == {"b"}


def test_models_spread_over_equal_pods_in_proportion_to_capacity() -> None:
    pods = [pod(f"p{number}") for number in range(8)] + [
        pod(f"big{number}", capacity_bytes=3000, free_bytes=3000) for number in range(2)
    ]
    counts = Counter(choose(view(pods), model(f"m{number}")).pod for number in range(2000))
    assert all(100 < counts[f"p{number}"] < 200 for number in range(8))
    assert all(350 < counts[f"big{number}"] < 550 for number in range(2))


def test_the_choice_is_widened_when_none_of_the_models_own_pods_starts_soon() -> None:
    pods = [pod(f"p{number}") for number in range(20)]
    own = {candidate.pod for candidate in choose(view(pods)).considered}
    assert len(own) == 3
    busy_pods = [pod(each.id, load_wait_s=30.0 if each.id in own else 0.0) for each in pods]
    choice = choose(view(busy_pods))
    assert choice.pod not in own
    assert choice.estimate_s == 1.0


@pytest.mark.parametrize("wish", [{"labels": frozenset({"gpu"})}, {"zone": "2"}])
def test_the_choice_is_widened_to_pods_that_meet_a_wish(wish: dict[str, Any]) -> None:
    wanted = model(labels_preferred=frozenset({"gpu"}) if "labels" in wish else frozenset())
    pods = [pod(f"p{number}", zone="1") for number in range(20)]
    holder = {"m": [copy("p0")]}
    own = {candidate.pod for candidate in choose(view(pods, holder), wanted).considered}
    other = next(each for each in pods if each.id not in own and each.id != "p0")
    met = [pod(each.id, **({"zone": "1"} | wish)) if each is other else each for each in pods]
    assert choose(view(met, holder), wanted).pod == other.id


def test_without_widening_the_model_stays_with_its_own_pods() -> None:
    pods = [pod(f"p{number}") for number in range(20)]
    choice = choose(view(pods))
    others = [pod(each.id, load_wait_s=0.0 if each.id == choice.pod else 0.01 * i) for i, each in enumerate(pods)]
    assert choose(view(others)).pod == choice.pod


def test_a_quarantined_model_is_loaded_nowhere_until_its_spec_changes() -> None:
    deaths = (Death("x", "1", "loading", 0.0), Death("y", "1", "loading", 0.0))
    of = view([pod("a")], suspicions={"m": Suspicion(1, Verdict.QUARANTINED, deaths)})
    answer = none_for(of)
    assert answer.cause is Cause.QUARANTINED
    assert "x, y" in answer.message
    assert "release it" in answer.message
    assert choose(of, model(generation=2)).pod == "a"


def test_a_model_that_ran_when_two_pods_died_is_loaded_in_a_process_of_its_own() -> None:
    deaths = (Death("x", "1", "running", 0.0), Death("y", "1", "running", 0.0))
    of = view([pod("a")], suspicions={"m": Suspicion(1, Verdict.SUSPECT, deaths)})
    assert choose(of).isolated
    assert not choose(of, model("other")).isolated


def test_one_pods_permanent_failure_is_its_own_and_two_that_agree_condemn_the_spec() -> None:
    pods = [pod(each) for each in "abc"]
    assert choose(view(pods, failures={"m": [failure("a", permanent=True)]})).pod in "bc"
    of = view(pods, failures={"m": [failure(each, permanent=True) for each in "ab"]})
    answer = none_for(of)
    assert answer.cause is Cause.FAILED_FOR_GOOD
    assert "it failed (on a)" in answer.message
    assert choose(of, model(generation=2))


def test_when_no_pod_is_left_the_answer_names_each_constraint_and_the_closest_pods() -> None:
    of = view(
        [
            pod("a", labels=frozenset({"gpu"}), capacity_bytes=90),
            pod("b", capacity_bytes=50),
            pod("c", labels=frozenset({"gpu"}), capacity_bytes=60),
            pod("d", draining=True),
        ]
    )
    answer = none_for(of, model(labels_required=frozenset({"gpu"})))
    assert answer.cause is Cause.UNSATISFIABLE
    assert answer.closest == ("a", "c", "d")
    assert "too small: 2 pods" in answer.message
    assert "required label missing: 2 pods" in answer.message
    assert "a: has 90 B beside what is pinned (capacity 90 B), and 100 B are needed" in answer.message
    assert [of[0].pod for of in answer.reasons] == ["a", "b", "c", "d"]
    assert {obstacle.why for obstacle in answer.reasons[1]} == {Why.LABELS, Why.TOO_SMALL}
    assert len(answer.explain()) == 5


def test_what_passes_by_itself_is_told_apart_from_what_does_not() -> None:
    answer = none_for(view([pod("a"), pod("b", draining=True)], failures={"m": [failure("a", retry_after_s=7.0)]}))
    assert answer.cause is Cause.FOR_NOW
    assert answer.retry_after_s == 7.0
    assert none_for(view([])).cause is Cause.FOR_NOW


def test_the_choice_explains_every_pod() -> None:
    pods = [
        pod("a", free_bytes=0, eviction_age_s=30.0, zone="1", queue_delay_s=0.5), pod("b", zone="1"),
        pod("c", zone="2"), pod("d", ready=False, why_unready="starting"),
    ]  # fmt: skip
    lines = choose(view(pods, {"m": [copy("b")]}, fading=["a"]), model(labels_preferred=frozenset({"x"}))).explain()
    assert lines[0].startswith("chosen c: 1.00 s")
    assert "evicts 100 B unused for 30 s" in lines[1]
    assert "its lease ran out" in lines[1]
    assert lines[2:] == ("out b: serves it already", "out d: not ready: starting")
