"""(suspicion, deaths) → suspicion, and what it allows."""

from __future__ import annotations

from placement.policy.quarantine import Allowed, Refused, after_service, judge, may_load
from placement.policy.snapshot import Death, Suspicion, Verdict


def loading(pod_id: str, incarnation: str = "1") -> Death:
    return Death(pod_id, incarnation, "loading", 0.0)


def running(pod_id: str, incarnation: str = "1") -> Death:
    return Death(pod_id, incarnation, "running", 0.0)


def crashed(pod_id: str, at_s: float) -> Death:
    return Death(pod_id, "1", "crashed", at_s)


def suspicion(*deaths: Death, generation: int = 1) -> Suspicion:
    found = judge(None, generation, deaths)
    assert found is not None
    return found


def test_a_model_that_was_there_at_no_death_is_not_suspect() -> None:
    assert judge(None, 1, []) is None
    assert may_load(None, 1) == Allowed()


def test_being_loaded_at_one_death_changes_nothing_but_the_status() -> None:
    found = suspicion(loading("a"))
    assert found.verdict is Verdict.SUSPECT
    assert may_load(found, 1) == Allowed(isolated=False)


def test_a_model_that_was_being_loaded_when_two_pods_died_is_not_tried_on_a_third() -> None:
    found = judge(suspicion(loading("a")), 1, [loading("b")])
    assert found is not None
    assert found.verdict is Verdict.QUARANTINED
    answer = may_load(found, 1)
    assert isinstance(answer, Refused)
    assert answer.message == (
        "quarantined: 2 pods died while loading it (a, b); register a corrected spec, or release it by hand"
    )


def test_a_pod_that_comes_back_under_its_name_and_dies_again_is_the_second() -> None:
    assert suspicion(loading("a", "1"), loading("a", "2")).verdict is Verdict.QUARANTINED


def test_one_death_that_is_told_twice_counts_once() -> None:
    assert suspicion(loading("a"), loading("a")).verdict is Verdict.SUSPECT
    assert not suspicion(running("a"), running("a")).isolate


def test_a_model_that_ran_when_two_pods_died_gets_a_process_of_its_own() -> None:
    assert may_load(suspicion(running("a")), 1) == Allowed(isolated=False)
    found = suspicion(running("a"), running("b"))
    assert found.verdict is Verdict.SUSPECT
    assert may_load(found, 1) == Allowed(isolated=True)


def test_an_isolated_model_is_not_blamed_for_the_death_of_its_pod() -> None:
    isolated = suspicion(running("a"), running("b"))
    assert judge(isolated, 1, [running("c"), loading("d"), loading("e")]) == isolated


def test_an_isolated_model_whose_process_keeps_crashing_is_quarantined() -> None:
    isolated = suspicion(running("a"), running("b"))
    slowly = judge(isolated, 1, [crashed("c", at_s) for at_s in (0.0, 61.0, 122.0)])
    assert slowly is not None
    assert slowly.verdict is Verdict.SUSPECT
    quickly = judge(slowly, 1, [crashed("c", 150.0), crashed("c", 160.0)])
    assert quickly is not None
    assert quickly.verdict is Verdict.QUARANTINED
    answer = may_load(quickly, 1)
    assert isinstance(answer, Refused)
    assert "crashed again and again (on c)" in answer.message


def test_crashes_on_different_pods_are_not_put_on_one_clock() -> None:
    assert suspicion(crashed("a", 0.0), crashed("b", 1.0), crashed("c", 2.0)).verdict is Verdict.SUSPECT


def test_crashes_are_not_kept_without_limit() -> None:
    found = suspicion(running("a"), running("b"), *(crashed("c", 100.0 * number) for number in range(100)))
    assert len(found.deaths) == 10
    assert found.isolate


def test_a_load_that_succeeds_and_serves_clears_what_loading_was_blamed_for() -> None:
    found = suspicion(loading("a"))
    assert after_service(found, 29.0) == found
    assert after_service(found, 30.0) is None


def test_one_death_while_running_is_forgotten_after_a_minute_of_service() -> None:
    found = suspicion(loading("a"), running("a"))
    assert after_service(found, 59.0) == suspicion(running("a"))
    assert after_service(found, 60.0) is None


def test_neither_isolation_nor_quarantine_is_cleared_by_service() -> None:
    isolated = suspicion(running("a"), running("b"))
    condemned = suspicion(loading("a"), loading("b"))
    assert after_service(isolated, 1e6) == isolated
    assert after_service(condemned, 1e6) == condemned


def test_a_new_generation_begins_without_suspicion() -> None:
    condemned = suspicion(loading("a"), loading("b"))
    assert may_load(condemned, 2) == Allowed()
    assert judge(condemned, 2, []) is None
    found = judge(condemned, 2, [loading("c")])
    assert found is not None
    assert found.verdict is Verdict.SUSPECT
    assert found.deaths == (loading("c"),)
