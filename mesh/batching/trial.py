"""The trial itself: a model run on a few rows alone and in company, on a worker thread, within bounds.

Its cost: three rows alone and at most 24 together, of every output that the model has, once per content. A copy that
has one run at a time serves nobody meanwhile, so there is a limit in time as well: what the first row took says how
many more may follow, if rows in company take as long as alone. A model that is too slow for two rows, each alone and
twice in company, is not tried.
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

TRIAL_S_MAX = 2.0
"""Seconds that all runs of a trial take together. Less would leave out models of 0.3 s a row, which gain most."""


def try_model(
    model: LoadedModel, answered: Sequence[Tensors], rows_max: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[Verdict, list[float]]:
    """The verdict, and the seconds of `clock` that single rows took. Blocks; raises nothing that a model can raise."""
    rows = rows_to_try(answered)[:rows_max]
    alone_s: list[float] = []

    def run_alone(row: Tensors, outputs: Sequence[str]) -> dict[str, Array]:
        began_s = clock()
        answer = model.infer(row, outputs)
        alone_s.append(clock() - began_s)
        return answer

    def tried(outputs: Sequence[str]) -> Verdict:
        if len(rows) < 2:
            return Unproven("there were no two different rows to try it with")
        alone = [run_alone(rows[0], outputs)]
        different, rows_together = extent(alone_s[0], len(rows), min(rows_max, ROWS_TOGETHER))
        if not different:
            return NotRowWise(f"a row takes {alone_s[0]:.2g} s, too long to be tried in company")
        alone += [run_alone(row, outputs) for row in rows[1:different]]
        return try_rows(model.infer, rows[:different], alone, outputs, rows_together)

    verdict: Verdict = Unproven("it was not run")
    for outputs in (every_output(model.metadata), ()):  # some refuse an optional output
        alone_s.clear()
        try:
            verdict = tried(outputs)
            break
        except ModelCrashed:
            return NotRowWise("its process died when it was tried with several rows"), []
        except BaseException as error:  # whatever a model's code does, the thread goes on
            said = str(error) if isinstance(error, AdapterError) else type(error).__name__
            verdict = Unproven(f"it refuses rows that it was tried with: {said[:200]}")
    return verdict, alone_s


def extent(row_s: float, rows: int, rows_max: int) -> tuple[int, int]:
    """How many different rows are run alone, and how many rows together, where one row takes `row_s`; (0, 0): none."""
    in_time = int(TRIAL_S_MAX / max(row_s, 1e-9))
    for different in range(rows, 1, -1):
        in_company = in_time - different
        if in_company >= 2 * different:  # there and back, in one run or two
            return different, min(rows_max, in_company)
    return 0, 0
