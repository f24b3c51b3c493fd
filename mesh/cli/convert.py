"""`hexcomb convert`: a pickle becomes a file that is safe to load, and is shown to predict the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mesh.cli.failure import FAILED, USAGE, Failure
from mesh.cli.output import print_json, print_line, print_table
from mesh.cli.sizes import parse_size, show_size

if TYPE_CHECKING:
    from runtime_adapters.base import Array
    from runtime_adapters.converting import Conversion

_TARGETS = {"auto": (), "skops": ("sklearn",), "onnx": ("onnx",), "native": ("xgboost", "lightgbm")}


def build_command() -> click.Command:
    """The command."""
    return convert


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--to",
    "target",
    type=click.Choice(list(_TARGETS)),
    default="auto",
    show_default=True,
    help="native: XGBoost's UBJ, LightGBM's text. auto: the first of native, skops, ONNX that loads and agrees.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="The file to write. Default: beside FILE, with its own suffix."
)
@click.option("--sample", metavar="FILE", help="Rows to compare on (.npy, .csv). Default: generated ones.")
@click.option(
    "--tolerance", default=1e-4, show_default=True, help="Largest difference of numbers, for their size. Labels: none."
)
@click.option("--memory-max", default="4GiB", show_default=True, help="Of the process that unpickles.")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds for it.")
@click.option(
    "--no-jail", is_flag=True, help="Unpickle without walls around it: only for a file that you made yourself."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def convert(
    file: Path,
    target: str,
    output: Path | None,
    sample: str | None,
    tolerance: float,
    memory_max: str,
    timeout_s: float,
    no_jail: bool,
    as_json: bool,
) -> None:
    """Convert FILE, a pickle or joblib file of scikit-learn, XGBoost or LightGBM, to a file that runs no code.

    It is unpickled in a process without network or files, and what comes out is compared with it.
    """
    # NumPy is imported from here on.
    from runtime_adapters.converting import TARGETS, ConversionLimits
    from runtime_adapters.converting import convert as convert_file
    from runtime_adapters.errors import AdapterError

    def place(format_name: str) -> Path:
        path = output or file.with_suffix(Path(TARGETS[format_name]).suffix)
        if path.exists():
            raise Failure(f"{path} is there already", hint="name another file with --output", exit_code=USAGE)
        return path

    try:
        limits = ConversionLimits(memory_bytes=parse_size(memory_max), timeout_s=timeout_s)
        made = convert_file(
            file,
            place,
            targets=_TARGETS[target] or tuple(TARGETS),
            sample=None if sample is None else _rows_of(sample),
            tolerance=tolerance,
            limits=limits,
            jailed=not no_jail,
        )
    except ValueError as error:
        raise Failure(str(error), exit_code=USAGE) from None
    except AdapterError as error:
        raise Failure(str(error), exit_code=FAILED) from None
    path = output or file.with_suffix(Path(TARGETS[made.format]).suffix)
    if as_json:
        print_json(_to_json(path, made))
    else:
        _show(path, made)


def _rows_of(source: str) -> Array:
    from mesh.cli.inference_input import read_input

    try:
        table = read_input(source, Path(source).read_bytes()).table
    except OSError as error:
        raise Failure(f"--sample: cannot read {source}: {error.strerror}", exit_code=USAGE) from None
    if table is None:
        raise Failure(f"--sample: {source} is no table", hint="give .npy or .csv", exit_code=USAGE)
    return table


def _show(path: Path, made: Conversion) -> None:
    walls = f"behind {', '.join(made.confined_by)}" if made.confined_by else "without a jail"
    print_line(f"read     {made.estimator}, {walls} ({made.libraries})")
    for why in made.refused:
        print_line(f"not      {why}")
    print_line(f"written  {path}, format {made.format}, {show_size(made.size_bytes)}")
    rows = "your" if made.rows_are_given else "generated"
    print_table(
        ["output", f"{rows} rows", "unequal", "largest difference"],
        [
            (one.output, str(one.rows), str(one.unequal_rows), f"{one.largest_difference:.3g}")
            for one in made.agreements
        ],
        numbers=[f"{rows} rows", "unequal", "largest difference"],
    )
    print_line(f"next     hexcomb models register NAME --format {made.format} --uri {path}")


def _to_json(path: Path, made: Conversion) -> dict[str, object]:
    return {
        "path": str(path),
        "format": made.format,
        "size_bytes": made.size_bytes,
        "estimator": made.estimator,
        "libraries": made.libraries,
        "rows_are_given": made.rows_are_given,
        "confined_by": list(made.confined_by),
        "refused": list(made.refused),
        "agreements": [
            {
                "output": one.output,
                "rows": one.rows,
                "unequal_rows": one.unequal_rows,
                "largest_difference": one.largest_difference,
            }
            for one in made.agreements
        ],
    }
