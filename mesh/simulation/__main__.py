"""`python -m mesh.simulation`: play many seeds, or one with its story. Exits with 1 if any promise was broken."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time

import click

from mesh.cli.output import print_json, print_line, print_table, progress_bar, stderr_console
from mesh.simulation.campaign import Tally, replay_command, run_campaign
from mesh.simulation.scenario import draw_scenario
from mesh.simulation.simulation import Outcome, play


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seeds", type=click.IntRange(min=1), default=20, show_default=True, help="How many seeds to play.")
@click.option("--first", type=int, default=1, show_default=True, help="The first of them.")
@click.option("--seed", type=int, default=None, help="Play this one only.")
@click.option("--steps", type=click.IntRange(min=1), default=10_000, show_default=True, help="Events in each.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, help="Processes.  [default: the cores]"
)
@click.option("--trace", is_flag=True, help="With --seed: log every line of the story as it happens, to stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def main(seeds: int, first: int, seed: int | None, steps: int, jobs: int, trace: bool, as_json: bool) -> None:
    """Run real pods on virtual time against faults drawn from seeds, and check every promise after each step."""
    began = time.perf_counter()
    if seed is not None:
        tally = Tally()
        tally.add(play(draw_scenario(seed, steps), log_level=logging.INFO if trace else logging.WARNING, echo=trace))
    else:
        console = stderr_console()
        with progress_bar(console, enabled=not as_json) as progress:
            task = progress.add_task("seeds", total=seeds, remark="")

            def on_outcome(outcome: Outcome) -> None:
                progress.advance(task)
                if outcome.failure:
                    progress.update(task, remark=f"seed {outcome.seed} fails")
                    console.print(f"seed {outcome.seed}: {outcome.failure.splitlines()[0]}", markup=False)

            tally = run_campaign(range(first, first + seeds), steps, jobs, on_outcome)
    took_s = time.perf_counter() - began
    if as_json:
        print_json(_to_json(tally, steps, took_s))
    else:
        _show(tally, steps, took_s)
    sys.exit(1 if tally.failures else 0)


def _to_json(tally: Tally, steps: int, took_s: float) -> dict[str, object]:
    return {
        "seeds": tally.seeds,
        "steps": tally.steps,
        "virtual_s": round(tally.virtual_s, 1),
        "seconds": round(took_s, 1),
        "steps_per_s": round(tally.steps / took_s),
        "failures": [
            dataclasses.asdict(failure) | {"replay": replay_command(failure.seed, steps)} for failure in tally.failures
        ],
        "counts": dict(sorted(tally.counts.items())),
        "seeds_with": dict(sorted(tally.exercised_by.items())),
    }


def _show(tally: Tally, steps: int, took_s: float) -> None:
    rows = [(what, f"{number:,}", f"{tally.exercised_by[what]:,}") for what, number in sorted(tally.counts.items())]
    print_table(("what happened", "times", "seeds"), rows, numbers=("times", "seeds"))
    print_line("")
    for failure in sorted(tally.failures, key=lambda outcome: outcome.seed)[:20]:
        if tally.seeds == 1:
            print_line(failure.failure)
        print_line(f"seed {failure.seed} broke a promise: {failure.promise}")
        print_line(f"  play it again: {replay_command(failure.seed, steps)}")
    print_line(
        f"{tally.seeds:,} seeds, {tally.steps:,} steps, {tally.virtual_s / 3600:.1f} hours of virtual time in "
        f"{took_s:.0f} s ({tally.steps / took_s:,.0f} steps/s): {len(tally.failures)} failed"
    )


if __name__ == "__main__":
    main()
