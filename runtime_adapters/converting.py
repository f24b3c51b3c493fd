"""From a pickle or joblib file to a form that is safe to load, and a proof that it predicts the same.

Unpickling runs whatever code the file names, so it happens in a process behind the jail of custom models
(`converting_worker`), once, at somebody's desk, and never in a pod. What comes out of there is a stranger's: the files
are read back without following links, through the adapters that take strangers' files, and the comparison is made on
this side: the estimator's own answers, which the process wrote down, against the converted model's.

Tried in this order, and the first that loads and agrees is taken: the framework's own file (XGBoost's UBJ, LightGBM's
text), skops, ONNX. The first two are exact; ONNX computes in FP32.

What a comparison on rows shows is that it agrees on those rows. Generated ones are spread over magnitudes, but know
nothing of the data that the model was trained on: give real rows where you have some.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime_adapters.base import Array, LoadOptions
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.errors import AdapterError, BadArtifact, LoadFailed, UntrustedArtifact
from runtime_adapters.isolation_process import child_environment
from runtime_adapters.registry import adapter_for

GIB = 1024**3
_MESSAGE_BYTES_MAX = 1 << 20
_OUTPUT_SHOWN_CHARACTERS = 2000
_REPORT, _ROWS, _EXPECTED, _SAMPLE = "report.json", "rows.npy", "expected.npz", "sample.npy"

TARGETS = {"xgboost": "model.ubj", "lightgbm": "model.txt", "sklearn": "model.skops", "onnx": "model.onnx"}
"""Format -> the file that the process writes, in the order in which they are tried."""
_ONNX_OUTPUTS = {
    "predict": ("label", "variable", "output_label"),
    "predict_proba": ("probabilities", "output_probability"),
}
"""What skl2onnx calls what an estimator's methods answer."""


@dataclass(frozen=True, slots=True)
class ConversionLimits:
    """What the process may take."""

    memory_bytes: int = 4 * GIB
    file_bytes: int = 4 * GIB
    timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one output compares."""

    output: str
    rows: int
    unequal_rows: int
    largest_difference: float
    """Of numbers; 0 where all are equal to the bit."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was made, and what is known of it. `refused`: why what was tried before it did not do."""

    format: str
    size_bytes: int
    estimator: str
    libraries: str
    rows_are_given: bool
    agreements: tuple[Agreement, ...]
    refused: tuple[str, ...]
    confined_by: tuple[str, ...]


def convert(
    artifact: Path,
    output: Callable[[str], Path],
    *,
    targets: Sequence[str] = tuple(TARGETS),
    sample: Array | None = None,
    tolerance: float = 1e-4,
    limits: ConversionLimits | None = None,
    jailed: bool = True,
) -> Conversion:
    """Convert a file. `output`: where a file of that format goes. `sample`: rows to compare on.

    Raises UntrustedArtifact (no jail on this machine), BadArtifact (nothing fits, or nothing agrees), LoadFailed.
    """
    with artifact.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if is_archive:
        raise BadArtifact(
            f"{artifact.name} is a ZIP archive, as .skops, .pt and .npz are, and no pickle; register it as it is"
        )
    limits = limits or ConversionLimits()
    with tempfile.TemporaryDirectory(prefix="hexcomb-convert-") as scratch_name:
        scratch = Path(scratch_name)
        if sample is not None:
            np.save(scratch / _SAMPLE, sample, allow_pickle=False)
        report = _run_worker(artifact, scratch, limits, jailed)
        refused = [f"{target}: {why}" for target, why in report["refused"].items() if target in targets]
        for target in (target for target in TARGETS if target in targets and target in report["written"]):
            made = _taken(scratch, TARGETS[target])
            try:
                agreements = _compared(target, made, scratch, tolerance)
            except AdapterError as error:
                refused.append(str(error))
                continue
            where = output(target)
            shutil.copyfile(made, where)
            return Conversion(
                target,
                where.stat().st_size,
                str(report["estimator"]),
                str(report["libraries"]),
                sample is not None,
                agreements,
                tuple(refused),
                tuple(str(wall) for wall in report["walls"]),
            )
    raise BadArtifact(
        f"{artifact.name} ({report['estimator']}) was not converted: {'; '.join(refused) or 'no target fits it'}"
    )


# The process --------------------------------------------------------------------------------------------------------


def _run_worker(artifact: Path, scratch: Path, limits: ConversionLimits, jailed: bool) -> dict[str, Any]:
    job = json.dumps(
        {
            "artifact": str(artifact.resolve()),
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
            "jailed": jailed,
        }
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-B", "-m", "runtime_adapters.converting_worker", job],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=scratch,
        env=child_environment(scratch, threads=1),
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limits.timeout_s)
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"{artifact.name}: converting took longer than {limits.timeout_s:g} s; allow more") from None
    finally:
        process.kill()
        process.wait()
    try:
        report: dict[str, Any] = json.loads(_taken(scratch, _REPORT).read_bytes()[:_MESSAGE_BYTES_MAX])
    except (BadArtifact, ValueError):
        end = said[-_OUTPUT_SHOWN_CHARACTERS:].decode(errors="replace").strip()
        raise BadArtifact(
            f"{artifact.name}: the process that unpickled it ended with status {process.returncode} and no report"
            + (f"; it said: {end}" if end else "")
        ) from None
    if "unconfined" in report:
        raise UntrustedArtifact(
            f"unpickling runs code of the file, and on this machine {report['unconfined']}; convert it on Linux "
            "5.13 or later with Landlock, or without the jail if you made the file yourself"
        )
    if "error" in report:
        raise BadArtifact(f"{artifact.name}: {report['error']}")
    return report


def _taken(scratch: Path, name: str) -> Path:
    """A plain file that the process left; a link it left there instead is nobody's model."""
    path = scratch / name
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
        plain = path.is_file()
    except OSError:
        plain = False
    if not plain:
        raise BadArtifact(f"the process left no plain file {name}")
    return path


# The comparison -----------------------------------------------------------------------------------------------------


def _compared(target: str, made: Path, scratch: Path, tolerance: float) -> tuple[Agreement, ...]:
    """Raises BadArtifact where it does not load, or does not agree."""
    rows = _array(_taken(scratch, _ROWS))
    with np.load(_taken(scratch, _EXPECTED), allow_pickle=False) as written:
        expected = {name: written[name] for name in written.files}
    model = adapter_for(target).load(made, LoadOptions(model_id=made.name))
    try:
        (given, *_) = model.metadata.inputs
        dtype = np.dtype(DTYPE_OF[given.datatype])
        inputs = {given.name: rows if rows.dtype.kind == "U" else rows.astype(dtype)}
        if rows.dtype.kind == "U":
            inputs = {given.name: np.array([str(row).encode() for row in rows.ravel()], np.object_).reshape(rows.shape)}
        names = {name: _output_of(target, name, [spec.name for spec in model.metadata.outputs]) for name in expected}
        wanted = [name for name in names.values() if name]
        found = model.infer(inputs, wanted)
    finally:
        model.unload()
    agreements = tuple(_agreement(name, expected[name], found[of]) for name, of in names.items() if of)
    for one in agreements:
        exact = expected[one.output].dtype.kind != "f"
        if one.unequal_rows and (exact or not one.largest_difference <= tolerance):
            raise BadArtifact(
                f"{target}: {one.output} differs in {one.unequal_rows} of {one.rows} rows, by up to "
                f"{one.largest_difference:g}; {tolerance:g} is allowed"
            )
    if not agreements:
        raise BadArtifact(f"{target}: it has none of the outputs {', '.join(expected)}")
    return agreements


def _output_of(target: str, method: str, outputs: Sequence[str]) -> str:
    names = (method, *(_ONNX_OUTPUTS.get(method, ()) if target == "onnx" else ()))
    return next((name for name in names if name in outputs), "")


def _agreement(name: str, expected: Array, found: Array) -> Agreement:
    rows = len(expected)
    if expected.dtype.kind in "US" or found.dtype == np.object_:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in found.ravel()]
        unequal = sum(one != str(other) for one, other in zip(texts, expected.ravel(), strict=False))
        return Agreement(name, rows, unequal, float(unequal > 0))
    one, other = expected.astype(np.float64).reshape(rows, -1), found.astype(np.float64).reshape(rows, -1)
    if one.shape != other.shape:
        return Agreement(name, rows, rows, float("inf"))
    # Sums grow with the values: what counts is how far apart they are for their size.
    difference = np.abs(one - other) / np.maximum(1.0, np.abs(one))
    difference[np.isnan(one) & np.isnan(other)] = 0.0
    largest = float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
    return Agreement(name, rows, int((difference != 0).any(axis=1).sum()), largest)


def _array(path: Path) -> Array:
    try:
        found: Array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise BadArtifact(f"the process left no array in {path.name}") from None
    return found
