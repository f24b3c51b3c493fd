"""A request's way through a graph: which steps are asked, with what, and whose failure is whose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mesh.pipelines.errors import BrokenPipeline, NoBranch, TooMuch
from mesh.pipelines.registered import Pipelines
from mesh.pipelines.running import Run
from mesh.pipelines.spec import URI, parameters_of
from mesh.running import TooLate
from mesh.serving import UnknownModel
from mesh.transport.base import StatusCode, TransportError
from placement.records import PIPELINE_FORMAT, ModelRecord, ModelSpec
from runtime_adapters.errors import BadInput

MODEL = ModelSpec("file:///m.onnx", "onnx")


class World:
    """Models that answer `<name>(<request>)`; some fail, some wait."""

    def __init__(self, **pipelines: Any) -> None:
        self.specs = {
            name: ModelSpec(URI, PIPELINE_FORMAT, parameters=parameters_of(graph)) for name, graph in pipelines.items()
        }
        self.asked: list[tuple[str, Any, tuple[str, ...]]] = []
        self.failing: dict[str, Exception] = {}
        self.waiting: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []
        self._arrivals = asyncio.Semaphore(0)

    async def resolve(self, name: str) -> ModelRecord:
        if name == "unknown":
            raise UnknownModel("no such model")
        return ModelRecord("t", name, self.specs.get(name, MODEL), 1, 0.0, 0.0)

    async def ask(self, record: ModelRecord, given: Any, outputs: tuple[str, ...]) -> Any:
        self.asked.append((record.id, given, outputs))
        self._arrivals.release()
        if record.id in self.waiting:
            try:
                await self.waiting[record.id].wait()
            except asyncio.CancelledError:
                self.cancelled.append(record.id)
                raise
        if record.id in self.failing:
            raise self.failing[record.id]
        return {"by": f"{record.id}({given['by']})", **({"kind": record.id} if record.id == "dog" else {})}

    def merged(self, answers: Mapping[str, Any], failures: Mapping[str, TransportError]) -> Any:
        return {**answers, **{name: error.message for name, error in failures.items()}}

    def outputs_of_step(self, step: str, outputs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{step} of {name}" for name in outputs)

    def as_instances(self, answer: Any) -> Any:
        return {**answer, "by": f"mapped {answer['by']}"}

    def document(self, value: Any) -> Any:
        return value

    async def run(
        self,
        name: str = "p",
        draw: Callable[[], float] = lambda: 0.0,
        steps_max: int = 20,
        outputs: tuple[str, ...] = (),
        **more: Any,
    ) -> Any:
        unused: Any = None
        run = Run(Pipelines(unused, 3), self.resolve, self, draw, steps_max)
        return await run.pipeline(await self.resolve(name), {"by": "x", "n": 7, **more}, outputs)

    async def wait_asked(self, count: int) -> None:
        for _ in range(count):
            await self._arrivals.acquire()

    def asked_names(self) -> list[str]:
        return [name for name, _, _ in self.asked]


def nodes(router: str, *steps: Any, **more: Any) -> dict[str, Any]:
    written = [step if isinstance(step, dict) else {"serviceName": step} for step in steps]
    return {"nodes": {"root": {"routerType": router, "steps": written}, **more}}


def after(service: str, **more: Any) -> dict[str, Any]:
    return {"serviceName": service, "data": "$response", **more}


def hard(service: str, **more: Any) -> dict[str, Any]:
    return {"serviceName": service, "dependency": "Hard", **more}


async def test_steps_of_a_sequence_take_the_request_or_the_answer_before() -> None:
    world = World(p=nodes("Sequence", "a", after("b"), "c", after("d", mapPredictionsToInstances=True)))
    assert await world.run(outputs=("y",)) == {"by": "d(mapped c(x))"}
    assert [(name, given["by"], outputs) for name, given, outputs in world.asked] == [
        ("a", "x", ()),
        ("b", "a(x)", ()),
        ("c", "x", ()),
        ("d", "mapped c(x)", ("y",)),
    ]


async def test_a_sequence_ends_with_the_answer_that_a_condition_does_not_hold_of() -> None:
    graph = nodes("Sequence", "cat", after("b", condition="kind"), after("c"))
    world = World(p=graph)
    assert await world.run() == {"by": "cat(x)"}
    assert world.asked_names() == ["cat"]
    graph["nodes"]["root"]["steps"][0] = {"serviceName": "dog"}
    assert await World(p=graph).run() == {"by": "c(b(dog(x)))"}


async def test_a_switch_takes_the_first_step_whose_condition_holds_of_the_request() -> None:
    steps = [{"serviceName": name, "condition": f"[@this].#(n{compares})"} for name, compares in
             (("a", ">7"), ("b", "==7"), ("c", ">1"))]  # fmt: skip
    world = World(p=nodes("Switch", *steps))
    assert await world.run(outputs=("y",)) == {"by": "b(x)"}
    assert world.asked == [("b", {"by": "x", "n": 7}, ("y",))]
    with pytest.raises(
        NoBranch, match=r"pipeline 'p', node 'root': none of the routes matched with the switch condition"
    ):
        await World(p=nodes("Switch", steps[0])).run()


@pytest.mark.parametrize(("draw", "taken"), [(0.0, "a"), (0.299, "a"), (0.3, "c"), (0.999, "c")])
async def test_a_splitter_takes_one_step_by_weight(draw: float, taken: str) -> None:
    shares = (("a", 30), ("b", 0), ("c", 70))
    world = World(p=nodes("Splitter", *({"serviceName": name, "weight": weight} for name, weight in shares)))
    assert await world.run(draw=lambda: draw) == {"by": f"{taken}(x)"}


async def test_an_ensemble_asks_all_at_once_and_merges_by_name() -> None:
    world = World(p=nodes("Ensemble", "a", {"serviceName": "b", "name": "second"}))
    world.waiting = {"a": asyncio.Event(), "b": asyncio.Event()}
    running = asyncio.ensure_future(world.run(outputs=("y",)))
    await world.wait_asked(2)
    for gate in world.waiting.values():
        gate.set()
    assert await running == {"0": {"by": "a(x)"}, "second": {"by": "b(x)"}}
    assert [outputs for _, _, outputs in world.asked] == [("0 of y",), ("second of y",)]


async def test_a_soft_failure_of_an_ensemble_is_merged_and_its_error_if_all_fail() -> None:
    world = World(p=nodes("Ensemble", "a", "b"))
    world.failing["b"] = BadInput("wrong")
    said = "pipeline 'p', node 'root', step '1' ('b'): wrong"
    assert await world.run() == {"0": {"by": "a(x)"}, "1": said}
    world.failing["a"] = BadInput("wrong, too")
    with pytest.raises(TransportError, match=r"step '0' \('a'\): wrong, too"):
        await world.run()


async def test_a_hard_failure_ends_an_ensemble_and_cancels_the_others() -> None:
    world = World(
        p=nodes("Ensemble", "a", hard("b"), {"nodeName": "more"}, more=nodes("Ensemble", "c")["nodes"]["root"])
    )
    world.waiting = {"a": asyncio.Event(), "c": asyncio.Event()}
    world.failing["b"] = BadInput("wrong")
    with pytest.raises(TransportError) as raised:
        await world.run()
    assert raised.value.status is StatusCode.INVALID_ARGUMENT
    assert sorted(world.cancelled) == ["a", "c"]


async def test_whoever_cancels_a_request_cancels_every_step_of_it() -> None:
    inner = nodes("Ensemble", "a", {"nodeName": "both"}, both=nodes("Ensemble", "b", "c")["nodes"]["root"])
    world = World(p=nodes("Sequence", "first", after("inner")), inner=inner)
    world.waiting = {name: asyncio.Event() for name in "abc"}
    running = asyncio.ensure_future(world.run())
    await world.wait_asked(4)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(world.cancelled) == ["a", "b", "c"]


async def test_a_defect_is_nobodys_soft_failure() -> None:
    world = World(p=nodes("Ensemble", "a", "b"))
    world.failing["b"] = KeyError("a fault of ours")
    with pytest.raises(KeyError):
        await world.run()


async def test_a_soft_failure_in_a_sequence_counts_where_its_answer_is_needed() -> None:
    broken: dict[str, Exception] = {"b": BadInput("wrong")}
    for steps, needed in (
        (("b", "c"), False),
        (("a", "b", "c"), False),
        (("b", after("c")), True),
        (("b", after("c", condition="kind")), True),
        (("a", "b"), True),
        ((hard("b"), "c"), True),
    ):
        world = World(p=nodes("Sequence", *steps))
        world.failing = broken
        if needed:
            with pytest.raises(TransportError, match=r"'b'\): wrong"):
                await world.run()
            assert "c" not in world.asked_names()
        else:
            assert await world.run() == {"by": "c(x)"}


async def test_pipelines_lie_in_one_another_and_errors_say_the_whole_way() -> None:
    inner = nodes("Sequence", "b", {"nodeName": "n"}, n=nodes("Ensemble", "c")["nodes"]["root"])
    world = World(p=nodes("Sequence", "a", after("q")), q=inner)
    assert await world.run() == {"0": {"by": "c(a(x))"}}
    world.failing["c"] = TransportError(StatusCode.UNAVAILABLE, "later", 0.5)
    with pytest.raises(TransportError) as raised:
        await world.run()
    assert raised.value.retry_after_s == 0.5
    assert raised.value.message == (
        "pipeline 'p', node 'root', step '1' ('q'): pipeline 'q', node 'root', step '1' (node 'n'): "
        "pipeline 'q', node 'n', step '0' ('c'): later"
    )


async def test_pipelines_that_lead_back_to_one_another_end_with_an_error() -> None:
    world = World(p=nodes("Sequence", "q"), q=nodes("Sequence", "p"))
    with pytest.raises(TransportError, match="p -> q -> p; register one of them anew") as raised:
        await world.run()
    assert raised.value.status is StatusCode.FAILED_PRECONDITION


async def test_depth_and_steps_have_limits() -> None:
    deep = {f"p{number}": nodes("Sequence", f"p{number + 1}") for number in range(3)}
    with pytest.raises(TransportError, match="more than 3 pipelines in one another"):
        await World(**deep, p3=nodes("Sequence", "m")).run("p0")
    ten = [f"{at}" for at in range(10)]
    wide = {
        f"n{number}": nodes("Ensemble", *({"nodeName": f"n{number + 1}", "name": name} for name in ten))["nodes"][
            "root"
        ]
        for number in range(5)
    }
    last = nodes("Ensemble", "m")["nodes"]["root"]
    world = World(p=nodes("Ensemble", {"nodeName": "n0"}, **wide, n5=last))
    with pytest.raises(TooMuch, match="takes more than 20 steps, this pod's pipeline_steps_max"):
        await world.run()
    assert len(world.asked) <= 20


async def test_a_pipelines_own_timeout_ends_its_steps() -> None:
    world = World(p={**nodes("Sequence", "a"), "timeout": 0.01})
    world.waiting["a"] = asyncio.Event()
    with pytest.raises(TooLate, match=r"pipeline 'p' took longer than its timeout, 0\.01 s"):
        await world.run()
    assert world.cancelled == ["a"]


async def test_a_name_that_is_gone_says_whose_step_asks_it() -> None:
    with pytest.raises(TransportError, match=r"'root', step '0' \('unknown'\): no such model") as raised:
        await World(p=nodes("Sequence", "unknown")).run()
    assert raised.value.status is StatusCode.NOT_FOUND


async def test_a_record_that_cannot_be_read_says_so() -> None:
    world = World()
    world.specs["p"] = ModelSpec(URI, PIPELINE_FORMAT, parameters={"nodes.root": "{}"})
    with pytest.raises(BrokenPipeline, match=r"pipeline 'p' cannot be read: nodes\.root\.routerType is missing"):
        await world.run()


async def test_a_step_asks_for_the_outputs_that_it_names_unless_the_client_names_some() -> None:
    world = World(p=nodes("Sequence", {"serviceName": "a", "outputs": ["proba"]}, after("b", outputs=["score"])))
    await world.run()
    await world.run(outputs=("label",))
    assert [outputs for _, _, outputs in world.asked] == [("proba",), ("score",), ("proba",), ("label",)]


async def test_all_conditions_of_a_request_share_what_they_may_look_at() -> None:
    steps = ({"serviceName": "a", "condition": f"many.#(=={number})"} for number in range(-9, 0))
    world = World(p=nodes("Switch", *steps))
    with pytest.raises(BadInput, match=r"step '\d', condition 'many.*look at more than 50000 values"):
        await world.run(many=[0] * 6000)
