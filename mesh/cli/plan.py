"""`hexcomb plan`: what would have happened with another capacity, policy or number of pods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.failure import FAILED, USAGE, AlreadyShown, Failure
from mesh.cli.output import print_json, print_line, print_table, progress_bar, stderr_console

if TYPE_CHECKING:
    from mesh.cli.plan_options import Source
    from mesh.planning.cells import Cell, Planned
    from mesh.planning.finding import Found, Goal, NotFound

_TRIES_ABOUT = 14
"""Replays that a search for a capacity takes, for the progress bar."""

POLICY = "hazard"
LOADS_CONCURRENT_MAX = 2
"""As in `mesh.settings`, whose import would make `--help` slow; a test compares them."""


def build_command() -> click.Command:
    """The command."""
    return plan


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="azure|zipf|flash|scan|FILE",
    help="What is asked for when: a workload that is generated, or a file as below. Several files are one log.",
)
@click.option("--seed", type=int, default=1, show_default=True, metavar="N", help="Of a workload that is generated.")
@click.option(
    "--sizes",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="CSV of model,size_bytes,load_s: what models take. Wins over what the log says.",
)
@click.option(
    "--capacity-fraction",
    metavar="LIST",
    help="Memory of all pods together, as shares of what all models take: 0.1,0.2.  [default: 0.2]",
)
@click.option("--capacity", metavar="LIST", help="Or memory of each pod, as in `hexcomb serve --capacity`: 2GiB,4GiB.")
@click.option(
    "--policy",
    default=POLICY,
    metavar="LIST",
    show_default=True,
    help="Who leaves: lru, gdsf, hazard; with prefetch as hazard+prefetch.",
)
@click.option("--prefetch", is_flag=True, help="With prefetch, whatever the policy.")
@click.option(
    "--pods",
    default="1",
    show_default=True,
    metavar="LIST",
    help="Numbers of pods: 4,2 asks what if there were two fewer, each of what one of the four had.",
)
@click.option(
    "--loads-concurrent-max",
    type=click.IntRange(min=1, max=64),
    default=LOADS_CONCURRENT_MAX,
    show_default=True,
    metavar="N",
    help="Loads at a time on each pod, as in `hexcomb serve`.",
)
@click.option(
    "--find-capacity", is_flag=True, help="Search for the least capacity that keeps the goals that follow, one or both."
)
@click.option(
    "--cold-p99-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Goal: of cold requests, 99 of 100 take no longer.",
)
@click.option(
    "--cold-fraction",
    type=click.FloatRange(min=0, max=1),
    metavar="X",
    help="Goal: at most this share of requests is cold.",
)
@click.option(
    "--chart",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw memory and cold requests over time, or over capacity when there are several. Needs hexcomb[charts].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def plan(
    files: tuple[Path, ...],
    workloads: tuple[str, ...],
    seed: int,
    sizes: Path | None,
    capacity_fraction: str | None,
    capacity: str | None,
    policy: str,
    prefetch: bool,
    pods: str,
    loads_concurrent_max: int,
    find_capacity: bool,
    cold_p99_ms: float | None,
    cold_fraction: float | None,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Replay requests on simulated pods, with the eviction and cache code of real ones, and say who waits for loads.

    \b
    hexcomb plan access.csv --capacity 1GiB,2GiB,4GiB --policy lru,hazard
    hexcomb plan a.csv b.csv --pods 4,2                          # a log of each pod; what if two pods fewer?
    hexcomb plan access.csv --find-capacity --cold-fraction 0.02
    hexcomb plan --workload azure --seed 7 --capacity-fraction 0.2 --policy hazard --prefetch --json

    FILE is the access log of a pod (`hexcomb serve --access-log FILE`, `hexcomb demo --access-log FILE`), or CSV with
    the columns time_s and model, and size_bytes and load_s where known. What models take comes from the log's misses;
    of models that were never missed from --sizes, or it is the mean of the others, and the answer says of how many.

    Cold is a request that waits for a load. Its p50 and p99 are of that and, where the log says what runs took, of its
    run; the time waited is that waiting alone. Artifacts are taken to be on the pod's disk, unless the log says that a
    model's first load fetched. The same arguments give the same answer.
    """
    from mesh.cli.plan_options import parse_cells, parse_goal, read_source

    _check_chart(chart)
    goal = parse_goal(cold_p99_ms, cold_fraction, find_capacity=find_capacity)
    if goal is not None and (capacity or capacity_fraction):
        raise Failure(
            "--find-capacity: found a capacity beside it; allowed is one of the two, since it searches for one",
            hint="hexcomb plan --help",
            exit_code=USAGE,
        )
    source = read_source(workloads, files, seed, sizes)
    cells = parse_cells(
        source.trace,
        pods=pods,
        capacity=capacity,
        capacity_fraction=capacity_fraction,
        policy=policy,
        prefetch=prefetch,
        loads_concurrent_max=loads_concurrent_max,
    )
    if goal is None:
        _show_cells(source, _planned(source, cells, quiet=as_json), chart, as_json)
    else:
        _show_answers(source, *_searched(source, cells, goal, quiet=as_json), goal, chart, as_json)


def _check_chart(chart: Path | None) -> None:
    if chart is None:
        return
    from mesh.planning.charts import INSTALL, ChartsMissing, check_installed

    if chart.suffix.lower() != ".png":
        raise Failure(f"--chart: found {str(chart)!r}; allowed is a file that ends in .png", exit_code=USAGE)
    if not chart.absolute().parent.is_dir():
        raise Failure(f"--chart: there is no directory {chart.absolute().parent}", exit_code=USAGE)
    try:
        check_installed()
    except ChartsMissing as error:
        raise Failure("--chart: matplotlib is not installed", hint=f"install it with: {INSTALL}") from error


# Replaying --------------------------------------------------------------------------------------------------------


def _planned(source: Source, cells: list[Cell], *, quiet: bool) -> list[Planned]:
    from mesh.planning.cells import TooSmall, planning, replays_for

    replays = replays_for(cells)
    with progress_bar(stderr_console(), enabled=not quiet) as bar:
        task = bar.add_task("replaying", total=replays, remark=f"{len(source.trace):,} requests each")
        with planning(source.trace, replays, lambda more: bar.advance(task, more)) as planner:
            try:
                return planner.plan(cells)
            except TooSmall as error:
                raise Failure(str(error), hint="more --capacity, or fewer pods", exit_code=USAGE) from error


def _searched(
    source: Source, cells: list[Cell], goal: Goal, *, quiet: bool
) -> tuple[list[Found | NotFound], list[Planned]]:
    from mesh.planning.cells import planning
    from mesh.planning.finding import find_capacity

    about = _TRIES_ABOUT * len(cells)
    with progress_bar(stderr_console(), enabled=not quiet) as bar:
        task = bar.add_task("searching", total=about, remark=f"{len(source.trace):,} requests a try")
        with planning(source.trace, about, lambda more: bar.advance(task, more)) as planner:
            answers = [find_capacity(planner, cell, goal) for cell in cells]
            bar.update(task, total=bar.tasks[task].completed)
            return answers, planner.planned


# Showing ----------------------------------------------------------------------------------------------------------


def _show_cells(source: Source, cells: list[Planned], chart: Path | None, as_json: bool) -> None:
    from mesh.cli.plan_tables import CELL_NUMBERS, cell_rows, headings_of, headline
    from mesh.planning.comparing import sentences

    if chart is not None:
        _draw(chart, source, cells, None)
    if as_json:
        only = cells[0].to_json() if len(cells) == 1 else {"cells": [cell.to_json() for cell in cells]}
        print_json({**_about(source), **only, "summary": sentences(cells)})
        return
    for line in headline(source):
        print_line(line)
    print_line("")
    print_table(headings_of(cells), cell_rows(cells), numbers=CELL_NUMBERS)
    print_line("")
    for line in sentences(cells):
        print_line(line)


def _show_answers(
    source: Source, answers: list[Found | NotFound], tried: list[Planned], goal: Goal, chart: Path | None, as_json: bool
) -> None:
    from mesh.cli.plan_tables import CELL_NUMBERS, answer_to_json, cell_rows, headings_of, headline
    from mesh.planning.comparing import sentence_on_capacity
    from mesh.planning.finding import NotFound

    if chart is not None:
        _draw(chart, source, tried, goal)
    said = [sentence_on_capacity(answer) for answer in answers]
    if as_json:
        listed = [answer_to_json(answer) for answer in answers]
        print_json({**_about(source), **(listed[0] if len(listed) == 1 else {"answers": listed}), "summary": said})
    else:
        for line in headline(source):
            print_line(line)
        print_line("")
        print_table((*headings_of(tried), "goal"), cell_rows(tried, goal), numbers=CELL_NUMBERS)
        print_line("")
        for line in said:
            print_line(line)
    if any(isinstance(answer, NotFound) for answer in answers):
        raise AlreadyShown("no capacity keeps the goal", exit_code=FAILED)


def _about(source: Source) -> dict[str, Any]:
    trace, observed = source.trace, source.observed
    return {
        **source.about,
        "models": len(set(trace.asked)),
        "requests": len(trace),
        "span_s": round(trace.span_s, 3),
        "footprint_bytes": trace.footprint_bytes,
        "observed": None
        if observed is None
        else {
            "cold_fraction": round(observed.cold_fraction, 6),
            "cold_p50_ms": round(observed.cold_p50_ms, 3),
            "cold_p99_ms": round(observed.cold_p99_ms, 3),
        },
        "remarks": list(source.remarks),
    }


def _draw(chart: Path, source: Source, cells: list[Planned], goal: Goal | None) -> None:
    from mesh.planning.charts import draw_chart

    try:
        draw_chart(chart, source.named, cells, goal)
    except OSError as error:
        raise Failure(f"--chart: {chart} cannot be written: {error.strerror or error}") from error
