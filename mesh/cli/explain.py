"""`hexcomb explain`: why a model is where it is, is not loaded, or is refused."""

from __future__ import annotations

import time
from typing import Any

import click

from mesh.cli.connection import Target, connected, target_options
from mesh.cli.output import print_json, print_line, print_table

_PLACES_SHOWN = 20


def build_command() -> click.Command:
    """The command."""
    return explain


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@target_options
@click.argument("name")
def explain(target: Target, name: str) -> None:
    """Say why the model (or alias) NAME is where it is, is not loaded, or is refused.

    Where its copies are, where a request would go and why, what it waits for, which pods could load it and why the
    others could not, and what happened to it lately. Every pod of the pool is asked.
    """
    with connected(target) as client:
        explanation = client.explain(name)
    if target.as_json:
        from mesh.cli.descriptions import to_json

        print_json(to_json(explanation))
        return
    for line in headline(explanation):
        print_line(line)
    _show_copies(explanation.model)
    _show_places(explanation)
    _show_history(explanation)
    for line in explanation.unanswered:
        print_line(f"no answer from {line}")


def headline(explanation: Any) -> list[str]:
    """What comes before the tables."""
    model = explanation.model
    aliases = f", alias {', '.join(model.aliases)}" if model.aliases else ""
    lines = [
        f"{model.id}: generation {model.generation}, {model.format or 'format not known yet'}, tenant {model.tenant}"
        f"{aliases}",
        explanation.summary,
    ]
    named = (
        ("route", explanation.route),
        ("waits for", explanation.waits_for),
        *((f"batched on {copy.pod}", copy.batching) for copy in model.copies),
        ("suspicion", explanation.suspicion),
        *(
            (f"failure on {failure.pod or 'every pod'}", failure.message)
            for failure in model.failures
            if failure.message not in explanation.route + explanation.summary
        ),
    )
    return lines + [f"  {label}: {text}" for label, text in named if text]


def _show_copies(model: Any) -> None:
    if not model.copies:
        return
    from mesh.cli.descriptions import copy_bytes, state_name
    from mesh.cli.sizes import show_age, show_size

    now_s = time.time()

    def ago(at_ms: int) -> str:
        return f"{show_age(now_s - at_ms / 1000)} ago" if at_ms else "-"

    rows = [
        [
            copy.pod,
            f"{state_name(copy.state)}, {copy.form}" if copy.form else state_name(copy.state),
            str(copy.generation),
            f"{'' if copy.measured else '~'}{show_size(copy_bytes(copy))}" if copy_bytes(copy) else "-",
            ago(copy.since_ms),
            ago(copy.last_used_ms),
            str(copy.requests_in_flight),
            f"{copy.load_s * 1000:.0f} ms" if copy.load_s else "-",
        ]
        for copy in model.copies
    ]
    print_line("")
    print_table(
        ("copy on", "state", "gen", "size", "since", "last used", "in flight", "loaded in"),
        rows,
        numbers=("gen", "size", "in flight", "loaded in"),
    )


def _show_places(explanation: Any) -> None:
    if not explanation.candidates:
        return
    rows = [
        [
            place.pod,
            "would be chosen" if place.chosen else "could" if place.HasField("estimate_s") else "no",
            f"{place.estimate_s:.2f} s" if place.HasField("estimate_s") else "-",
            "; ".join(place.reasons),
        ]
        for place in explanation.candidates[:_PLACES_SHOWN]
    ]
    print_line("")
    print_table(("for one more copy", "", "serves in", "why"), rows, numbers=("serves in",))
    left = len(explanation.candidates) - _PLACES_SHOWN
    if left > 0:
        print_line(f"... and {left} pods more; --json lists them all")


def _show_history(explanation: Any) -> None:
    if not explanation.history:
        return
    rows = [
        [time.strftime("%m-%d %H:%M:%S", time.localtime(line.at_ms / 1000)), line.pod, line.text]
        for line in explanation.history
    ]
    print_line("")
    print_table(("when", "on", "what happened"), rows)
