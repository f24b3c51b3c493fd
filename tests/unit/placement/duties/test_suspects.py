"""Deaths become suspicions; what comes back, moves on or serves well is let go. Each death is counted once."""

from __future__ import annotations

from dataclasses import replace

from placement.duties.suspects import Ruling, Suspects
from placement.policy.quarantine import LIMITS
from placement.policy.snapshot import Copy, Death, Intent, ModelName, Pod, PoolView, Suspicion, Verdict

A, B = ModelName("default", "a"), ModelName("default", "b")
P1, P2, P3 = (Pod(f"p{n}", f"p{n}-1", f"p{n}:1", ready=True) for n in (1, 2, 3))
ALL = PoolView(pods={pod.id: pod for pod in (P1, P2, P3)})
GRACE_S = 2.0


def without(view: PoolView, *gone: str) -> PoolView:
    return replace(view, pods={pod_id: pod for pod_id, pod in view.pods.items() if pod_id not in gone})


def loading(pod: str, generation: int = 1) -> Intent:
    return Intent(pod, f"{pod}-1", generation, "loading", 50.0)


def death(pod: str, doing: str = "loading") -> Death:
    return Death(pod, f"{pod}-1", doing, 50.0)


def suspect(*deaths: Death, generation: int = 1, verdict: Verdict = Verdict.SUSPECT) -> Suspicion:
    return Suspicion(generation, verdict, deaths)


def suspects_anew() -> Suspects:
    return Suspects(death_grace_s=GRACE_S, proves_alive_s=60.0)


def turn(
    suspects: Suspects, view: PoolView, *intents: tuple[ModelName, Intent], now_s: float, generation: int | None = 1
) -> tuple[Ruling, ...]:
    return suspects.turn(view, intents, lambda name: generation, now_s)


def after_grace(view: PoolView, *intents: tuple[ModelName, Intent], generation: int | None = 1) -> tuple[Ruling, ...]:
    suspects = suspects_anew()
    turn(suspects, view, *intents, now_s=0.0, generation=generation)
    return turn(suspects, view, *intents, now_s=GRACE_S, generation=generation)


def test_a_live_pod_may_load_what_it_likes() -> None:
    assert after_grace(ALL, (A, loading("p1"))) == ()


def test_one_death_while_loading_makes_a_suspect_and_settles_the_intent() -> None:
    (ruling,) = after_grace(without(ALL, "p1"), (A, loading("p1")))
    assert ruling.after == suspect(death("p1"))
    assert ruling.settled == (loading("p1"),)
    assert ruling.changes
    assert "p1 died without a word while loading" in ruling.reason


def test_a_pod_that_is_back_within_a_moment_did_not_die() -> None:
    suspects = suspects_anew()
    assert turn(suspects, without(ALL, "p1"), (A, loading("p1")), now_s=0.0) == ()
    assert turn(suspects, ALL, (A, loading("p1")), now_s=1.0) == ()
    assert turn(suspects, without(ALL, "p1"), (A, loading("p1")), now_s=2.5) == ()


def test_another_process_under_the_same_name_is_proof_at_once() -> None:
    restarted = replace(ALL, pods={**ALL.pods, "p1": replace(P1, incarnation="p1-2")})
    (ruling,) = turn(suspects_anew(), restarted, (A, loading("p1")), now_s=0.0)
    assert ruling.after == suspect(death("p1"))


def test_the_second_death_quarantines() -> None:
    view = replace(without(ALL, "p1", "p2"), suspicions={A: suspect(death("p1"))})
    (ruling,) = after_grace(view, (A, loading("p2")))
    assert ruling.after == suspect(death("p1"), death("p2"), verdict=Verdict.QUARANTINED)


def test_two_pods_that_die_between_two_turns_count_as_two() -> None:
    (ruling,) = after_grace(without(ALL, "p1", "p2"), (A, loading("p1")), (A, loading("p2")))
    assert ruling.after is not None
    assert ruling.after.verdict is Verdict.QUARANTINED


def test_a_death_that_was_counted_only_settles_its_intent() -> None:
    view = replace(without(ALL, "p1"), suspicions={A: suspect(death("p1"))})
    (ruling,) = after_grace(view, (A, loading("p1")))
    assert not ruling.changes
    assert ruling.settled == (loading("p1"),)


def test_a_process_that_comes_back_takes_its_blame_away() -> None:
    quarantined = suspect(death("p1"), death("p2"), verdict=Verdict.QUARANTINED)
    view, suspects = replace(ALL, suspicions={A: quarantined}), suspects_anew()
    assert turn(suspects, without(view, "p1", "p2"), now_s=0.0) == ()
    assert turn(suspects, replace(without(view, "p2"), fading={"p1": 0.5}), now_s=1.0) == ()
    (ruling,) = turn(suspects, without(view, "p2"), now_s=2.0)
    assert ruling.after == suspect(death("p2"))
    (ruling,) = turn(suspects, view, now_s=3.0)
    assert ruling.after is None


def test_a_record_that_is_still_there_does_not_prove_that_its_process_lives_until_its_lease_would_have_ended() -> None:
    view, suspects = replace(ALL, suspicions={A: suspect(death("p1", "running"))}), suspects_anew()
    assert turn(suspects, view, now_s=0.0) == ()
    assert turn(suspects, view, now_s=59.0) == ()
    (ruling,) = turn(suspects, view, now_s=60.0)
    assert ruling.after is None


def test_an_intent_of_an_older_generation_blames_nobody() -> None:
    (ruling,) = after_grace(without(ALL, "p1"), (A, loading("p1")), generation=2)
    assert (ruling.changes, ruling.after, ruling.settled) == (False, None, (loading("p1"),))


def test_a_new_generation_or_none_begins_without_suspicion() -> None:
    view = replace(without(ALL, "p1"), suspicions={A: suspect(death("p1"))})
    for generation in (2, None):
        (ruling,) = after_grace(view, generation=generation)
        assert ruling.changes
        assert ruling.after is None


def test_serving_well_clears_what_loading_was_blamed_for() -> None:
    suspects = suspects_anew()
    view = replace(without(ALL, "p1"), suspicions={A: suspect(death("p1"))}, copies={A: (Copy("p2", 1, 0, 10, 0.0),)})
    enough_s = 10 * LIMITS.loading_clears_after_s
    assert turn(suspects, view, now_s=0.0) == ()
    assert turn(suspects, replace(view, copies={}), now_s=enough_s) == ()
    assert turn(suspects, view, now_s=enough_s + 1) == ()
    (ruling,) = turn(suspects, view, now_s=2 * enough_s + 1)
    assert ruling.after is None
    assert "has served" in ruling.reason


def test_rulings_come_in_the_order_of_names_whatever_the_order_of_intents() -> None:
    gone = without(ALL, "p1", "p2")
    forward = after_grace(gone, (A, loading("p1")), (B, loading("p2")), (A, loading("p2")))
    backward = after_grace(gone, (A, loading("p2")), (B, loading("p2")), (A, loading("p1")))
    assert forward == backward
    assert [ruling.name for ruling in forward] == [A, B]
