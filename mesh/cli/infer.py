"""`hexcomb infer`: ask a model, from a file or a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mesh.cli.connection import Target, connected, target_options
from mesh.cli.failure import USAGE, Failure
from mesh.cli.output import print_json, print_line, print_table

if TYPE_CHECKING:
    from mesh.client.client import Client

_ROWS_SHOWN = 50
_COLUMNS_SHOWN = 12


def build_command() -> click.Command:
    """The command."""
    return infer


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@target_options
@click.argument("name")
@click.option(
    "--input",
    "source",
    required=True,
    metavar="FILE|-",
    help="V2 JSON, .npy, or .csv (with or without a line of headings); - reads standard input.",
)
@click.option("--output", "outputs", multiple=True, metavar="OUTPUT", help="Only this output; may be repeated.")
@click.option("--version", default="", metavar="N", help="Only if the model's generation is N.")
def infer(target: Target, name: str, source: str, outputs: tuple[str, ...], version: str) -> None:
    """Ask the model (or alias) NAME for predictions.

    A table (.npy, .csv) is sent as the model's one input. JSON names its tensors:

    \b
    {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [5.1, 3.5]}]}
    """
    content = _read(source)
    # NumPy is imported from here on.
    from mesh.cli.inference_input import name_table, read_input, to_v2_json

    try:
        request = read_input(source, content)
        mended = f"once that is mended, `hexcomb models release {name}` has it tried again"
        with connected(target, precondition_hint=mended) as client:
            tensors = request.tensors
            if request.table is not None:
                tensors = (name_table(request.table, *_one_input(client, name)),)
            result = client.infer(
                name,
                {tensor.name: tensor.values for tensor in tensors},
                outputs or request.outputs,
                version=version,
                request_id=request.id,
            )
    except ValueError as error:
        raise Failure(str(error), hint="hexcomb infer --help shows an example", exit_code=USAGE) from None
    answers = dict(result.outputs)
    if target.as_json:
        print_json(
            {
                "model_name": result.model_name,
                "model_version": result.model_version,
                "id": request.id,
                "outputs": to_v2_json(answers),
            }
        )
    else:
        _show_answers(answers)


def _read(source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise Failure(f"--input: cannot read {source}: {error.strerror}", exit_code=USAGE) from None


def _one_input(client: Client, name: str) -> tuple[str, str]:
    """The model's first input: the others of a tabular model are optional. Where they are not, the server says so."""
    metadata = client.model_metadata(name)
    if not metadata.inputs:
        raise Failure(f"--input: {name} takes no input", hint="give V2 JSON, which names its tensors", exit_code=USAGE)
    return metadata.inputs[0].name, metadata.inputs[0].datatype


def _show_answers(answers: dict[str, Any]) -> None:
    if not answers:
        return
    headings: list[str] = ["row"]
    columns: list[list[str]] = []
    rows_count = max(len(values) if values.ndim else 1 for values in answers.values())
    for name, values in answers.items():
        table = values.reshape(len(values) if values.ndim else 1, -1)
        shown = min(table.shape[1], _COLUMNS_SHOWN)
        for column in range(shown):
            headings.append(name if table.shape[1] == 1 else f"{name}[{column}]")
            cells = [_cell(value) for value in table[:_ROWS_SHOWN, column].tolist()]
            columns.append(cells + [""] * (min(rows_count, _ROWS_SHOWN) - len(cells)))
        if shown < table.shape[1]:
            headings.append(f"{name}[...{table.shape[1] - 1}]")
            columns.append(["..."] * min(rows_count, _ROWS_SHOWN))
    rows = [(str(row), *(column[row] for column in columns)) for row in range(min(rows_count, _ROWS_SHOWN))]
    print_table(headings, rows, numbers=headings)
    if rows_count > _ROWS_SHOWN:
        print_line(f"... {rows_count - _ROWS_SHOWN} more rows; --json prints them all")


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
