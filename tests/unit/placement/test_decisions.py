"""Decisions are remembered by model, bounded, and one that repeats itself is one entry."""

from __future__ import annotations

from placement.decisions import DETAILS_MAX, Decision, DecisionLog
from placement.policy.snapshot import ModelName

A, B = ModelName("default", "a"), ModelName("default", "b")


def test_decisions_are_kept_by_model_oldest_first() -> None:
    log = DecisionLog()
    log.note(Decision(A, 1.0, "load", "hot", "p1"))
    log.note(Decision(B, 2.0, "load", "pinned", "p1"))
    log.note(Decision(A, 3.0, "unload", "idle", "p1"))
    assert [(d.at_s, d.action) for d in log.recent(A)] == [(1.0, "load"), (3.0, "unload")]
    assert log.recent(ModelName("other", "a")) == ()


def test_the_same_decision_again_counts_and_is_no_news() -> None:
    log = DecisionLog()
    assert log.note(Decision(A, 1.0, "no pod", "too big"))
    assert not log.note(Decision(A, 2.0, "no pod", "too big"))
    assert log.note(Decision(A, 3.0, "load", "fits now", "p1"))
    first, second = log.recent(A)
    assert (first.times, first.at_s, str(first)) == (2, 2.0, "no pod default/a: too big (2 times)")
    assert (second.times, str(second)) == (1, "load default/a on p1: fits now")


def test_memory_is_bounded_in_models_decisions_and_lines() -> None:
    log = DecisionLog(models_max=2, per_model_max=3)
    for number in range(5):
        log.note(Decision(A, number, "load", f"reason {number}", details=("line",) * 100))
    assert [d.reason for d in log.recent(A)] == ["reason 2", "reason 3", "reason 4"]
    assert len(log.recent(A)[0].details) == DETAILS_MAX
    log.note(Decision(B, 9.0, "load", "x"))
    log.note(Decision(ModelName("default", "c"), 9.0, "load", "x"))
    assert log.recent(A) == ()
