"""What waits for the same copy runs together, where the model allows it; nobody waits for company unless told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mesh.batching.joining import Request
from mesh.batching.lane import ALONE_AGAIN_AFTER
from mesh.batching.row_wise import NotRowWise, RowWise
from mesh.batching.rules import BatchRules
from mesh.known_sizes import NOTHING, Loadable
from mesh.resident import Resident
from mesh.running import CopyGone, Runner, TooLate
from runtime_adapters.base import CPU, Device, ModelMetadata, Size, TensorSpec
from runtime_adapters.errors import BadInput, ModelCrashed

METADATA = ModelMetadata(
    "test", (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),), batch_dimension=True
)
LONG_S = 20


class Model:
    """Doubles its input behind a gate, and notes how many rows each run had, and on which thread."""

    def __init__(self, function: Callable[[Any], Any] = lambda x: x * 2) -> None:
        self.metadata = METADATA
        self.function = function
        self.rows: list[int] = []
        self.threads: set[str] = set()
        self.at_once = self.at_once_max = 0
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def infer(self, inputs: Any, outputs: Any) -> Any:
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.gate.wait(LONG_S)
        self.rows.append(len(inputs["x"]))
        self.at_once -= 1
        return {"y": self.function(inputs["x"])}


class Pod:
    """A runner of so many threads, and copies for it."""

    def __init__(self, threads: int = 1) -> None:
        self.now_s = 0.0
        self.runner = Runner(threads, 4, lambda seconds: None, clock=lambda: self.now_s)
        self.runs: list[int] = []
        self.pins = 0

    def copy(
        self,
        model: Model,
        rules: BatchRules | None = None,
        *,
        isolated: bool = False,
        device: Device = CPU,
        loadable: Loadable = NOTHING,
        run_s: float = 1.0,
    ) -> Resident:
        def change(by: int) -> Callable[[Any], None]:
            def changed(_: Any) -> None:
                self.pins += by

            return changed

        unused: Any = SimpleNamespace(pins=0)
        meter: Any = SimpleNamespace(ran=self.runs.append)
        return Resident(
            copy=unused, model=model, format="fake", checker=unused, meter=meter, artifact=unused,  # type: ignore[arg-type]
            device=device, size=Size(1), estimated_bytes=1, declared_bytes=None, run_s=run_s, load_s=0.0,
            isolated=isolated, pin=change(1), unpin=change(-1),
            loadable=loadable, rules=rules or BatchRules(64),
        )  # fmt: skip

    def ask(self, copy: Resident, *values: float, deadline_s: float | None = None) -> asyncio.Task[Any]:
        return asyncio.create_task(self.runner.run_in_thread(copy, request(*values, deadline_s=deadline_s)))

    def known_row_wise(self, copy: Resident) -> Resident:
        """As after a trial, and some hundred runs of which larger ones took no longer."""
        learned = self.runner._lane(copy).learned
        learned.verdict = RowWise(0.0)
        for rows in (1, 2, 4, 8, 16, 32):
            for _ in range(3):
                learned.sizing.ran(rows, 0.001)
        return copy

    async def busy(self, copy: Resident, model: Model) -> asyncio.Task[Any]:
        """A request that runs, and goes on until the model's gate is opened."""
        model.gate.clear()
        running = self.ask(copy, 0.5)
        await asyncio.wait_for(asyncio.to_thread(model.entered.acquire), LONG_S)
        return running


def request(*values: float, deadline_s: float | None = None) -> Request:
    return Request({"x": np.array([[v, v] for v in values], np.float32)}, (), 8 * len(values), deadline_s)


async def doubled(*tasks: asyncio.Task[Any]) -> list[list[float]]:
    answers = await asyncio.wait_for(asyncio.gather(*tasks), LONG_S)
    return [answer["y"][:, 0].tolist() for answer in answers]


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    made = Pod()
    yield made
    made.runner.close()


async def test_what_arrives_while_the_model_runs_runs_together_next(pod: Pod) -> None:
    model = Model()
    copy = pod.known_row_wise(pod.copy(model))
    first = await pod.busy(copy, model)
    others = [pod.ask(copy, float(number), number + 0.5) for number in range(8)]
    await asyncio.sleep(0)
    model.gate.set()
    assert await doubled(first, *others) == [[1.0], *([2.0 * n, 2.0 * n + 1] for n in range(8))]
    assert model.rows == [1, 16]
    assert pod.runs == [1, 8]
    assert pod.pins == 0
    assert copy.runs == 9


async def test_a_request_alone_waits_for_nobody(pod: Pod) -> None:
    model = Model()
    copy = pod.known_row_wise(pod.copy(model))
    for number in range(3):
        assert await doubled(pod.ask(copy, number)) == [[2.0 * number]]
    assert model.rows == [1, 1, 1]


async def test_a_batch_has_at_most_the_rows_that_the_rules_allow(pod: Pod) -> None:
    model = Model()
    copy = pod.known_row_wise(pod.copy(model, BatchRules(4)))
    first = await pod.busy(copy, model)
    others = [pod.ask(copy, number) for number in range(10)]
    await asyncio.sleep(0)
    model.gate.set()
    await doubled(first, *others)
    assert model.rows == [1, 4, 4, 2]


async def test_requests_that_meet_for_the_first_time_are_tried_and_the_verdict_outlives_the_copy(pod: Pod) -> None:
    model, content = Model(), Loadable("content", "runtime")
    copy = pod.copy(model, loadable=content)
    first = await pod.busy(copy, model)
    others = [pod.ask(copy, number) for number in range(4)]
    await asyncio.sleep(0)
    model.gate.set()
    assert await doubled(first, *others) == [[1.0], [0.0], [2.0], [4.0], [6.0]]
    learned = pod.runner.learned_of(copy)
    assert learned is not None
    assert learned.verdict == RowWise(0.0)
    assert model.rows[1:5] == [1, 1, 1, 24], "three rows alone, then together"
    assert pod.runner.learned_of(pod.copy(model, loadable=content)) is learned
    assert pod.pins == 0


async def test_now_and_then_a_request_has_a_run_to_itself_so_that_it_is_known_what_that_costs(pod: Pod) -> None:
    model = Model()
    copy = pod.known_row_wise(pod.copy(model, run_s=1e-6))
    for _ in range(ALONE_AGAIN_AFTER + 1):
        pod.runner.run_inline_together(copy, [request(number) for number in range(3)])
    assert model.rows == [*[3] * ALONE_AGAIN_AFTER, 1, 2]


async def test_a_wait_for_a_core_makes_no_model_slow(pod: Pod) -> None:
    model = Model()
    copy = pod.copy(model, BatchRules(1, why_not="-"))
    for _ in range(5):
        first = await pod.busy(copy, model)  # as long on the thread as this loop is busy elsewhere
        model.gate.set()
        await doubled(first)
    assert copy.place.mean_s < copy.run_s


async def test_rows_are_kept_for_a_trial_only_while_others_wait(pod: Pod) -> None:
    model = Model()
    copy = pod.copy(model)
    for number in range(3):
        await doubled(pod.ask(copy, number))
    learned = pod.runner.learned_of(copy)
    assert learned is not None
    assert not learned.answered
    assert learned.may_try()


async def test_a_copy_that_goes_on_in_another_form_is_tried_anew(pod: Pod) -> None:
    model = Model()
    copy = pod.known_row_wise(pod.copy(model, loadable=Loadable("content", "as fetched"), run_s=1e-6))
    before = pod.runner.learned_of(copy)
    copy.renewed(Loadable("content", "prepared"), 0.5)
    after = pod.runner.learned_of(copy)
    assert after is not before
    assert after is not None
    assert after.verdict is None
    assert not pod.runner.runs_inline(copy, 8)


async def test_a_model_whose_rows_influence_one_another_never_shares_a_run(pod: Pod) -> None:
    model = Model(lambda x: x - x.mean(axis=0))
    copy = pod.copy(model)
    first = await pod.busy(copy, model)
    others = [pod.ask(copy, number) for number in range(6)]
    await asyncio.sleep(0)
    model.gate.set()
    assert await doubled(first, *others) == [[0.0]] * 7
    learned = pod.runner.learned_of(copy)
    assert learned is not None
    assert isinstance(learned.verdict, NotRowWise)
    assert pod.runs == [1] * 7


async def test_a_model_that_says_no_is_not_even_tried(pod: Pod) -> None:
    model = Model()
    copy = pod.copy(model, BatchRules(1, why_not="it has no batch dimension"))
    first = await pod.busy(copy, model)
    others = [pod.ask(copy, number) for number in range(4)]
    await asyncio.sleep(0)
    model.gate.set()
    await doubled(first, *others)
    assert model.rows == [1] * 5


async def test_the_request_that_a_framework_refuses_fails_alone(pod: Pod) -> None:
    def refuses_13(x: Any) -> Any:
        if (x == 13).any():
            raise BadInput("13 is no input")
        return x * 2

    model = Model(refuses_13)
    copy = pod.known_row_wise(pod.copy(model))
    first = await pod.busy(copy, model)
    good, bad = [pod.ask(copy, number) for number in range(3)], pod.ask(copy, 13)
    await asyncio.sleep(0)
    model.gate.set()
    assert await doubled(first, *good) == [[1.0], [0.0], [2.0], [4.0]]
    with pytest.raises(BadInput):
        await bad


async def test_requests_that_only_waited_for_a_copy_that_died_are_told_so(pod: Pod) -> None:
    def dies(x: Any) -> Any:
        raise ModelCrashed("the process is gone")

    model = Model(dies)
    copy = pod.copy(model, isolated=True)
    first = await pod.busy(copy, model)
    waiting = pod.ask(copy, 1)
    await asyncio.sleep(0)
    model.gate.set()
    with pytest.raises(ModelCrashed):
        await asyncio.wait_for(first, LONG_S)
    with pytest.raises(CopyGone):
        await asyncio.wait_for(waiting, LONG_S)
    assert pod.pins == 0


async def test_a_request_that_would_be_late_is_told_at_once_and_delays_nobody(pod: Pod) -> None:
    model = Model()
    copy = pod.known_row_wise(pod.copy(model))
    first = await pod.busy(copy, model)
    late, timely = pod.ask(copy, 1, deadline_s=5.0), pod.ask(copy, 2, deadline_s=50.0)
    await asyncio.sleep(0)
    pod.now_s = 5.0
    model.gate.set()
    assert await doubled(first, timely) == [[1.0], [4.0]]
    with pytest.raises(TooLate, match="deadline"):
        await late
    assert model.rows == [1, 1]


async def test_requests_are_kept_for_company_when_the_spec_says_so(pod: Pod) -> None:
    model = Model()
    copy = pod.known_row_wise(pod.copy(model, BatchRules(4, delay_s=3600.0)))
    waiting = [pod.ask(copy, number) for number in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not model.rows
    assert await doubled(*waiting, pod.ask(copy, 3)) == [[0.0], [2.0], [4.0], [6.0]]  # the batch is full
    assert model.rows == [4]


async def test_a_kept_request_runs_when_its_delay_is_over(pod: Pod) -> None:
    model = Model()
    copy = pod.known_row_wise(pod.copy(model, BatchRules(4, delay_s=0.01)))
    waiting = pod.ask(copy, 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    pod.now_s = 0.01
    assert await doubled(waiting) == [[2.0]]


async def test_models_take_turns_whatever_one_of_them_has_waiting(pod: Pod) -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[Any], Any]:
        return lambda x: (order.append(name), x)[1]

    many, few = Model(noting("many")), Model(noting("few"))
    greedy, modest = pod.copy(many, BatchRules(1, why_not="-")), pod.copy(few, BatchRules(1, why_not="-"))
    first = await pod.busy(greedy, many)
    waiting = [pod.ask(greedy, number) for number in range(20)] + [pod.ask(modest, 1)]
    await asyncio.sleep(0)
    many.gate.set()
    await doubled(first, *waiting)
    assert order.index("few") <= 2


async def test_each_gpu_has_one_run_at_a_time_on_a_thread_of_its_own() -> None:
    pod = Pod(threads=4)
    model, other = Model(), Model()
    rules = BatchRules(1, why_not="-")
    copies = [pod.copy(model, rules, device=Device("cuda", 0)), pod.copy(model, rules, device=Device("cuda", 0))]
    elsewhere = pod.copy(other, rules, device=Device("cuda", 1), run_s=1e-9)
    assert not pod.runner.runs_inline(elsewhere, 8)
    await doubled(*[pod.ask(copy, 1) for copy in copies for _ in range(10)], pod.ask(elsewhere, 1))
    assert model.at_once_max == 1
    assert len(model.threads | other.threads) == 2
    pod.runner.close()


async def test_a_model_has_at_most_so_many_runs_at_a_time() -> None:
    pod = Pod()
    pod.runner = Runner(4, 1, lambda seconds: None, runs_per_model_max=2)
    model = Model()
    copy = pod.copy(model, BatchRules(1, why_not="-"))
    model.gate.clear()
    waiting = [pod.ask(copy, number) for number in range(8)]
    for _ in range(2):
        await asyncio.wait_for(asyncio.to_thread(model.entered.acquire), LONG_S)
    model.gate.set()
    await doubled(*waiting)
    assert model.at_once_max == 2
    pod.runner.close()


async def test_requests_that_arrived_together_share_a_run_on_the_loop(pod: Pod) -> None:
    model = Model()
    copy = pod.known_row_wise(pod.copy(model, run_s=1e-6))
    requests = [request(number) for number in range(6)]
    answers = pod.runner.run_inline_together(copy, requests)
    assert [answer["y"][0, 0] for answer in answers if isinstance(answer, dict)] == [0, 2, 4, 6, 8, 10]
    assert model.rows == [6]
    assert model.threads == {threading.current_thread().name}
    assert pod.runs == [6]


async def test_a_pod_that_stops_takes_no_more_runs(pod: Pod) -> None:
    pod.runner.close()
    with pytest.raises(RuntimeError, match="stopping"):
        await pod.ask(pod.copy(Model()), 1)
