"""`hexcomb top`: the pods and the hottest models, live.

What happens per second is the difference between two looks at the pods' counters; what is in flight is as it stands.
In a terminal the picture is drawn again each interval until `q`; in a pipe each look is printed after the other, and
`--once` prints one.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.connection import Target, connected, target_options
from mesh.cli.failure import Failure
from mesh.cli.output import print_json, stdout_console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mesh.client.client import Client

_MODELS_SHOWN = 15


def build_command() -> click.Command:
    """The command."""
    return top


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@target_options
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.2),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
@click.option("--once", is_flag=True, help="Print one look and end.")
@click.option(
    "--models", "models_shown", type=click.IntRange(min=0), default=_MODELS_SHOWN, show_default=True, metavar="N",
    help="Hottest models that are shown.",
)  # fmt: skip
def top(target: Target, interval_s: float, once: bool, models_shown: int) -> None:
    """Watch the pods and the hottest models; q ends it."""
    with connected(target) as client:
        looks = _Looks(client, interval_s, models_shown)
        if target.as_json or once or not sys.stdout.isatty():
            _print_looks(looks, as_json=target.as_json, once=once)
        else:
            _draw_looks(looks)


class _Looks:
    """Takes looks, each an interval after the one before."""

    def __init__(self, client: Client, interval_s: float, models_shown: int) -> None:
        self._client = client
        self._models_shown = models_shown
        self.interval_s = interval_s
        self._before = client.pod_status()
        self._before_at_s = time.monotonic()

    def take(self) -> Any:
        """What the pods did since the last look. Raises HexcombError."""
        from mesh.cli.top_figures import look

        pods, now_s = self._client.pod_status(), time.monotonic()
        taken = look(self._before, pods, now_s - self._before_at_s, self._models_shown, time.time())
        self._before, self._before_at_s = pods, now_s
        return taken


def _print_looks(looks: _Looks, *, as_json: bool, once: bool) -> None:
    from mesh.cli.top_figures import as_values

    while True:
        time.sleep(looks.interval_s)
        taken = looks.take()
        if as_json:
            print_json(as_values(taken))
        else:
            stdout_console().print(_drawn(taken, ""))
        sys.stdout.flush()
        if once:
            return


def _draw_looks(looks: _Looks) -> None:
    from rich.live import Live

    from mesh.client.errors import HexcombError

    taken, trouble = None, ""
    with _keys() as pressed, Live(console=stdout_console(), screen=True, auto_refresh=False) as live:
        try:
            while pressed(looks.interval_s) != "q":
                try:
                    taken, trouble = looks.take(), ""
                except HexcombError as error:
                    trouble = f"no answer: {error.message}"
                live.update(_drawn(taken, trouble), refresh=True)
        except KeyboardInterrupt:
            return


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits for a key for so many seconds; keys are read as they are pressed, without Enter."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 1).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield pressed
    except termios.error as error:
        raise Failure(f"the terminal does not do as asked: {error}", hint="use --once") from error
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _drawn(taken: Any, trouble: str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from mesh.cli.top_figures import MODEL_HEADINGS, POD_HEADINGS, headline, model_row, pod_row

    if taken is None:
        return Text(trouble or "looking ...")
    pods = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(POD_HEADINGS):
        pods.add_column(heading, justify="left" if index < 2 else "right", no_wrap=True)
    for pod in taken.pods:
        pods.add_row(*(Text(cell, style=_STYLES.get(cell.partition(",")[0], "")) for cell in pod_row(pod)))
    models = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(MODEL_HEADINGS):
        models.add_column(heading, justify="left" if index in (0, len(MODEL_HEADINGS) - 1) else "right", no_wrap=True)
    for model in taken.models:
        models.add_row(*(Text(cell) for cell in model_row(model)))
    parts: list[RenderableType] = [Text(headline(taken), style="bold"), Text(""), pods]
    if taken.models:
        parts += [Text(""), models]
    if taken.remarks:
        parts += [Text(remark, style="yellow") for remark in ("", *taken.remarks)]
    if trouble:
        parts.append(Text(trouble, style="bold red"))
    return Group(*parts)


_STYLES = {"ready": "green", "draining": "yellow", "not ready": "yellow", "unreachable": "bold red"}
