"""`hexcomb pods`: what each pod may hold, holds and does."""

from __future__ import annotations

import click

from mesh.cli.connection import Target, connected, target_options
from mesh.cli.output import print_json, print_line, print_table


def build_command() -> click.Command:
    """The command."""
    return pods


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@target_options
@click.option("--pod", default="", metavar="NAME", help="Only this pod.")
def pods(target: Target, pod: str) -> None:
    """Show the pods: capacity, use, copies, queue, version."""
    with connected(target) as client:
        found = client.pod_status(pod)
    from mesh.cli.descriptions import POD_NUMBERS, pod_headings, pod_row, to_json

    if target.as_json:
        print_json({"pods": [to_json(one) for one in found]})
    elif len(found) == 1:
        # One pod reads better down than across: the line would be wider than most terminals.
        for heading, value in zip(pod_headings(), pod_row(found[0]), strict=True):
            print_line(f"{heading:<12}{value}")
    else:
        print_table(pod_headings(), [pod_row(one) for one in found], numbers=POD_NUMBERS)
