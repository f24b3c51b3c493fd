"""May the rows of several requests share a run? Tried on the model, once per content, and never guessed.

A model that declares a batch dimension promises that its rows do not influence one another. Exports break the promise
without knowing: a normalisation over the batch, a sort, a sampled output. So the first time that requests meet, some
rows that the model has answered before are run one by one, then all of them together, repeated up to the size of a
batch, and each row's answer is compared with the one that it got alone.

Equal to the bit is the rule, for trees and for most small networks. Matrix kernels are chosen by shape, and sum a row
in another order when there are more of them: there the answers differ in their last digits. What they differ by is
measured, relative to the largest number in that output, and shown; more than `TOLERANCE_ROUNDINGS` of the output's
type, and any difference in whole numbers, texts and flags, means that the model is not batched.

Rows that are all alike prove nothing: a model that subtracts the mean of a batch answers equal rows alike in any
company. Where it has answered fewer than two different rows, variations are made of them. Answers that are all alike
prove nothing either.

Deliberately absent: when to try, and what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from runtime_adapters.base import Array, ModelMetadata, Tensors, is_explanation
from runtime_adapters.datatypes import DTYPE_OF

ROWS_TRIED = 3
"""Different rows: each is run alone."""
ROWS_TOGETHER = 24
"""Of those, repeated: where kernels change with the shape, they have changed by then."""
TOLERANCE_ROUNDINGS = {8: 64, 4: 64, 2: 4}
"""Roundings of an output's type, by its bytes, that answers may differ by. A sum of a thousand products in another
order is off by about ten; types of two bytes are mostly summed in four, and rounded once."""

Run = Callable[[Tensors, Sequence[str]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class RowWise:
    """Rows may share a run. `difference`: the largest that was seen between a row's answers alone and in company,
    relative to the largest number of its output; 0: none."""

    difference: float


@dataclass(frozen=True, slots=True)
class NotRowWise:
    """They may not, because ... (in words that end a sentence)."""

    why: str


@dataclass(frozen=True, slots=True)
class Unproven:
    """The rows that were tried tell nothing."""

    why: str


Verdict = RowWise | NotRowWise | Unproven


def every_output(metadata: ModelMetadata) -> tuple[str, ...]:
    """What a trial asks for: a label is often the same for all rows where its probabilities are not. Explanations never
    share a run."""
    return tuple(spec.name for spec in metadata.outputs if not is_explanation(spec.name))


def rows_to_try(requests: Iterable[Tensors], *, varied: bool = True) -> list[dict[str, Array]]:
    """Up to ROWS_TRIED different rows of these requests, which have the same inputs and shapes; where they hold one
    only, variations of it as well, if `varied`."""
    rows: list[dict[str, Array]] = []
    for inputs in requests:
        for at in range(min(ROWS_TRIED, len(next(iter(inputs.values()), ())))):
            row = {name: array[at : at + 1] for name, array in inputs.items()}
            if not any(_equal(row, other) for other in rows):
                rows.append(row)
            if len(rows) == ROWS_TRIED:
                return rows
    if len(rows) == 1 and varied:
        for number in range(1, ROWS_TRIED):
            row = {name: _varied(array, number) for name, array in rows[0].items()}
            if not any(_equal(row, other) for other in rows):
                rows.append(row)
    return rows


def orders_to_try(rows: int, rows_max: int) -> list[tuple[int, ...]]:
    """Which of so many rows one run has, and in which order: there and back, over and over, up to `rows_max`; where
    that allows one way only, there in one run and back in another. A model that sorts would leave one way as it is."""
    there = tuple(range(rows))
    times = rows_max // (2 * rows)
    return [(*there, *reversed(there)) * times] if times else [there, there[::-1]]


def together(rows: Sequence[Tensors], order: Sequence[int]) -> dict[str, Array]:
    """These rows in one request."""
    return {name: np.concatenate([rows[at][name] for at in order]) for name in rows[0]}


def compare(alone: Sequence[Mapping[str, Array]], company: Mapping[str, Array], order: Sequence[int]) -> Verdict:
    """The answers to rows alone, and to the same rows in company, in this order."""
    difference, apart = 0.0, False
    for name, whole in company.items():
        if any(answer[name].ndim == 0 or len(answer[name]) != 1 for answer in alone):
            return NotRowWise(f"its output {name!r} has not one row for each that is asked")
        if whole.ndim == 0 or len(whole) != len(order):
            return NotRowWise(f"its output {name!r} has not one row for each that is asked")
        if any(answer[name].shape[1:] != whole.shape[1:] for answer in alone):
            return NotRowWise(f"the shape of its output {name!r} depends on the other rows of a run")
        expected = np.concatenate([alone[at][name] for at in order])
        found = _difference(expected, whole)
        if found is None or found > _tolerance(whole.dtype):
            how_much = "" if found is None else f", by {found:.2g} of its largest number"
            return NotRowWise(f"its output {name!r} for a row differs with the other rows of a run{how_much}")
        difference = max(difference, found)
        apart = apart or any(not _same(alone[0][name], answer[name]) for answer in alone[1:])
    if not apart:
        return Unproven("it gave the same answer to every row that it was tried with")
    return RowWise(difference)


def try_rows(
    run: Run,
    rows: Sequence[Tensors],
    alone: Sequence[Mapping[str, Array]],
    outputs: Sequence[str],
    rows_max: int,
) -> Verdict:
    """Run rows together that were answered `alone`; at least two of them. Raises what the model raises."""
    difference = 0.0
    for order in orders_to_try(len(rows), rows_max):
        verdict = compare(alone, run(together(rows, order), outputs), order)
        if not isinstance(verdict, RowWise):
            return verdict
        difference = max(difference, verdict.difference)
    return RowWise(difference)


def _varied(array: Array, number: int) -> Array:
    """Another row of the same kind: floats nearby, whole numbers no larger (they may be indices), the rest moved on."""
    varied: Array
    if array.dtype.kind == "f":
        varied = (array + number * (np.abs(array) + 1) / 4).astype(array.dtype)
    elif array.dtype.kind in "iu":
        varied = array // array.dtype.type(number + 1)
    else:
        varied = np.roll(array, number)
    return varied


def _equal(one: Tensors, other: Tensors) -> bool:
    return all(_same(array, other[name]) for name, array in one.items())


def _same(one: Array, other: Array) -> bool:
    # In NumPy, not as lists: rows of megabytes are compared on the event loop (`lane.Learned.remember`).
    return one.shape == other.shape and bool((one == other).all())


def _difference(expected: Array, found: Array) -> float | None:
    """Relative to the largest finite number; None where numbers cannot be compared and are not equal."""
    if expected.dtype != found.dtype:
        return None
    if not _is_float(expected.dtype):
        return 0.0 if np.array_equal(expected, found) else None
    wide: tuple[Any, Any] = (expected.astype(np.float64), found.astype(np.float64))
    finite = np.isfinite(wide[0])
    if not np.array_equal(finite, np.isfinite(wide[1])):
        return None
    if not np.array_equal(wide[0][~finite], wide[1][~finite], equal_nan=True):
        return None
    if not finite.any():
        return 0.0
    off = float(np.abs(wide[0][finite] - wide[1][finite]).max())
    largest = float(np.abs(wide[0][finite]).max())
    if not off:
        return 0.0
    return off / largest if largest else inf


def _tolerance(dtype: np.dtype[Any]) -> float:
    if not _is_float(dtype):
        return 0.0
    digits = {2: 10 if dtype.kind == "f" else 7, 4: 23, 8: 52}[dtype.itemsize]  # bfloat16 has 7
    return TOLERANCE_ROUNDINGS[dtype.itemsize] * 2.0**-digits


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype == DTYPE_OF["BF16"]
