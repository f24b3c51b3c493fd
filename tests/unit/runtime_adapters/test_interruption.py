"""Long work in slices, which ends when nobody waits any more."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from mesh.batching.joining import Request, run_together
from runtime_adapters.errors import NobodyWaits
from runtime_adapters.interruption import slices, while_wanted


class Work:
    """So many seconds a row, on a clock of its own."""

    def __init__(self, row_s: float) -> None:
        self._row_s = row_s
        self.now_s = 0.0
        self.done: list[slice] = []

    def run(self, rows: int) -> None:
        for part in slices(rows, clock=lambda: self.now_s):
            self.now_s += (part.stop - part.start) * self._row_s
            self.done.append(part)


@pytest.mark.parametrize("rows", [0, 1, 2, 1000])
@pytest.mark.parametrize("row_s", [0.0, 1e-6, 0.003, 5.0])
def test_every_row_is_worked_on_once_and_in_order(rows: int, row_s: float) -> None:
    work = Work(row_s)
    work.run(rows)
    assert [row for part in work.done for row in range(part.start, part.stop)] == list(range(rows))


def test_slices_of_cheap_rows_grow_and_those_of_dear_ones_stay_single() -> None:
    cheap, dear = Work(1e-5), Work(1.0)
    cheap.run(100_000)
    dear.run(10)
    assert len(cheap.done) < 20
    assert len(dear.done) == 10


def test_work_ends_between_slices_when_nobody_waits_for_it() -> None:
    work = Work(1.0)
    with while_wanted(lambda: work.now_s < 3.0), pytest.raises(NobodyWaits, match="3 of 10 rows"):
        work.run(10)
    work.run(10)  # what was said holds for that block alone


def test_what_is_wanted_on_one_thread_says_nothing_of_another() -> None:
    work = Work(1.0)
    with while_wanted(lambda: False):
        thread = threading.Thread(target=work.run, args=(3,))
        thread.start()
        thread.join()
    assert len(work.done) == 3


def test_an_explanation_whose_client_leaves_ends_in_the_middle() -> None:
    rows = np.zeros((1000, 4), np.float32)
    request = Request({"input": rows}, ("explanation",), rows.nbytes, alone=True, unusual=True)
    begun: list[slice] = []

    def infer(inputs: object, outputs: object) -> dict[str, np.ndarray]:
        for part in slices(1000):
            begun.append(part)
            request.gone = True
        return {}

    (answer,) = run_together(infer, [request]).answers
    assert isinstance(answer, NobodyWaits)
    assert len(begun) == 1


def test_an_explanation_ends_at_its_deadline() -> None:
    rows = np.zeros((1000, 4), np.float32)
    request = Request({"input": rows}, ("explanation",), rows.nbytes, deadline_s=0.0, alone=True, unusual=True)
    (answer,) = run_together(lambda inputs, outputs: {"n": list(slices(1000))}, [request]).answers
    assert isinstance(answer, NobodyWaits)
