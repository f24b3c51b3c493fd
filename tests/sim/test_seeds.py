"""Seeds that CI plays: some new ones of a short kind, and all that ever failed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mesh.simulation.campaign import play_all, replay_command
from mesh.simulation.scenario import draw_scenario
from mesh.simulation.simulation import Outcome, play
from tests.sim.regressions import REGRESSIONS, Regression

pytestmark = pytest.mark.timeout(600)

SEEDS = tuple(range(1, 21))
STEPS = 2_000


@pytest.fixture(scope="module")
def outcomes() -> dict[int, Outcome]:
    """All of SEEDS, played by as many processes as there are cores."""
    jobs = ((seed, STEPS) for seed in SEEDS)
    return {outcome.seed: outcome for outcome in play_all(jobs, os.cpu_count() or 1)}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pool_keeps_its_promises_whatever_happens_to_it(outcomes: dict[int, Outcome], seed: int) -> None:
    outcome = outcomes[seed]
    assert not outcome.failure, f"{outcome.failure}\nplay it again: {replay_command(seed, STEPS)}"


def test_the_seeds_of_ci_have_seen_what_they_are_for(outcomes: dict[int, Outcome]) -> None:
    seen = {what for outcome in outcomes.values() for what, times in outcome.counts.items() if times}
    assert {
        "pod crashes",
        "evictions",
        "loads that failed",
        "loads: ordered",
        "requests forwarded",
        "aliases switched",
        "store: leases expired",
        "store: outages",
        "fault: pod cut off from the store",
        "fault: two pods cut off from each other",
        "fault: pod drained and restarted",
        "fault: freeze",
        "models served at rest",
        "decisions compared",
    } <= seen
    assert sum(outcome.counts["answers"] for outcome in outcomes.values()) > 1_000


@pytest.fixture(scope="module")
def again() -> dict[int, Outcome]:
    """All of REGRESSIONS."""
    jobs = ((regression.seed, regression.steps) for regression in REGRESSIONS)
    return {outcome.seed: outcome for outcome in play_all(jobs, os.cpu_count() or 1)}


@pytest.mark.parametrize("regression", REGRESSIONS, ids=lambda regression: f"seed-{regression.seed}")
def test_what_a_seed_once_found_stays_mended(again: dict[int, Outcome], regression: Regression) -> None:
    outcome = again[regression.seed]
    replay = replay_command(regression.seed, regression.steps)
    assert not outcome.failure, f"once: {regression.story}\nnow: {outcome.failure}\nplay it again: {replay}"


def test_a_seed_plays_the_same_run_each_time_and_in_each_process() -> None:
    script = (
        "from mesh.simulation.campaign import play_seed; outcome = play_seed((6, 1000)); "
        "print(outcome.trace, outcome.steps)"
    )
    here = play(draw_scenario(6, 1_000))
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.split() == [str(here.trace), str(here.steps)]
