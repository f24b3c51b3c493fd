"""`hexcomb pods`: what each pod may hold, holds and does; and draining one."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.connection import Target, connected, target_options
from mesh.cli.failure import FAILED, Failure
from mesh.cli.output import print_json, print_line, print_table, stderr_console

if TYPE_CHECKING:
    from mesh.client.client import Client

_POLL_S = 0.5
_DRAIN_WAIT_S = 180.0
_HINT = "`hexcomb pods` shows the pods of the pool"


def build_command() -> click.Command:
    """The group, complete."""
    return pods


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@target_options
@click.option("--pod", default="", metavar="NAME", help="Only this pod, with all there is to know of it.")
def pods(target: Target, pod: str) -> None:
    """Show the pods: state, zone, models, use, requests, queue, version; or drain one.

    \b
    hexcomb pods                     all pods of the pool, whichever one is asked
    hexcomb pods drain pod-2 --wait  hand over what pod-2 serves, then stop it
    """
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        # `pods --endpoint X drain` means the same as `pods drain --endpoint X`.
        context.default_map = {context.invoked_subcommand: dict(context.params)}
        return
    with connected(target, _HINT) as client:
        found = client.pod_status(pod)
    from mesh.cli.descriptions import to_json
    from mesh.cli.pod_tables import POD_HEADINGS, POD_NUMBERS, in_order, pod_details, pod_row, remarks

    found = in_order(found)
    if target.as_json:
        print_json({"pods": [to_json(one) for one in found]})
        return
    if len(found) == 1:
        # One pod reads better down than across: the line would be wider than most terminals.
        details = pod_details(found[0])
        width = max(len(label) for label, _ in details) + 2
        for label, value in details:
            print_line(f"{label:<{width}}{value}")
    else:
        print_table(POD_HEADINGS, [pod_row(one) for one in found], numbers=POD_NUMBERS)
    for line in remarks(found, time.time()):
        print_line(line)


@pods.command()
@target_options
@click.argument("pod")
@click.option("--wait", is_flag=True, help="Return when the pod has stopped.")
@click.option(
    "--wait-timeout",
    "wait_timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=_DRAIN_WAIT_S,
    show_default=True,
    metavar="SECONDS",
    help="Fail if it has not stopped by then.",
)
def drain(target: Target, pod: str, wait: bool, wait_timeout_s: float) -> None:
    """Hand over what POD serves, then stop it, as on SIGTERM.

    The pod takes requests until the models that were used lately serve elsewhere, or its grace time has passed.
    """
    with connected(target, _HINT) as client:
        known = client.pod_status()
        was_draining = client.drain_pod(pod)
        if not target.as_json:
            print_line(f"{pod}: {'was draining already' if was_draining else 'draining'}")
        if wait:
            _wait_stopped(client, target, pod, wait_timeout_s, known)
            if not target.as_json:
                print_line(f"{pod}: stopped")
    if target.as_json:
        print_json({"pod": pod, "was_draining": was_draining, "stopped": wait})


def _wait_stopped(client: Client, target: Target, pod: str, timeout_s: float, before: Sequence[Any]) -> None:
    """`before`: the pods when the drain was ordered, the one that answered first."""
    from mesh.client.errors import Unavailable

    is_asked = before[0].pod == pod
    # A pod may be started again at once under its old name. What others remember of it has another clock.
    started_at_ms = next((one.started_at_ms for one in before if one.pod == pod and one.reachable), 0)
    ends_s = time.monotonic() + timeout_s
    console = stderr_console()
    shown: Any = console.status("") if sys.stderr.isatty() and not target.as_json else None
    if shown is not None:
        shown.start()
    try:
        while time.monotonic() < ends_s:
            try:
                known = next((one for one in client.pod_status() if one.pod == pod), None)
            except Unavailable:
                if is_asked:
                    return  # it was the one that we asked, and it has gone
                raise
            if known is None or (started_at_ms and known.reachable and known.started_at_ms != started_at_ms):
                return
            if shown is not None:
                shown.update(f"{known.models_resident} models there, {known.requests_in_flight} requests in flight")
            time.sleep(_POLL_S)
    finally:
        if shown is not None:
            shown.stop()
    raise Failure(
        f"pod {pod} is still there after {timeout_s:g} s",
        hint="it goes on draining; `hexcomb pods` shows its state, its log says what it waits for",
        exit_code=FAILED,
    )
