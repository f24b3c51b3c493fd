"""Many seeds, over several processes: what failed, with the command that plays it again, and what was exercised.

A worker process plays one seed after the other and is replaced after some, so that memory which a run leaves behind
does not add up.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mesh.simulation.scenario import draw_scenario
from mesh.simulation.simulation import Outcome, play

SEEDS_PER_WORKER = 25


@dataclass(slots=True)
class Tally:
    """What came of a campaign."""

    seeds: int = 0
    steps: int = 0
    virtual_s: float = 0.0
    failures: list[Outcome] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    exercised_by: Counter[str] = field(default_factory=Counter)
    """In how many seeds each thing happened at all."""

    def add(self, outcome: Outcome) -> None:
        """One more seed."""
        self.seeds += 1
        self.steps += outcome.steps
        self.virtual_s += outcome.virtual_s
        if outcome.failure:
            self.failures.append(outcome)
        for what, number in outcome.counts.items():
            if number:
                self.counts[what] += number
                self.exercised_by[what] += 1


def replay_command(seed: int, steps: int) -> str:
    """Plays this seed again, with its story."""
    return f"{sys.executable} -m mesh.simulation --seed {seed} --steps {steps} --trace"


def play_seed(job: tuple[int, int]) -> Outcome:
    """Play (seed, steps)."""
    seed, steps = job
    return play(draw_scenario(seed, steps), log_level=logging.WARNING)


def play_all(jobs: Iterable[tuple[int, int]], processes: int) -> Iterator[Outcome]:
    """Play (seed, steps) pairs, in any order of completion."""
    if processes == 1:
        yield from map(play_seed, jobs)
        return
    # Not forked: a child that inherits another's threads (of numpy, of protobuf) may hang.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=SEEDS_PER_WORKER) as pool:
        yield from pool.imap_unordered(play_seed, jobs)


def run_campaign(
    seeds: Iterable[int], steps: int, processes: int, on_outcome: Callable[[Outcome], None] = lambda outcome: None
) -> Tally:
    """Play all seeds; `on_outcome` hears of each as it ends."""
    tally = Tally()
    for outcome in play_all(((seed, steps) for seed in seeds), processes):
        tally.add(outcome)
        on_outcome(outcome)
    return tally
