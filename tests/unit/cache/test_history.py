"""What is remembered of uses, and what follows from it."""

from __future__ import annotations

import pytest

from cache.history import BUCKETS, FOLLOWER_SESSIONS_MIN, GAP_MIN_S, Histories, History, wait_table
from cache.prefetch import expected_use, timer_period_s
from cache.types import ModelKey, WantedModel


def wanted(model_id: str, generation: int = 1) -> WantedModel:
    return WantedModel(ModelKey("t", model_id, generation))


def history_of(*uses_s: float) -> History:
    history = Histories(10).of(wanted("a"))
    for use_s in uses_s:
        history.record(use_s)
    return history


def test_uses_close_to_the_last_recorded_one_are_one_use() -> None:
    history = history_of(0.0)
    due_s = history.record(0.1)
    assert due_s == GAP_MIN_S
    assert history.picture().gaps_s == ()
    history.record(0.3)
    assert history.picture().gaps_s == (0.3,)


def test_the_last_six_gaps_are_kept_as_they_were() -> None:
    uses = history_of(0, 1, 3, 6, 10, 15, 21, 28).picture()
    assert uses.gaps_s == (2, 3, 4, 5, 6, 7)
    assert uses.last_s == 28


def test_the_frequency_fades_with_time_and_outlives_the_copy() -> None:
    histories = Histories(10)
    histories.of(wanted("a")).record(0.0)
    history = histories.of(wanted("a", generation=2))
    history.record(6 * 3600.0)
    assert history.picture().frequency == 1.5


def test_histories_are_bounded_and_the_one_that_was_wanted_longest_ago_goes() -> None:
    histories = Histories(2)
    for model_id in ("a", "b", "a", "c"):
        histories.of(wanted(model_id))
    assert len(histories) == 2
    assert histories.known(ModelKey("t", "b")) is None
    assert histories.known(ModelKey("t", "a")) is not None


def test_the_mass_of_longer_gaps_falls_and_its_integral_grows() -> None:
    table = wait_table([1.0] * BUCKETS, 0.25)
    waits_s = [0.0, 0.1, 0.25, 0.3, 1.0, 7.7, 60.0, 3600.0, 1e6, 1e8]
    masses, areas = zip(*(table.at(wait_s) for wait_s in waits_s), strict=True)
    assert list(masses) == sorted(masses, reverse=True)
    assert list(areas) == sorted(areas)
    assert masses[0] == BUCKETS + 0.25
    assert masses[-1] == 0.25


def test_between_two_waits_the_integral_grows_by_mass_times_time() -> None:
    table = wait_table([float(bucket % 3) for bucket in range(BUCKETS)], 1.0)
    for wait_s in (0.2, 0.9, 5.0, 100.0, 30_000.0):
        step_s = wait_s * 1e-4
        before, after = table.at(wait_s), table.at(wait_s + step_s)
        assert after[1] - before[1] == pytest.approx(step_s * (before[0] + after[0]) / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("gaps_s", "period_s"),
    [
        ((60.0, 60.0, 60.0), 60.0),
        ((60.0, 61.0, 59.0, 60.5), 60.125),
        ((60.0, 120.0, 60.0, 60.0), 60.0),  # one call was left out
        ((60.0, 60.0), None),  # two may agree by chance
        ((30.0, 30.0, 30.0), 30.0),
        ((29.9, 29.9, 29.9), None),  # it stays anyway
        ((60.0, 75.0, 60.0), None),
        ((60.0, 90.0, 60.0), None),
        ((60.0, 240.0, 60.0), None),  # too many in a row
        ((60.0, 180.0, 180.0, 180.0), None),  # left out more often than not
    ],
)
def test_a_timer_is_told_from_its_gaps(gaps_s: tuple[float, ...], period_s: float | None) -> None:
    assert timer_period_s(gaps_s, 30.0) == (None if period_s is None else pytest.approx(period_s))


def test_bringing_in_begins_early_enough_for_two_loads_and_a_fiftieth_of_the_period() -> None:
    uses = history_of(0, 600, 1200, 1800).picture()
    quick, slow = expected_use(uses, 1.0, 30.0), expected_use(uses, 30.0, 30.0)
    assert quick is not None
    assert slow is not None
    assert (quick.at_s, quick.begin_s, quick.lead_s) == (2400, 2388, 12)
    assert slow.begin_s == 2340


def test_models_that_are_used_together_are_known_after_some_sessions() -> None:
    histories = Histories(10)
    first, second, other = (histories.of(wanted(model_id)) for model_id in ("first", "second", "other"))
    for session in range(FOLLOWER_SESSIONS_MIN + 1):
        began_s = session * 100.0
        first.record(began_s)
        if session < FOLLOWER_SESSIONS_MIN - 1:
            assert not histories.expected
        second.record(began_s + 0.5)
        other.record(began_s + 50.0)
    assert wanted("second") in histories.expected
    assert wanted("other") not in histories.expected


def test_the_rate_of_uses_ahead_is_what_falls_away_over_what_passes() -> None:
    table = wait_table([float(bucket % 4) for bucket in range(BUCKETS)], 0.5)
    for idle_s in (0.0, 0.1, 0.25, 0.7, 10.0, 5000.0, 3e6):
        for within_s in (60.0, 1e4, 1e8):
            (longer, area), (longer_then, area_then) = table.at(idle_s), table.at(idle_s + within_s)
            expected = (longer - longer_then) / (area_then - area)
            assert table.uses_per_s(idle_s, within_s) == pytest.approx(expected)
