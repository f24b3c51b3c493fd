"""(trial loads of a new pod) → ready, not yet, or never."""

from __future__ import annotations

from placement.policy.bootstrap import KeepTrying, NeverReady, Ready, TrialLoad, judge_bootstrap
from tests.unit.placement.policy.builders import name


def good(model_id: str) -> TrialLoad:
    return TrialLoad(name(model_id), loaded=True, servable_elsewhere=True)


def bad(model_id: str, *, permanent: bool = True, servable_elsewhere: bool = True) -> TrialLoad:
    return TrialLoad(
        name(model_id), loaded=False, servable_elsewhere=servable_elsewhere, permanent=permanent, message="no libfoo"
    )


def test_the_first_pod_of_a_pool_has_nothing_to_prove() -> None:
    assert isinstance(judge_bootstrap([], candidates_left=0), Ready)


def test_a_few_good_loads_are_enough() -> None:
    assert isinstance(judge_bootstrap([good("a"), good("b")], 5), KeepTrying)
    assert isinstance(judge_bootstrap([good("a"), good("b"), good("c")], 5), Ready)
    assert isinstance(judge_bootstrap([good("a")], 0), Ready)


def test_a_release_that_cannot_load_what_others_load_never_becomes_ready() -> None:
    verdict = judge_bootstrap([bad("a"), bad("b"), bad("c"), good("d")], 5)
    assert isinstance(verdict, NeverReady)
    assert "3 of 4 models" in verdict.reason
    assert "t/a: no libfoo" in verdict.reason


def test_models_that_serve_nowhere_count_for_nothing() -> None:
    lone = [bad(each, servable_elsewhere=False) for each in "abcdef"]
    assert isinstance(judge_bootstrap(lone, 0), Ready)
    assert isinstance(judge_bootstrap([*lone, good("x"), good("y"), good("z")], 3), Ready)


def test_a_few_bad_models_among_good_ones_do_not_stop_a_pod() -> None:
    assert isinstance(judge_bootstrap([bad("a"), good("b"), good("c"), good("d")], 5), Ready)


def test_failures_that_may_pass_make_it_wait_and_do_not_condemn_it() -> None:
    trials = [bad(each, permanent=False) for each in "abcde"]
    verdict = judge_bootstrap(trials, 0)
    assert isinstance(verdict, KeepTrying)
    assert "no libfoo" in verdict.reason
    assert isinstance(judge_bootstrap([*trials, *(good(each) for each in "abcde")], 0), Ready)


def test_too_few_trials_condemn_nobody() -> None:
    assert isinstance(judge_bootstrap([bad("a"), bad("b")], 0), KeepTrying)
