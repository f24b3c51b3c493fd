"""The trial itself: a model run on a few rows alone and in company, on a worker thread, within bounds.

Its cost: three rows alone and at most 24 together, of every output that the model has, once per content. A model whose
single row takes longer than `ROW_S_MAX` is not tried: it would hold a thread for seconds, and has little to save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mesh.batching.row_wise import (
    ROWS_TOGETHER,
    NotRowWise,
    Unproven,
    Verdict,
    every_output,
    rows_to_try,
    try_rows,
)
from runtime_adapters.base import Array, LoadedModel, Tensors
from runtime_adapters.errors import AdapterError, ModelCrashed

ROW_S_MAX = 0.5
"""Seconds of a single row's run."""


def try_model(
    model: LoadedModel, answered: Sequence[Tensors], rows_max: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[Verdict, list[float]]:
    """The verdict, and the seconds of `clock` that single rows took. Blocks; raises nothing that a model can raise."""
    rows = rows_to_try(answered)[:rows_max]
    rows_max = min(rows_max, ROWS_TOGETHER)
    took_s: list[float] = []

    def run(inputs: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        if took_s and took_s[0] > ROW_S_MAX:
            raise _TooSlow
        began_s = clock()
        answer = model.infer(inputs, outputs)
        took_s.append(clock() - began_s)
        return answer

    verdict: Verdict = Unproven("it was not run")
    for outputs in (every_output(model.metadata), ()):  # some refuse an optional output
        took_s.clear()
        try:
            verdict = try_rows(run, rows, outputs, rows_max)
            break
        except _TooSlow:
            return NotRowWise(f"a row takes {took_s[0]:.2g} s, too long to be tried in company"), took_s[:1]
        except ModelCrashed:
            return NotRowWise("its process died when it was tried with several rows"), []
        except BaseException as error:  # whatever a model's code does, the thread goes on
            said = str(error) if isinstance(error, AdapterError) else type(error).__name__
            verdict = Unproven(f"it refuses rows that it was tried with: {said[:200]}")
    return verdict, took_s[: len(rows)]


class _TooSlow(Exception):
    """A row alone takes too long for the rest of the trial."""
