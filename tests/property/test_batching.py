"""Requests that share runs: whoever waits is answered once, with its own answer, in its turn and in time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.batching.joining import Request, run_together
from mesh.batching.queue import LATE_SHARE, BatchLimits, plan_batch
from mesh.batching.row_wise import NotRowWise, RowWise, Unproven, try_rows
from mesh.batching.rules import BatchRules
from mesh.batching.sizing import CLASSES, GAIN_MIN, KNOWN_AFTER, Sizing
from mesh.batching.turns import Turns
from mesh.resident import Resident
from mesh.running import Runner, TooLate
from runtime_adapters.base import CPU, ModelMetadata, Size, TensorSpec
from runtime_adapters.errors import BadInput

BASE_S, ROW_S = 0.004, 0.001


def predicted_s(rows: int) -> float:
    return BASE_S + ROW_S * rows


@dataclass(frozen=True, eq=False)
class Waits:
    rows: int
    kind: str
    size_bytes: int
    deadline_s: float | None
    arrived_s: float
    priority: int = 0


@st.composite
def waiting(draw: st.DrawFn, deadlines: bool = True, priorities: bool = True) -> list[Waits]:
    gaps = draw(st.lists(st.floats(0, 0.01), max_size=30))
    arrived = np.cumsum(gaps).tolist() if gaps else []
    deadline = st.none() | st.floats(0, 0.2) if deadlines else st.none()
    return [
        Waits(
            draw(st.integers(0, 12)),
            draw(st.sampled_from("ab")),
            draw(st.integers(0, 50)),
            draw(deadline),
            at_s,
            draw(st.integers(0, 3)) if priorities else 0,
        )
        for at_s in arrived
    ]


limits = st.builds(BatchLimits, st.integers(1, 40), st.integers(1, 200), st.sampled_from([0.0, 0.005]))


@given(waiting(), limits, st.floats(0, 0.1))
def test_a_batch_keeps_within_its_limits_and_the_deadlines_of_all_in_it(
    given_: list[Waits], limit: BatchLimits, now_s: float
) -> None:
    plan = plan_batch(given_, limit, predicted_s, now_s)
    assert set(plan.batch) <= set(given_)
    assert not set(plan.batch) & set(plan.late)
    assert len(set(plan.batch)) == len(plan.batch)
    for late in plan.late:
        assert late.deadline_s is not None
        assert now_s + LATE_SHARE * predicted_s(late.rows or 1) >= late.deadline_s
    if len(plan.batch) > 1:
        assert len({each.kind for each in plan.batch}) == 1
        assert all(each.rows for each in plan.batch)
        rows = sum(each.rows for each in plan.batch)
        assert rows <= limit.rows_max
        assert sum(each.size_bytes for each in plan.batch) <= limit.bytes_max
        assert all(each.deadline_s is None or now_s + predicted_s(rows) <= each.deadline_s for each in plan.batch)
    if len(plan.late) < len(given_) or any((each.deadline_s or 0) > now_s for each in given_):
        assert plan.batch or plan.wait_until_s > now_s, "nobody runs, and nobody looks again"


@given(waiting(), limits)
def test_everybody_who_waits_runs_or_is_told_that_it_is_late(given_: list[Waits], limit: BatchLimits) -> None:
    left, told, now_s = dict.fromkeys(given_), Counter[Waits](), 0.1
    while left:
        plan = plan_batch(left, limit, predicted_s, now_s)
        if not plan.batch and not plan.late:
            assert plan.wait_until_s > now_s
            now_s = plan.wait_until_s
            continue
        for each in (*plan.batch, *plan.late):
            del left[each]
            told[each] += 1
        now_s += predicted_s(sum(each.rows for each in plan.batch)) if plan.batch else 0.0
    assert set(told) == set(given_)
    assert all(count == 1 for count in told.values())


@given(waiting(deadlines=False), limits)
def test_without_deadlines_nobody_runs_before_one_of_a_higher_priority(given_: list[Waits], limit: BatchLimits) -> None:
    limit = BatchLimits(limit.rows_max, limit.bytes_max)
    left = dict.fromkeys(given_)
    while left:
        batch = plan_batch(left, limit, predicted_s, 0.0).batch
        named = [each.priority for each in left if each.priority]
        assert batch[0].priority == (min(named) if named else 0)
        for each in batch:
            del left[each]


@given(waiting(deadlines=False, priorities=False), limits)
def test_without_deadlines_requests_of_one_kind_run_in_the_order_of_their_arrival(
    given_: list[Waits], limit: BatchLimits
) -> None:
    limit = BatchLimits(limit.rows_max, limit.bytes_max)
    left, ran = dict.fromkeys(given_), list[Waits]()
    while left:
        batch = plan_batch(left, limit, predicted_s, 0.0).batch
        assert batch[0] is next(iter(left)), "the first to arrive was passed"
        ran += batch
        for each in batch:
            del left[each]
    for kind in "ab":
        assert [each for each in ran if each.kind == kind and each.rows] == [
            each for each in given_ if each.kind == kind and each.rows
        ]


@given(st.floats(1e-6, 0.1), st.floats(1e-7, 0.1))
def test_batches_grow_as_long_as_doubling_them_pays(base_s: float, row_s: float) -> None:
    sizing = Sizing()
    for _ in range(KNOWN_AFTER * CLASSES):
        rows = sizing.rows_best()
        sizing.ran(rows, base_s + row_s * rows)
    best = sizing.rows_best()

    def cost_s(rows: int) -> float:
        return base_s / rows + row_s

    if best < 1 << (CLASSES - 1):
        assert cost_s(2 * best) > (1 - GAIN_MIN) * cost_s(best) * 0.999
    if best > 1:
        assert cost_s(best) <= (1 - GAIN_MIN) * cost_s(best // 2) * 1.001


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-6, 1), st.booleans()), max_size=60), st.integers(1, 300))
def test_a_size_is_never_less_than_one_row_and_a_prediction_never_negative(
    runs: list[tuple[int, float, bool]], rows: int
) -> None:
    sizing = Sizing(60e-6)
    for ran_rows, run_s, failed in runs:
        if failed:
            sizing.failed(ran_rows)
            assert sizing.rows_best() <= max(1, ran_rows // 2)
        else:
            sizing.ran(ran_rows, run_s)
        assert sizing.rows_best(rows) >= 1
        assert sizing.predicted_s(rows) >= 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.001, 1)), min_size=1, max_size=60))
def test_no_model_gets_ahead_of_another_that_waits_by_more_than_one_run_of_each(runs: list[tuple[str, float]]) -> None:
    turns: Turns[str] = Turns()
    served_s = dict.fromkeys("abc", 0.0)
    longest_s = max(run_s for _, run_s in runs)
    for model in "abc":  # all of them always have something to run
        turns.wait(model, 0.0)
    for _, run_s in runs:
        turn = turns.next()
        assert turn is not None
        model, clock_s = turn
        served_s[model] += run_s
        turns.wait(model, clock_s + run_s)
        assert max(served_s.values()) - min(served_s.values()) <= longest_s * 1.001


# Runs of several requests ---------------------------------------------------------------------------------------------


def doubled(inputs: Any, outputs: Any) -> dict[str, Any]:
    """Refuses 13s, as a framework refuses NaN: the whole run."""
    x = inputs["x"]
    if (x == 13).any():
        raise BadInput("13 is no input")
    return {"y": x * 2, "total": x.sum(axis=1)}


values = st.lists(st.integers(0, 15), min_size=1, max_size=4)


@given(st.lists(values, min_size=1, max_size=8))
def test_an_error_of_one_request_fails_none_of_its_neighbours(requests: list[list[int]]) -> None:
    made = [Request({"x": np.array([[v, v + 1] for v in rows], np.float32)}, (), 8) for rows in requests]
    ran = run_together(doubled, made)
    assert ran.broke is (len(made) > 1 and any(13 in (v, v + 1) for rows in requests for v in rows))
    for request, answer in zip(made, ran.answers, strict=True):
        try:
            expected = doubled(request.inputs, ())
        except BadInput:
            assert isinstance(answer, BadInput)
        else:
            assert isinstance(answer, dict)
            for name, array in expected.items():
                np.testing.assert_array_equal(answer[name], array)


KINDS = {
    "row by row": (lambda x: np.tanh(x) @ np.ones((3, 2), np.float32), RowWise),
    "minus the batch's mean": (lambda x: x - x.mean(axis=0), NotRowWise),
    "sorted over the batch": (lambda x: np.sort(x, axis=0), NotRowWise),
    "its place in the batch": (lambda x: x + np.arange(len(x), dtype=np.float32)[:, None] * 1e-3, NotRowWise),
    "one answer for all": (lambda x: x.sum(axis=0, keepdims=True), NotRowWise),
    "as wide as the batch": (lambda x: np.repeat(x, len(x), axis=1), NotRowWise),
    "the same for all": (lambda x: np.ones_like(x), Unproven),
}


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32 - 1), st.integers(3, 24))
def test_models_whose_rows_influence_one_another_are_found_out(kind: str, seed: int, rows_max: int) -> None:
    function, expected = KINDS[kind]
    rows = [{"x": row} for row in np.random.default_rng(seed).normal(size=(3, 1, 3)).astype(np.float32)]
    alone = [{"y": function(row["x"])} for row in rows]
    verdict = try_rows(lambda inputs, outputs: {"y": function(inputs["x"])}, rows, alone, (), rows_max)
    assert isinstance(verdict, expected), verdict


# The runner -----------------------------------------------------------------------------------------------------------


class Doubles:
    """`doubled`, behind a gate; counts its runs."""

    metadata = ModelMetadata(
        "test",
        (TensorSpec("x", "FP32", (-1, 2)),),
        (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("total", "FP32", (-1,))),
        batch_dimension=True,
    )

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.runs = 0

    def infer(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        assert self.gate.wait(10)
        self.runs += 1
        return doubled(inputs, outputs)


class Pins:
    def __init__(self) -> None:
        self.count = 0
        self.none = asyncio.Event()
        self.none.set()

    def change(self, by: int) -> None:
        self.count += by
        self.none.set() if self.count == 0 else self.none.clear()


def resident(model: Any, pins: Pins, rules: BatchRules) -> Resident:
    unused: Any = SimpleNamespace(pins=0)
    made = Resident(
        copy=unused, model=model, format="fake", checker=unused, meter=unused, artifact=unused, device=CPU,
        size=Size(1), estimated_bytes=1, declared_bytes=None, run_s=1.0, load_s=0.0, isolated=False,
        pin=lambda copy: pins.change(1), unpin=lambda copy: pins.change(-1), rules=rules,
    )  # fmt: skip
    unused.ran = lambda requests: None
    return made


asked = st.tuples(values, st.sampled_from(["waits", "waits", "waits", "leaves", "too late"]))


@settings(max_examples=30, deadline=None)
@given(st.lists(asked, min_size=2, max_size=20), st.integers(1, 16), st.sampled_from([0.0, 0.001]))
def test_callers_that_wait_get_their_own_answers_whoever_else_leaves_fails_or_is_late(
    requests: list[tuple[list[int], str]], rows_max: int, delay_s: float
) -> None:
    model = Doubles()

    async def ask_all() -> None:
        pins = Pins()
        runner = Runner(2, 1, lambda seconds: None)
        copy = resident(model, pins, BatchRules(rows_max, delay_s, "" if rows_max > 1 else "one row a run"))
        asking = []
        for rows, fate in requests:
            x = np.array([[v, v + 1] for v in rows], np.float32)
            deadline_s = time.monotonic() - 1 if fate == "too late" else None
            asking.append(asyncio.ensure_future(runner.run_in_thread(copy, Request({"x": x}, (), 8, deadline_s))))
        await asyncio.sleep(0)
        for (_, fate), task in zip(requests, asking, strict=True):
            if fate == "leaves":
                task.cancel()
        model.gate.set()
        answers = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 10)
        for (rows, fate), answer in zip(requests, answers, strict=True):
            if fate == "leaves":
                assert isinstance(answer, asyncio.CancelledError)
            elif fate == "too late":
                assert isinstance(answer, TooLate)
            elif any(13 in (v, v + 1) for v in rows):
                assert isinstance(answer, BadInput)
            else:
                assert isinstance(answer, dict)
                np.testing.assert_array_equal(answer["y"], [[2 * v, 2 * v + 2] for v in rows])
        runner.close()
        await asyncio.wait_for(pins.none.wait(), 10)  # a trial may go on for a moment

    asyncio.run(ask_all())
