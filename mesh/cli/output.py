"""What a command prints: one JSON value for scripts, or a table for people; on stdout, and nothing else there.

Progress and remarks go to stderr, so that a pipe never sees them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_WIDTH_WHEN_PIPED = 200
"""A table in a pipe or a file is not folded to eighty columns."""


def print_json(value: Any) -> None:
    """One JSON value and a line end."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def print_line(text: str) -> None:
    """One line of text."""
    sys.stdout.write(text + "\n")


def stdout_console() -> Console:
    """For tables."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH_WHEN_PIPED, highlight=False)


def stderr_console() -> Console:
    """For progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def progress_bar(console: Console, *, enabled: bool = True) -> Progress:
    """A bar that counts; to be used in a `with`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[remark]}[/dim]"),
        console=console,
        disable=not enabled,
    )


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """A table; the headings in `numbers` are aligned to the right. Cells are plain text, not markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in row))
    stdout_console().print(table)


_STATE_STYLES = {
    "loaded": "green",
    "loading": "yellow",
    "unloading": "yellow",
    "failed": "bold red",
    "not loaded": "dim",
}
